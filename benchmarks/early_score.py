"""Why the two sides of grid.py stand apart early on: batches put together by length, and the first step's rate.

    python benchmarks/early_score.py --data-dir GLUE [--steps 60] [--seeds 3] [--methods lora ia3]

This suite's STS-B runs of grid.py three times: as they are; with batches of shuffled examples, as the Trainer draws
them; and with the Trainer's schedule as well, whose first step has the rate zero. Prints mean and standard deviation of
Spearman's correlation on GLUE's dev split, and writes them as JSON. Does not depend on time or on what else runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from grid import HEAD_RATE, HYPER, RATES, VALIDATION_ROWS
from tabulate import tabulate

import peftbench
from peftbench.records import environment
from peftbench.records.spec import TrainSpec
from peftbench.run import train
from peftbench.run.session import Session
from peftbench.tasks import batches

TASK = "glue/stsb"
VARIANTS = {
    "as it is": (),
    "shuffled batches": ("order",),
    "shuffled batches, the Trainer's schedule": ("order", "rate"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder of GLUE's official files")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=["lora", "ia3"])
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/early_score.json"))
    args = parser.parse_args()
    session = Session(device="cpu", data_dir=args.data_dir, shared=True)
    rows = []
    for variant, changed in VARIANTS.items():
        with like_the_trainer(changed):
            for method, values in scores(args, session).items():
                rows.append({"variant": variant, "method": method, "values": values})
                print(f"{variant}, {method}: {', '.join(f'{v:.3f}' for v in values)}", flush=True)
    about = {"model": "minilm-l6", "task": TASK, "steps": args.steps, "batch": 16, "length": 128, "seeds": args.seeds}
    told = {"benchmark": "early_score", "about": about, "env": environment.facts("cpu", None), "rows": rows}
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"{table(rows)}\nwritten: {args.out}")


@contextmanager
def like_the_trainer(changed: Sequence[str]) -> Iterator[None]:
    """What is named in `changed` as Hugging Face's Trainer has it, within the block."""
    with ExitStack() as stack:
        if "order" in changed:
            stack.enter_context(mock.patch.object(batches, "order", shuffled))
        if "rate" in changed:
            stack.enter_context(mock.patch.object(train, "rate", rate))
        yield


def shuffled(lengths: Sequence[int], batch_size: int, count: int, seed: int) -> list[Any]:
    draw = np.random.Generator(np.random.PCG64(seed))
    epochs = 1 + count * batch_size // len(lengths)
    stream = np.concatenate([draw.permutation(len(lengths)) for _ in range(epochs)])
    return [stream[i * batch_size : (i + 1) * batch_size] for i in range(count)]


def rate(done: int, spec: TrainSpec) -> float:
    """transformers' linear schedule with warm-up (get_linear_schedule_with_warmup)."""
    warmup = round(spec.warmup * spec.steps)
    return done / warmup if done < warmup else (spec.steps - done) / (spec.steps - warmup)


def scores(args: argparse.Namespace, session: Session) -> dict[str, list[float]]:
    """By method, Spearman's correlation of each seed."""
    asked = {
        "name": "early_score",
        "backbone": "minilm-l6",
        "tasks": [{"task": TASK, "limit_validation": VALIDATION_ROWS}],
        "budget": {"steps": args.steps, "batch_size": 16, "max_length": 128, "seeds": args.seeds},
        "train": {"warmup": 0.1, "decay": "linear", "head_lr": HEAD_RATE},
        "methods": [{name: {"lr": RATES[name], **HYPER.get(name, {})}} for name in args.methods],
        "reference": args.methods[0],
        "profile": False,
    }
    with tempfile.TemporaryDirectory(prefix="peftbench-early-") as scratch:
        file = Path(scratch) / "early_score.yaml"
        file.write_text(yaml.safe_dump(asked))
        planned = peftbench.plan(file, data_dir=args.data_dir).prepared.planned
    found: dict[str, list[float]] = {name: [] for name in args.methods}
    for p in planned:
        body = session.execute(p.spec)
        found[p.spec.method.name].append(body["metrics"]["test"]["spearman"])
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    shown = [
        [row["variant"], row["method"], f"{statistics.mean(row['values']):.3f} ± {statistics.stdev(row['values']):.3f}"]
        for row in rows
    ]
    return tabulate(shown, ["batches and schedule", "method", "Spearman"], disable_numparse=True)


if __name__ == "__main__":
    main()
