"""Make everything that is published again from the committed records, and say what changed: nothing, if they did not.

    python scripts/published.py [--check]

That is every committed report under results/reference/, the papers' figures, the benchmarks' figures and tables,
the page of folklore, the cards of methods, README's table and results/README.md. With --check the exit code is 1 where
a file changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("README.md", "docs", "results")


def commands() -> Iterator[list[list[str]]]:
    """What makes it all: groups one after another, of commands that write files of their own and may run at once."""
    python = sys.executable
    sets = sorted((ROOT / "results" / "reference").glob("*/report"))
    reports = [[python, "-m", "peftbench", "report", str(folder.parent.relative_to(ROOT))] for folder in sets]
    others = ("benchmarks/figure.py", "scripts/folklore.py", "scripts/results_readme.py")
    yield [[python, "-m", "peftbench", "figures"], *reports, *([python, name] for name in others)]
    yield [[python, "scripts/method_gallery.py"], [python, "scripts/readme.py"]]


def state() -> dict[str, str]:
    """A digest of every file but records, hidden ones, and what is not committed: pages and SVG files of reports."""
    files = [p for place in PLACES for p in ([ROOT / place] if (ROOT / place).is_file() else (ROOT / place).rglob("*"))]
    kept = [
        p
        for p in files
        if p.is_file()
        and not p.name.startswith(".")
        and p.parent.name != "runs"
        and not (p.suffix == ".html" or p.match("report/figures/*.svg"))
    ]
    return {p.relative_to(ROOT).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


def made(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="exit 1 where a file changed")
    check, before = options.parse_args().check, state()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for group in commands():
            list(pool.map(made, group))
    after = state()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in changed:
        print(f"changed: {name}")
    print(f"{len(after)} files made or kept; {len(changed) or 'none'} changed")
    sys.exit(1 if check and changed else 0)


if __name__ == "__main__":
    main()
