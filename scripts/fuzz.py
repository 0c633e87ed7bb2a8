"""Feed odd inputs to the command line, and count what crashes, hangs, talks too long, or leaves its folder.

    python scripts/fuzz.py [--count 800] [--seed 0] [--only FAMILY [--case N]] [--seconds 60]

Every input runs in a fork of one process that has imported peftbench, so that it takes a fraction of a second. Each
must end with exit code 0, 1 or 2, without a traceback, with a message of at most 2,000 characters, within the time
and memory allowed, and without a file written outside its folder. A table shows what the inputs of each family did;
what failed is kept in build/fuzz, with the command that repeats it. Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import fuzzing  # noqa: E402
from fuzzing import child  # noqa: E402
from fuzzing.child import Ran  # noqa: E402

KEPT = ROOT / "build" / "fuzz"
HEAVY = ("numpy", "pandas", "torch", "transformers", "safetensors.torch", "tokenizers", "sklearn.metrics")


def families() -> list[str]:
    """The names of the families."""
    names = [m.name for m in pkgutil.iter_modules(fuzzing.__path__)]
    return [n for n in names if hasattr(importlib.import_module(f"fuzzing.{n}"), "cases")]


def run(family: str, count: int, seed: int, seconds: float, work: Path, only: int | None = None) -> Iterator[Ran]:
    """Run the cases of a family, or one of them.

    Args:
        family: its name.
        count: how many cases it draws.
        seed: of its random numbers.
        seconds: the longest time that one may take.
        work: a folder for all files.
        only: the number of the one to run.
    """
    cases = importlib.import_module(f"fuzzing.{family}").cases
    folder, desk = work / family, work / "desk"
    folder.mkdir(parents=True)
    for number, case in enumerate(cases(random.Random(f"{seed} {family}"), count, folder)):
        if only in (None, number):
            yield child.run(case, number, seconds, desk)
        if only == number:
            return
        if only is None:
            shutil.rmtree(case.folder, ignore_errors=True)


def import_all() -> None:
    """Import what the commands import, so that no child does."""
    for name in HEAVY:
        importlib.import_module(name)
    import peftbench

    for module in pkgutil.walk_packages(peftbench.__path__, "peftbench."):
        if not module.name.endswith("__main__") and "old_paths" not in module.name:
            importlib.import_module(module.name)


def keep(ran: Ran, family: str, options: argparse.Namespace) -> str:
    """Keep a faulty input and what it printed; return what to tell of it."""
    place = KEPT / f"{family}-{ran.number}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ran.case.folder, place / "input", symlinks=True, ignore_dangling_symlinks=True)
    (place / "out").write_text(ran.out, encoding="utf-8")
    (place / "err").write_text(ran.err, encoding="utf-8")
    again = f"python scripts/fuzz.py --seed {options.seed} --count {options.count} --only {family} --case {ran.number}"
    return "\n".join(
        [
            f"{family} {ran.number} ({ran.case.name}): {'; '.join(ran.faults)}",
            f"    peftbench {' '.join(ran.case.arguments)}",
            f"    kept in {place.relative_to(ROOT)}; again: {again}",
        ]
    )


def row(family: str, runs: Sequence[Ran]) -> str:
    """One family's line of the table."""
    codes = Counter(r.code for r in runs)
    cells = [
        family,
        str(len(runs)),
        ", ".join(f"{code}: {n}" for code, n in sorted(codes.items())),
        str(sum("a traceback" in r.faults for r in runs)),
        str(sum(r.hung for r in runs)),
        str(sum(bool(r.faults) for r in runs)),
        f"{max((len(r.message) for r in runs), default=0):,}",
        f"{max((r.seconds for r in runs), default=0):.1f} s",
        f"{max((r.bytes for r in runs), default=0) / 2**20:,.0f} MiB",
        f"{len(runs) / max(sum(r.seconds for r in runs), 1e-9):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=800, help="inputs of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one family")
    parser.add_argument("--case", type=int, help="one input of that family; shows what it prints")
    parser.add_argument("--seconds", type=float, default=60, help="the longest time that an input may take")
    options = parser.parse_args()
    known = families()
    if options.only and options.only not in known:
        parser.error(f"no family {options.only}; there are {', '.join(known)}")
    import_all()
    rows, faulty = [], 0
    for family in [options.only] if options.only else known:
        runs = []
        with tempfile.TemporaryDirectory(prefix="peftbench-fuzz-") as work:
            for ran in run(family, options.count, options.seed, options.seconds, Path(work), options.case):
                runs.append(ran)
                if ran.faults:
                    faulty += 1
                    print(keep(ran, family, options), flush=True)
                if options.case is not None:
                    print(f"exit code {ran.code}\n--- out\n{ran.out}\n--- err\n{ran.err}")
        rows.append(row(family, runs))
    print("| family | inputs | exit codes | tracebacks | hangs | faulty | longest message | time | memory | a second |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main())
