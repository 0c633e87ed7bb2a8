"""What an executor adds to a run: the milliseconds between runs that take none themselves, and the seconds to begin.

    python benchmarks/executors.py [--runs 200] [--rounds 5] [--only local --only ray] [--out FILE]

Each executor carries out the same runs of `executor_session.py`, one after another, into a fresh folder of results. The
executors take turns, forwards and backwards. *A run* is the time from the start of the first to the end of the last,
over their number: it has the record, its place on the disk and the messages about it. *To begin* is the time before the
first run starts. *In this process* is the floor: the same runs and records without any executor. Executors that are not
installed are left out and named. `slurm` runs on this machine (`cluster=local`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import executor_session
from start import counted
from tabulate import tabulate

from peftbench.errors import UserError
from peftbench.measure import background_load, timing
from peftbench.records import environment
from peftbench.records.spec import RunSpec, Spec
from peftbench.run import executors, runner
from peftbench.run.attempt import SessionHost
from peftbench.run.jobs import Job
from peftbench.run.view import Quiet

SESSION = f"{executor_session.__name__}:Session"
FLOOR = "in this process"
OPTIONS: dict[str, dict[str, str]] = {"local": {}, "ray": {}, "slurm": {"cluster": "local"}}  # by executor


class Clock(Quiet):
    """Notes when the first run starts and the last one ends."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.last = 0.0
        self.finished = 0

    def started(self, worker: int, spec: Spec) -> None:
        self.first = self.first or time.perf_counter()

    def ended(self, worker: int, spec: Spec, facts: Mapping[str, Any]) -> None:
        super().ended(worker, spec, facts)
        self.last = time.perf_counter()
        self.finished += facts["status"] == "finished"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=counted, default=200)
    parser.add_argument("--rounds", type=counted, default=5)
    parser.add_argument("--only", action="append", choices=list(OPTIONS), help="an executor in place of all")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/executors.json"))
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)  # for workers that others start
    names = [name for name in args.only or OPTIONS if is_here(name)]
    specs = executor_session.grid(args.runs)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in (FLOOR, *names)}
    watch = background_load.LoadMonitor()
    for number in range(args.rounds):
        for name in list(samples)[:: 1 if number % 2 == 0 else -1]:
            samples[name].append(in_this_process(specs) if name == FLOOR else carried_out(name, specs))
            print(f"round {number + 1}, {name}: {samples[name][-1][1]:.2f} ms a run", flush=True)
    told = {
        "benchmark": "executors",
        "about": {"work": f"{args.runs} runs of no work", "rounds": args.rounds, "jobs": 1},
        "env": environment.facts("cpu", None),
        "others_cpu_share": watch.share(),
        "rows": {name: row(found) for name, found in samples.items()},
    }
    print(table(told["rows"]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written: {args.out}")


def is_here(name: str) -> bool:
    """Whether an executor is installed; says why not."""
    try:
        executors.find(name)
        executors.check_options(name, OPTIONS[name])
    except UserError as error:
        print(f"left out: {error}", flush=True)
        return False
    return True


def carried_out(name: str, specs: Sequence[RunSpec]) -> tuple[float, float]:
    """Seconds before the first run starts, and milliseconds of each run, by an executor."""
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="peftbench-executors-") as folder:
        began = time.perf_counter()
        outcome = runner.run(
            lambda _: specs,
            Path(folder),
            experiment="executors",
            session=SESSION,
            threads=1,
            executor=name,
            options=OPTIONS[name],
            view=clock,
        )
    if outcome.code != 0 or clock.finished != len(specs) or clock.first is None:
        raise SystemExit(f"{name}: {clock.finished} of {len(specs)} runs finished")
    return clock.first - began, 1e3 * (clock.last - clock.first) / len(specs)


def in_this_process(specs: Sequence[RunSpec]) -> tuple[float, float]:
    """The same without an executor: build the session, and run all of them."""
    with tempfile.TemporaryDirectory(prefix="peftbench-executors-") as folder:
        began = time.perf_counter()
        host = SessionHost(SESSION, {"threads": 1})
        gc.collect()
        gc.freeze()  # as in a worker: collections after a run do not visit libraries
        first = time.perf_counter()
        for spec in specs:
            host.carry_out(Job("run", spec, "executors", folder), lambda _: None, lambda: False)
        return first - began, 1e3 * (time.perf_counter() - first) / len(specs)


def row(samples: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The JSON of one executor: medians over the rounds, with the interval of the milliseconds a run."""
    begin, each = zip(*samples, strict=True)
    low, high = timing.interval(each)
    each_run = {**timing.summary(each), "low": low, "high": high}
    return {"run_milliseconds": each_run, "begin_seconds": timing.summary(begin)}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [[name, r["run_milliseconds"]["median"], r["begin_seconds"]["median"]] for name, r in rows.items()]
    return tabulate(lines, ["executor", "a run, ms", "to begin, s"], floatfmt=".2f")


if __name__ == "__main__":
    main()
