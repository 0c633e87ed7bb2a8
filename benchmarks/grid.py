"""The wall time of a grid: by this suite in one command, and by one Trainer + peft script a run, as users do today.

    python benchmarks/grid.py --data-dir GLUE [--steps 60] [--batch 16] [--length 128] [--seeds 2] [--repeats 1]

RTE and STS-B by four methods with two seeds: `python -m peftbench run` with two workers, and sixteen times
`benchmarks/trainer_script.py`. Both include all that a user waits for: interpreters, imports, loading, tokenising,
training, evaluation of GLUE's dev split, saving; the suite its report as well. Steps, batch size, rates, schedule,
length and sizes are the same. Neither may use a network, and both begin without tokenised data. Prints a table and
writes JSON. Run it when nothing else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import t as student
from tabulate import tabulate

from peftbench import cache
from peftbench.backbones import source
from peftbench.measure import background_load, timing
from peftbench.records import environment, record
from peftbench.records.record import RunRecord
from peftbench.run import executors

SCRIPT = Path(__file__).with_name("trainer_script.py")
RATES = {"lora": 2e-3, "dora": 2e-3, "ia3": 2e-2, "prefix": 5e-2}
HYPER = {"prefix": {"std": 1.0}}  # as peft draws it
TASKS = ("glue/rte", "glue/stsb")
HEAD_RATE = 2e-3
VALIDATION_ROWS = 32  # the suite reads a validation split beside the dev split, the scripts do not: next to none of it
CACHED = ("embedded", "wheels", "answers")  # what a user has after the first run ever; tokenised data is not in it

Scores = dict[tuple[str, str], list[float]]  # (task, method) -> one value a seed


def main() -> None:
    args = arguments()
    watch = background_load.LoadMonitor()
    seconds: dict[str, list[float]] = {"ours": [], "peft": []}
    scripts: list[dict[str, Any]] = []
    scores: dict[str, Scores] = {}
    warm_up()
    for number in range(args.repeats):
        with tempfile.TemporaryDirectory(prefix="peftbench-grid-") as scratch:
            for side in ("ours", "peft") if number % 2 == 0 else ("peft", "ours"):
                if side == "ours":
                    spent, scores[side] = by_the_suite(args, Path(scratch))
                else:
                    spent, scores[side], scripts = by_scripts(args, Path(scratch))
                seconds[side].append(spent)
                print(f"{side}, repeat {number + 1}: {spent:.1f} s", flush=True)
    told = {
        "benchmark": "grid",
        "about": about(args),
        "env": environment.facts(args.device, args.threads),
        "others_cpu_share": watch.share(),
        "seconds": {side: timing.summary(found) for side, found in seconds.items()},
        "ratio": timing.ratio(seconds["ours"], seconds["peft"]),
        "scripts": scripts,
        "quality": quality(scores["ours"], scores["peft"]),
    }
    print(table(told))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written: {args.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder of GLUE's official files")
    parser.add_argument("--model", default="minilm-l6", help="an embedded BERT, or a directory with one")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--jobs", type=int, default=2, help="the suite's workers; the cores are divided among them")
    parser.add_argument("--threads", type=int, default=executors.cores(), help="of each script")
    parser.add_argument("--repeats", type=int, default=1, help="of the whole, the two sides in turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/grid.json"))
    return parser.parse_args()


def about(args: argparse.Namespace) -> dict[str, Any]:
    kept = ("steps", "batch", "length", "seeds", "methods", "tasks", "jobs", "threads", "repeats", "device")
    named = {
        "model": Path(args.model).name,
        "peft": version("peft"),
        "suite_threads": max(1, executors.cores() // args.jobs),
    }
    return {**named, **{key: getattr(args, key) for key in kept}}


def experiment(args: argparse.Namespace) -> dict[str, Any]:
    """The experiment file; no profile pass, as the scripts have none."""
    return {
        "name": "grid",
        "backbone": args.model,
        "tasks": [{"task": task, "limit_validation": VALIDATION_ROWS} for task in args.tasks],
        "budget": {"steps": args.steps, "batch_size": args.batch, "max_length": args.length, "seeds": args.seeds},
        "train": {"warmup": 0.1, "decay": "linear", "head_lr": HEAD_RATE},
        "methods": [{name: {"lr": RATES[name], **HYPER.get(name, {})}} for name in args.methods],
        "reference": args.methods[0],
        "profile": False,
        "save_adapters": True,
    }


def by_the_suite(args: argparse.Namespace, scratch: Path) -> tuple[float, Scores]:
    """Seconds of the one command, and its records' scores on the dev split."""
    file, results, own = scratch / "grid.yaml", scratch / "results", scratch / "cache"
    file.write_text(yaml.safe_dump(experiment(args)))
    own.mkdir()
    for name in CACHED:
        if (cache.root() / name).exists():
            (own / name).symlink_to(cache.root() / name)
    command = [sys.executable, "-m", "peftbench", "run", str(file), "--results", str(results), "--jobs", str(args.jobs)]
    command += ["--data-dir", str(args.data_dir), "--device", args.device]
    spent = timed(command, scratch / "suite.log", {"PEFTBENCH_CACHE": str(own)}, threads=None)
    scores: Scores = defaultdict(list)
    for kept in record.read_all(results):
        assert isinstance(kept, RunRecord)
        assert kept.body.stopped_at == args.steps, f"{kept.path.name}: {kept.body.stopped_at} steps"
        value = kept.metrics.test[kept.metrics.primary]
        scores[kept.spec.task.name, kept.spec.method.name].append(value)
    return spent, check(scores, args)


