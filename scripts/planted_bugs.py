"""Plant every bug of tests/helpers/planted_bugs.py in turn, run the whole contract, and print which promises catch it.

python scripts/planted_bugs.py [--write docs/planted-bugs.md]

What stands under "caught by" is found by running all promises. Exit code 1 if a bug is not caught, or if a promise
that must catch it (`caught_by` in the list) does not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the bugs live beside the tests that plant them

import pytest  # noqa: E402
import torch  # noqa: E402
from planted_bugs import BUGS, Bug  # noqa: E402

from peftbench.verify.contract import check  # noqa: E402

COMMAND = "make planted-bugs"


def catchers(bug: Bug) -> list[str]:
    """The names of the promises that break with the bug planted, of all that have a meaning on its network."""
    with pytest.MonkeyPatch.context() as patch:
        bug.patch(patch)
        return [verdict.promise for verdict in check(bug.case) if not verdict.kept]


def missed(bug: Bug, caught: list[str]) -> list[str]:
    """What is wrong with a result: a bug that nothing catches, or promises that should have."""
    lacking = [name for name in bug.caught_by if name not in caught]
    return lacking or ([] if caught else ["any promise"])


def row(bug: Bug, caught: list[str]) -> str:
    found = ", ".join(name.replace("_", " ") for name in caught) or "**nothing**"
    base = next(c.__name__ for c in bug.method.__mro__ if c.__module__.startswith("peftbench.methods"))
    setting = " ".join(f"{name}={value}" for name, value in bug.hyper.items())
    return f"| {bug.what} | {base} | {setting or 'defaults'} | {bug.network} | {found} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".gradient_checkpointing_enable. is deprecated", FutureWarning)
    torch.set_num_threads(1)
    lines = ["| bug | in | with | network | caught by |", "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    failures = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PEFTBENCH_CACHE"] = cache
        for bug in BUGS:
            caught = catchers(bug)
            lines.append(row(bug, caught))
            print(lines[-1], flush=True)
            failures += [f"{bug.what}: not caught by {name}" for name in missed(bug, caught)]
    summary = (
        f"{len(BUGS)} bugs planted, {len(BUGS) - len({f.split(':')[0] for f in failures})} caught as they must be."
    )
    print("\n" + "\n".join([summary, *failures]))
    if options.write:
        head = f"# Planted bugs\n\nMade by `{COMMAND}`: each bug is planted in turn, and every promise is tried.\n"
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text("\n".join([head, summary, *failures, "", *lines]) + "\n", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
