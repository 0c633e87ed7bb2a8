"""Processor seconds of commands that should not take long: plan, verify, reports, figures and check-method.

    python benchmarks/fixed_costs.py [--rounds 5] [--before DIR] [--only TEXT]
        [--out results/benchmarks/fixed_costs.json]

Each command runs on the committed records, as the whole process that a user starts; processor seconds of the processes
that it starts count, too. With `--before`, another checkout with an environment of its own in .venv, both take turns,
and the ratio of each round is theirs. An uncounted round fills the file cache and each side's own caches. Where the
name says so, the answers of earlier commands are not there: models and data are, nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from start import carry_out, children_cpu_seconds, counted
from tabulate import tabulate

from peftbench import cache
from peftbench.measure import background_load, timing
from peftbench.records import environment

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "results/reference"
PLAN = ["plan", "experiments/quickstart.yaml", "--plugin", "examples/ssf.py", "--only", "method=ssf"]
PLAN += ["--against", f"{REFERENCE}/quickstart"]
VERIFY = ["verify", f"{REFERENCE}/ci_smoke", "--sample", "2"]
KEPT = ("embedded", "wheels")  # folders of the cache that a cold one has: models and data
COLD = ", no answers cached"  # the end of such a command's name
COMMANDS: dict[str, list[str]] = {
    f"plan beside baselines{COLD}": PLAN,
    "plan beside baselines": PLAN,
    f"verify of 2 runs{COLD}": VERIFY,
    "verify of 2 runs": VERIFY,
    **{
        f"report --check of {name}": ["report", f"{REFERENCE}/{name}", "--check"]
        for name in ("quickstart", "decided_small", "embedded_small")
    },
    "figures --check": ["figures", "--check"],
    **{f"check-method {method}": ["check-method", method] for method in ("lora", "dora", "qlora")},
    "check-method of a file": ["check-method", "examples/ssf.py"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=counted, default=5)
    parser.add_argument("--before", type=Path, metavar="DIR", help="a checkout to compare with")
    parser.add_argument("--only", default="", metavar="TEXT", help="the commands whose names have it")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/fixed_costs.json"))
    args = parser.parse_args()
    sides = {"now": (ROOT, Path(sys.executable))}
    if args.before is not None:
        before = args.before.resolve()
        sides["before"] = (before, before / ".venv/bin/python")
    rows = {}
    watch = background_load.LoadMonitor()
    with tempfile.TemporaryDirectory() as scratch:
        for name, command in COMMANDS.items():
            if args.only in name:
                rows[name] = measured(name, command, sides, args.rounds, Path(scratch))
                print(shown({name: rows[name]}), flush=True)
    told = {
        "benchmark": "fixed_costs",
        "about": {"rounds": args.rounds, "before": None if args.before is None else commit(args.before)},
        "env": environment.facts("cpu", None),
        "others_cpu_share": watch.share(),
        "rows": rows,
    }
    print(shown(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written: {args.out}")


def measured(
    name: str, command: Sequence[str], sides: Mapping[str, tuple[Path, Path]], rounds: int, scratch: Path
) -> dict[str, Any]:
    """Processor seconds of a command on each side, and their ratio if there are two."""
    actions = {side: partial(run, name, command, *where, scratch / side) for side, where in sides.items()}
    samples = timing.interleaved(actions, rounds, 1, lambda: None, children_cpu_seconds)
    row = {side: timing.summary(seconds) for side, seconds in samples.items()}
    return row | ({"ratio": timing.ratio(samples["now"], samples["before"])} if "before" in samples else {})


def run(name: str, command: Sequence[str], folder: Path, python: Path, kept: Path) -> None:
    """Run a command in a checkout, with that side's own cache, or a new one."""
    if not name.endswith(COLD):
        carry_out(folder, command, python, PEFTBENCH_CACHE=str(filled(kept)))
        return
    with tempfile.TemporaryDirectory() as new:
        carry_out(folder, command, python, PEFTBENCH_CACHE=str(filled(Path(new))))


def filled(folder: Path) -> Path:
    """A cache directory with the models and data of the user's own."""
    folder.mkdir(exist_ok=True)
    for name in KEPT:
        if (cache.root() / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to(cache.root() / name)
    return folder


def commit(folder: Path) -> str:
    """The abbreviated commit of a checkout."""
    return subprocess.check_output(["git", "-C", folder, "rev-parse", "--short=10", "HEAD"], text=True).strip()


def shown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, row in rows.items():
        seconds = [row[side]["median"] if side in row else None for side in ("now", "before")]
        lines.append([name, *seconds, *(row.get("ratio", {}).get(key) for key in ("median", "low", "high"))])
    return tabulate(lines, ["command", "now, s", "before, s", "ratio", "low", "high"], floatfmt=".2f")


if __name__ == "__main__":
    main()
