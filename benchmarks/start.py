"""How long the commands take that compute nothing: help, a plan, resuming what is complete, and a report.

    python benchmarks/start.py [--repeats 5] [--keep DIR] [--out results/benchmarks/start.json]

Each is measured as the whole process that a user starts, in the user's environment, after one uncounted round that
fills the file cache and the program's own caches, and writes the report that a resumed run then finds current. The
grids are made for the purpose (tiny-encoder, files of made-up texts); the records are written by `record.write` after
the pattern of real ones in results/reference, with values that vary as real ones do. Prints the minimum and the median
beside the targets, and writes the samples as JSON. `--keep` leaves grids and records in DIR, and uses them again while
they are of the same shape.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tabulate import tabulate

import peftbench
from peftbench.plan.grid import Planned
from peftbench.plan.next_runs import profiles
from peftbench.plan.prepare import Prepared
from peftbench.records import environment, record
from peftbench.records.record import ProfileRecord, RunRecord
from peftbench.records.spec import ProfileSpec, as_dict

REFERENCE = Path(__file__).parent.parent / "results/reference/quickstart"
METHODS = ("full", "lora", "qlora", "adapter", "prefix", "ia3", "dora", "bitfit", "pissa", "vera")
STEPS, EXAMPLES, ROWS = 200, 400, 1000  # EXAMPLES: with a stored prediction; ROWS: of a task's train file


class Shape(NamedTuple):
    """A grid: `methods` x `rates` configurations."""

    methods: int
    rates: int
    seeds: int
    tasks: int


GRIDS = {"small": Shape(10, 1, 5, 10), "large": Shape(5, 5, 25, 8)}  # 500 and 5,000 runs; as many tasks as GLUE has

# name: (arguments of peftbench, target in seconds; None: only to tell what part of another command it is)
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "--help": (["--help"], 0.5),
    "plan of 500 runs": (["plan", "small.yaml", "--results", "empty"], 2.0),
    "resume of 500 complete runs": (["run", "small.yaml", "--results", "small"], 5.0),
    "  its report alone": (["report", "small"], None),
    "report of 5,000 records": (["report", "large"], 20.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=counted, default=5)
    parser.add_argument("--keep", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/start.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or Path(temporary)).resolve()
        runs = {name: make(folder, name, shape) for name, shape in GRIDS.items()}
        rounds = [
            {name: measured(folder, command) for name, (command, _) in COMMANDS.items()}
            for _ in range(args.repeats + 1)
        ]
    rows = {name: summary([r[name] for r in rounds[1:]], target) for name, (_, target) in COMMANDS.items()}
    print(
        tabulate(
            [[n, *r["wall_seconds"].values(), r["cpu_seconds"]["min"], r["target_seconds"]] for n, r in rows.items()],
            ["command", "least, s", "median, s", "samples", "cpu, s", "target, s"],
            floatfmt=".2f",
        )
    )
    about = {"repeats": args.repeats, "runs": runs, "examples": EXAMPLES, "steps": STEPS}
    about["grids"] = {name: shape._asdict() for name, shape in GRIDS.items()}
    about["env"] = environment.facts("cpu", None)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(f"written: {args.out}")


def counted(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1 repeat is needed")
    return number


def measured(folder: Path, command: Sequence[str]) -> tuple[float, float]:
    """(wall, processor) seconds of one process and the processes that it waited for."""
    before, began = children_cpu_seconds(), time.perf_counter()
    printed = carry_out(folder, command)
    wall, cpu = time.perf_counter() - began, children_cpu_seconds() - before
    if command[0] == "run" and " 0 to run" not in printed:
        raise SystemExit(f"peftbench {' '.join(command)} had something to run\n{printed}")
    return wall, cpu


def carry_out(folder: Path, command: Sequence[str], python: str | Path = sys.executable, **environment: str) -> str:
    """Run a command of peftbench in a folder, and return what it printed. A command that fails ends the benchmark."""
    whole, env = [str(python), "-m", "peftbench", *command], {**os.environ, **environment}
    done = subprocess.run(whole, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"peftbench {' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def children_cpu_seconds() -> float:
    """Processor seconds of all processes that this one, and those that it started, have waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(samples: Sequence[tuple[float, float]], target: float | None) -> dict[str, Any]:
    wall, cpu = zip(*samples, strict=True)
    told = {
        k: {"min": min(v), "median": statistics.median(v), "samples": list(v)}
        for k, v in (("wall_seconds", wall), ("cpu_seconds", cpu))
    }
    return {**told, "target_seconds": target}