def by_scripts(args: argparse.Namespace, scratch: Path) -> tuple[float, Scores, list[dict[str, Any]]]:
    """Seconds of all scripts, one after the other; their scores, and each one's seconds."""
    model = source.locate(args.model)
    scores: Scores = defaultdict(list)
    each = []
    for task in args.tasks:
        for method in args.methods:
            for seed in range(args.seeds):
                out = scratch / f"{task.replace('/', '-')}-{method}-{seed}"
                given = {"model": model, "data": args.data_dir, "task": task, "method": method, "seed": seed}
                given |= {"steps": args.steps, "batch": args.batch, "length": args.length, "lr": RATES[method]}
                given |= {"head-lr": HEAD_RATE, "device": args.device, "out": out}
                command = [sys.executable, str(SCRIPT), *(f"--{key}={value}" for key, value in given.items())]
                own = {"HF_DATASETS_CACHE": str(scratch / "datasets")}
                spent = timed(command, scratch / f"{out.name}.log", own, args.threads)
                found = json.loads((out / "scores.json").read_text())
                assert found["steps"] == args.steps, f"{out.name}: {found['steps']} steps"
                scores[task, method].append(found["value"])
                each.append({"task": task, "method": method, "seed": seed, "seconds": spent})
    return sum(row["seconds"] for row in each), check(scores, args), each


def timed(command: Sequence[str], log: Path, own: Mapping[str, str], threads: int | None) -> float:
    """Seconds of a process; what it prints goes to `log`, whose end is told where it fails."""
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env |= {"HF_HUB_OFFLINE": "1", **own} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with log.open("w") as sink:
        started = time.perf_counter()
        done = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, env=env)
        spent = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{log.read_text()[-3000:]}")
    return spent


def warm_up() -> None:
    """Read both sides' libraries once, so that neither pays for the disk, and the facts that the suite keeps."""
    modules = "torch, transformers, datasets, peft, scipy.stats, peftbench.run.session, peftbench.report.assemble"
    for command in (["-c", f"import {modules}"], ["-m", "peftbench", "methods"]):
        subprocess.run([sys.executable, *command], check=True, capture_output=True)


def check(scores: Scores, args: argparse.Namespace) -> Scores:
    asked = {(task, method): args.seeds for task in args.tasks for method in args.methods}
    found = {key: len(values) for key, values in scores.items()}
    if found != asked:
        raise SystemExit(f"not the grid that was asked for: {found} instead of {asked}")
    return dict(scores)


def quality(ours: Scores, theirs: Scores) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds by task and method; then, by task, the difference over all methods.

    Its 95 % interval is Student's, with one variance for all methods and both sides; None with a single seed.
    """
    rows: list[dict[str, Any]] = []
    for task in dict.fromkeys(task for task, _ in ours):
        methods = [m for t, m in ours if t == task]
        sides = {side: [found[task, m] for m in methods] for side, found in (("ours", ours), ("peft", theirs))}
        for i, method in enumerate(methods):
            row = {side: spread(values[i]) for side, values in sides.items()}
            rows.append({"task": task, "method": method, **row})
        means = {side: statistics.mean(map(statistics.mean, values)) for side, values in sides.items()}
        difference = means["ours"] - means["peft"]
        half = half_width([*sides["ours"], *sides["peft"]])
        rows.append({"task": task, "method": None, **means, "difference": difference, "half_width": half})
    return rows


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def half_width(groups: Sequence[Sequence[float]]) -> float | None:
    """Of the 95 % interval of a difference between two means, each over half of the `groups`, all equally many."""
    n, count = len(groups[0]), len(groups)
    if n < 2:
        return None
    variance = statistics.mean(statistics.variance(g) for g in groups)
    return float(student.ppf(0.975, count * (n - 1))) * (variance * 4 / (n * count)) ** 0.5


def table(told: Mapping[str, Any]) -> str:
    """What is printed: quality by task and method, then the wall times."""
    rows = []
    for row in told["quality"]:
        if row["method"] is None:
            half = row["half_width"]
            verdict = "" if half is None else " same" if abs(row["difference"]) <= half else " differs"
            shown = f"{row['difference']:+.3f}" + ("" if half is None else f" ± {half:.3f}") + verdict
            rows.append([row["task"], "all", f"{row['ours']:.3f}", f"{row['peft']:.3f}", shown])
        else:
            sides = [row["ours"], row["peft"]]
            cells = [f"{s['mean']:.3f}" + ("" if s["sd"] is None else f" ± {s['sd']:.3f}") for s in sides]
            rows.append([row["task"], row["method"], *cells, ""])
    ours, peft = (told["seconds"][side]["median"] for side in ("ours", "peft"))
    lines = tabulate(rows, ["task", "method", "ours", "Trainer + peft", "difference"], disable_numparse=True)
    times = f"wall time: {ours:.1f} s against {peft:.1f} s, ratio {told['ratio']['median']:.3f}"
    others = told["others_cpu_share"]
    beside = "" if others is None else f"; other programs used {others:.0%} of the machine meanwhile"
    return f"{lines}\n{times}{beside}"


if __name__ == "__main__":
    main()
