"""What `make quickstart` spends beside its training steps: processor seconds by part, and the wall time of the whole.

    python benchmarks/run_overhead.py [--before DIR] [--repeats 3] [--only method=lora] [--out FILE]

Runs what `make quickstart` runs once the environment and the data are there, into a fresh folder of results:
`peftbench fetch`, and `peftbench run` of its configurations. *Overhead* is all processor time of all processes but that
of the training steps. It contains the step under the memory tracker, evaluation, the profile passes and the report.
With `--before`, another checkout that has its own .venv does the same in turn, and ratios are taken within a repeat.
Before the first repeat each side plans once, so that both find their caches filled. Prints a table and writes JSON. Run
it when nothing else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import part_clocks
from start import counted
from tabulate import tabulate

from peftbench.measure import background_load, timing
from peftbench.records import environment, record
from peftbench.records.record import RunRecord

ROOT = Path(__file__).parent.parent
EXPERIMENT = "experiments/quickstart.yaml"
OURS, BEFORE = "ours", "before"
PLAN = "import sys, peftbench; peftbench.plan(sys.argv[1], only=sys.argv[2:])"


@dataclass
class Side:
    """A checkout, and what its repeats took."""

    folder: Path
    python: Path
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    parts: list[Counter[str]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def overhead(self) -> list[float]:
        """Processor seconds of each repeat that are not of training steps."""
        return [cpu - steps for cpu, steps in zip(self.cpu, self.steps, strict=True)]

    def plan(self, only: Sequence[str]) -> None:
        """Fill the caches that planning fills."""
        subprocess.run([self.python, "-c", PLAN, EXPERIMENT, *only], cwd=self.folder, check=True, capture_output=True)

    def repeat(self, only: Sequence[str]) -> None:
        """Run the commands once."""
        selected = [word for key in only for word in ("--only", key)]
        with tempfile.TemporaryDirectory(prefix="peftbench-overhead-") as scratch:
            results, parts = Path(scratch, "results"), Path(scratch, "parts")
            env = {**os.environ, **part_clocks.prepare(parts)}
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            for command in (["fetch"], ["run", EXPERIMENT, *selected, "--results", str(results)]):
                full = [self.python, "-m", "peftbench", *command]
                done = subprocess.run(full, cwd=self.folder, env=env, capture_output=True, text=True)
                if done.returncode != 0:
                    raise SystemExit(f"{' '.join(map(str, full))}: {done.returncode}\n{done.stdout}{done.stderr}")
            self.wall.append(time.perf_counter() - began)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.cpu.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
            self._add(part_clocks.read(parts))
            self.runs = sum(isinstance(r, RunRecord) for r in record.read_all(results))

    def _add(self, processes: Sequence[Mapping[str, Any]]) -> None:
        spent: Counter[str] = Counter()
        self.calls.clear()
        for process in processes:
            spent.update(process["seconds"])
            self.calls.update(process["calls"])
        spent[part_clocks.REST] = self.cpu[-1] - sum(v for k, v in spent.items() if k != part_clocks.REST)
        self.parts.append(spent)
        self.steps.append(spent[part_clocks.STEPS])
        self.missing = sorted({name for process in processes for name in process["missing"]})

    def as_dict(self) -> dict[str, Any]:
        """The JSON of this side: seconds of the whole, and by part the median over the repeats."""
        return {
            "runs": self.runs,
            "wall_seconds": timing.summary(self.wall),
            "cpu_seconds": timing.summary(self.cpu),
            "overhead_seconds": timing.summary(self.overhead),
            "parts": {name: {"seconds": seconds, "calls": self.calls[name]} for name, seconds in self.medians()},
            "missing": self.missing,
            "code": commit_of(self.folder),
        }

    def medians(self) -> list[tuple[str, float]]:
        """The parts with their seconds, the longest first."""
        names = {name for spent in self.parts for name in spent}
        return sorted(((n, statistics.median(s[n] for s in self.parts)) for n in names), key=lambda row: -row[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout, with its own .venv")
    parser.add_argument("--repeats", type=counted, default=3)
    parser.add_argument("--only", action="append", metavar="KEY=VALUE", help="a part of the grid in place of the whole")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/run_overhead.json"))
    args = parser.parse_args()
    if args.out.is_dir():
        parser.error(f"--out {args.out} is a folder; give a file, such as {args.out / 'run_overhead.json'}")
    only = args.only or configurations((ROOT / "Makefile").read_text())
    sides = {OURS: Side(ROOT, Path(sys.executable))}
    if args.before is not None:
        sides[BEFORE] = Side(args.before.resolve(), args.before.absolute() / ".venv/bin/python")
    for side in sides.values():
        side.plan(only)
    watch = background_load.LoadMonitor()
    for number in range(args.repeats):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            sides[name].repeat(only)
            print(f"{name}, repeat {number + 1}: {sides[name].wall[-1]:.1f} s", flush=True)
    told = {
        "benchmark": "run_overhead",
        "about": {"experiment": EXPERIMENT, "only": None if args.only is None else only, "repeats": args.repeats},
        "env": environment.facts("cpu", None),
        "others_cpu_share": watch.share(),
        "sides": {name: side.as_dict() for name, side in sides.items()},
        "ratio": ratios(sides),
    }
    print(table(told["sides"]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written: {args.out}")


def configurations(makefile: str) -> list[str]:
    """The part of the grid that `make quickstart` runs, as `--only` takes it."""
    found = re.search(r"^EIGHT := (.+)$", makefile, re.MULTILINE)
    if found is None:
        raise SystemExit("the Makefile names no configurations of `make quickstart` (EIGHT := ...)")
    return [f"method={label}" for label in found[1].split()]


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout; None where it is none."""
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def ratios(sides: Mapping[str, Side]) -> dict[str, Any]:
    """Ours over before, by what is measured; nothing without another checkout."""
    if BEFORE not in sides:
        return {}
    ours, before = sides[OURS], sides[BEFORE]
    return {
        "overhead": timing.ratio(ours.overhead, before.overhead),
        "wall": timing.ratio(ours.wall, before.wall),
    }


def table(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """Processor seconds by part: in all, of one run, and their share; then the same of the other checkout."""
    ours = sides[OURS]
    names = dict.fromkeys(name for side in sides.values() for name in side["parts"])
    total = ours["cpu_seconds"]["median"]
    rows = []
    for name in names:
        seconds = [side["parts"].get(name, {"seconds": 0.0})["seconds"] for side in sides.values()]
        rows.append([name, seconds[0], seconds[0] / ours["runs"], f"{seconds[0] / total:.1%}", *seconds[1:]])
    for name in ("overhead", "cpu", "wall"):
        medians = [side[f"{name}_seconds"]["median"] for side in sides.values()]
        rows.append([f"{name}, in all", medians[0], medians[0] / ours["runs"], "", *medians[1:]])
    return tabulate(rows, ["part", "cpu, s", "a run, s", "share", *list(sides)[1:]], floatfmt=".2f")


if __name__ == "__main__":
    main()