def make(folder: Path, name: str, shape: Shape) -> int:
    """An experiment file with its data, and finished records of all its runs and profile passes; returns the runs."""
    file, results, made = folder / f"{name}.yaml", folder / name, folder / f"{name}.made"
    here = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(shape.tasks):
        write_task(folder / f"task{i:02}.csv", random.Random(i))
    file.write_text(yaml.safe_dump(experiment(name, shape)))
    os.chdir(folder)  # a local task's files are named from there, as in the commands that are measured
    try:
        prepared = peftbench.plan(file).prepared
        facts = json.dumps([STEPS, EXAMPLES, *(p.spec.id for p in prepared.planned)])
        kept = results.is_dir() and made.is_file() and made.read_text() == facts
        if not kept:  # not there, of another shape or other data, or interrupted
            shutil.rmtree(results, ignore_errors=True)
            write_records(prepared, results)
            made.write_text(facts)
    finally:
        os.chdir(here)
    return len(prepared.planned)


def experiment(name: str, shape: Shape) -> dict[str, Any]:
    lrs = [1e-3 * 2**i for i in range(shape.rates)]
    return {
        "name": name,
        "backbone": "tiny-encoder",
        "tasks": [
            {"task": "local", "name": f"task{i:02}", "train": f"task{i:02}.csv", "text": "text", "label": "label"}
            for i in range(shape.tasks)
        ],
        "budget": {"trainable_params": 2_000, "tolerance": 0.25, "steps": STEPS, "seeds": shape.seeds},
        "methods": [{m: {"lr": lrs if shape.rates > 1 else lrs[0]}} for m in METHODS[: shape.methods]],
        "reference": "full lr=0.001" if shape.rates > 1 else "full",
    }


def write_task(path: Path, rng: random.Random) -> None:
    words = ["the", "a", "man", "dog", "house", "car", "old", "day", "time", "this", "one", "new", "big", "small"]
    lines = [f"{' '.join(rng.choices(words, k=rng.randint(6, 20)))},{rng.choice(['yes', 'no'])}\n" for _ in range(ROWS)]
    path.write_text("text,label\n" + "".join(lines))


def write_records(prepared: Prepared, results: Path) -> None:
    real = record.read_all(REFERENCE)
    run = next(r.raw() for r in real if isinstance(r, RunRecord) and r.spec.method.name == "lora")
    profile = next(r.raw() for r in real if isinstance(r, ProfileRecord))
    partial = results.with_name(f"{results.name}.part")  # whole or not there
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was interrupted
    made = [record.write(partial, run_body(p, prepared.experiment.name, run)) for p in prepared.planned]
    for spec in profiles(prepared.experiment, prepared.planned, [record.read(path) for path in made]):
        record.write(partial, profile_body(spec, prepared.experiment.name, profile))
    partial.rename(results)


def run_body(planned: Planned, name: str, pattern: Mapping[str, Any]) -> dict[str, Any]:
    """A finished run's body: the better the method and the task's luck, the higher the score."""
    spec, rng = planned.spec, random.Random(planned.spec.id)
    better = random.Random(f"{planned.label} {spec.task.name}").gauss(0.75, 0.05)
    labels = [rng.randint(0, 1) for _ in range(EXAMPLES)]
    values = [y if rng.random() < better else 1 - y for y in labels]
    right = sum(v == y for v, y in zip(values, labels, strict=True)) / EXAMPLES
    loss = pattern["curve"]["loss"]
    peak = int(pattern["memory"]["peak_bytes"] * random.Random(planned.label).uniform(0.8, 2))
    ids = [hashlib.sha256(f"{spec.task.name} {i}".encode()).hexdigest()[:16] for i in range(EXAMPLES)]
    return {
        **pattern,
        **asked(spec, name),
        "hyper": dict(spec.method.hyper),
        "curve": {
            **pattern["curve"],
            "loss": [loss[i * len(loss) // STEPS] * rng.uniform(0.8, 1.2) for i in range(STEPS)],
        },
        "memory": {**pattern["memory"], "peak_bytes": peak},
        "metrics": {
            "primary": "accuracy",
            "direction": "max",
            "majority": 0.52,
            "test": {"accuracy": right, "mcc": 2 * right - 1},
            "validation": {"accuracy": right + rng.gauss(0, 0.02)},
        },
        "parameters": {**pattern["parameters"], "trainable": planned.trainable, "added": planned.trainable},
        "predictions": {"ids": ids, "values": values, "labels": labels},
    }


def profile_body(spec: ProfileSpec, name: str, pattern: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for i, method in enumerate(spec.methods):
        rng = random.Random(f"{spec.id} {method.label}")
        row = pattern["rows"][i % len(pattern["rows"])]
        middle = rng.uniform(0.5, 1.5)
        ratio = {"median": middle, "iqr": 0.02, "low": middle - 0.01, "high": middle + 0.01, "n": 5}
        rows.append({**row, "label": method.label, "method": method.name, "task": spec.task.name, "ratio": ratio})
    return {**pattern, **asked(spec, name), "rows": rows}


def asked(spec: Any, name: str) -> dict[str, Any]:
    return {"spec": as_dict(spec), "spec_id": spec.id, "slug": spec.slug, "experiment": name}


if __name__ == "__main__":
    main()
