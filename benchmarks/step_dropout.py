"""A training step with the network's own dropout: by our masks, by torch's, without any, and as Trainer + peft take it.

    python benchmarks/step_dropout.py [--model minilm-l6] [--method lora] [--batch 16] [--length 96] [--rounds 40]
                                      [--threads N] [--out results/benchmarks/step_dropout.json]

Each side is a process of its own and all take turns, one step each. Ours keep the memory that they free, as this
suite's workers do; the side of Trainer and peft gives it back, as a plain script does. LoRA at q and v, the same batch,
float32, AdamW. Beside the times stand the peak of live tensors of a step, the share of the machine's rate of matrix
products that the step's operations reach, measured in the same rounds, and the kernels that the time goes into. Prints
tables and writes JSON. Run it when nothing else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import trainer_script
import transformers
from tabulate import tabulate
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from twins import batch_for

from peftbench.backbones import source
from peftbench.backbones.load import load
from peftbench.estimate.simulate import simulated_step
from peftbench.measure import background_load, timing
from peftbench.measure.flops import FlopCounter
from peftbench.measure.memory import LiveTensors
from peftbench.method import registry
from peftbench.records import environment
from peftbench.records.spec import DROPOUT_VERSION
from peftbench.run.executors import pool

OURS = {"torch's masks": (None, 1), "own masks": (None, DROPOUT_VERSION), "no dropout": (0.0, 1)}  # (dropout, version)
PEFT, PRODUCT = "Trainer + peft", "matrix product"
SIDES = (*OURS, PEFT, PRODUCT)
SIZE = 2048  # rows and columns of the product that gives the machine's rate
WARMUP = 3  # rounds
PROFILED = 4  # steps
TOP = 12  # kernels by name; the rest is one row


@dataclass
class Measured:
    """What a side's process does on request: one step, and once what else is known of it."""

    step: Callable[[], None]
    facts: Callable[[], dict[str, Any]]


def main() -> None:
    args = arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.side:
        serve(args)
        return
    watch = background_load.LoadMonitor()
    processes = {side: start(side) for side in SIDES}
    try:
        actions = {side: partial(ask, process, "step") for side, process in processes.items()}
        samples = timing.interleaved(actions, args.rounds, WARMUP, lambda: None)
        facts = {side: ask(process, "facts") for side, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()  # whose time then counts as this benchmark's own
    told = {
        "benchmark": "step_dropout",
        "about": about(args),
        "env": environment.facts("cpu", args.threads),
        "others_cpu_share": watch.share(),
        "rows": {side: {**timing.summary(samples[side]), **facts[side]} for side in SIDES},
        "ratios": {
            f"own masks / {other}": timing.ratio(samples["own masks"], samples[other])
            for other in ("torch's masks", "no dropout", PEFT)
        },
        "rate_share": {
            side: timing.ratio([s * facts[side]["flops"] / facts[PRODUCT]["flops"] for s in samples[PRODUCT]], own)
            for side in OURS
            if (own := samples[side])
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"{tables(told)}\nwritten: {args.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6", help="an embedded BERT, or a directory with one")
    parser.add_argument("--method", choices=["lora", "dora", "ia3", "prefix"], default="lora")
    parser.add_argument("--batch", type=int, default=16, help="rows")
    parser.add_argument("--length", type=int, default=96, help="tokens")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # a process that serves one side
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/step_dropout.json"))
    return parser.parse_args()


def about(args: argparse.Namespace) -> dict[str, Any]:
    kept = {key: getattr(args, key) for key in ("method", "batch", "length", "rounds")}
    return {"model": Path(args.model).name, **kept, "dtype": "float32", "peft": peft.__version__}


def start(side: str) -> subprocess.Popen[str]:
    """Start the process of a side; the C library reads what becomes of freed memory when it starts."""
    own = {} if side == PEFT else {"GLIBC_TUNABLES": pool.KEEP_MEMORY}
    env = {**{k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}, **own}
    command = [sys.executable, *sys.argv, "--side", side]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], what: str) -> Any:
    """Have a side do something and wait until it has; return what it says."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"the process of a side ended with code {process.wait()}; its message is above")
    return json.loads(answer)


def serve(args: argparse.Namespace) -> None:
    """Do what the lines of standard input ask for, and answer each with a line of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    torch.set_num_threads(args.threads)
    made = {PEFT: trainer_and_peft, PRODUCT: product}.get(args.side, ours)(args)
    for line in sys.stdin:
        found = made.facts() if line.strip() == "facts" else made.step()
        print(json.dumps(found), file=answers, flush=True)


def ours(args: argparse.Namespace) -> Measured:
    """The suite's own step, with its tracker's peak and its counter's operations."""
    torch.manual_seed(0)
    dropout, version = OURS[args.side]
    backbone = load(args.model, "classification", 2, dropout=dropout, dropout_version=version)
    trainer = simulated_step.trainer_of(backbone, registry.make(registry.find(args.method), {}), "float32")
    backbone.net.train()
    batch = batch_for(backbone, args.batch, args.length)

    def step() -> None:
        trainer.step(batch, 0.5)

    def facts() -> dict[str, Any]:
        with FlopCounter() as flops:
            step()
        with LiveTensors(trainer.groups(), trainer.optimizer) as live:
            trainer.step(batch, 0.5, live)
        return {"flops": flops.total, "peak_bytes": live.record()["peak_bytes"], "kernels": kernels(step)}

    return Measured(step, facts)


def trainer_and_peft(args: argparse.Namespace) -> Measured:
    """The step of transformers' Trainer on a network of peft, as benchmarks/trainer_script.py has them."""
    torch.manual_seed(0)
    where = source.locate(args.model)
    build = partial(transformers.AutoModelForSequenceClassification.from_pretrained, ignore_mismatched_sizes=True)
    model = peft.get_peft_model(build(where, num_labels=2), trainer_script.config(args.method))
    folder = tempfile.TemporaryDirectory(prefix="peftbench-trainer-")  # the Trainer makes one, and writes nothing
    given = argparse.Namespace(
        out=folder.name, steps=10_000, batch=args.batch, seed=0, device="cpu", lr=1e-4, head_lr=1e-4
    )
    optimizer = trainer_script.optimizer(model, given)
    trainer = transformers.Trainer(model, trainer_script.settings(given), optimizers=(optimizer, None))
    trainer.current_gradient_accumulation_steps = 1  # which its loop sets
    backbone = load(args.model, "classification", 2)  # for the batch alone
    batch = batch_for(backbone, args.batch, args.length)
    del backbone
    trained = [p for p in model.parameters() if p.requires_grad]

    def step() -> None:
        trainer.training_step(model, dict(batch))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.zero_grad()

    def facts() -> dict[str, Any]:
        folder.cleanup()
        with LiveTensors({"trained": trained}, optimizer) as live:
            step()
        return {"peak_bytes": live.record()["peak_bytes"], "kernels": kernels(step)}

    return Measured(step, facts)


def product(args: argparse.Namespace) -> Measured:
    """One large product of two matrices, whose rate is the machine's."""
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)

    def step() -> None:
        F.linear(a, b)

    return Measured(step, lambda: {"flops": 2 * SIZE**3})


def kernels(step: Callable[[], None]) -> list[dict[str, Any]]:
    """What the processor's time of a step goes into, by operation: calls and milliseconds a step, and share."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            step()
    spent = {e.key: (e.self_cpu_time_total, e.count) for e in seen.key_averages() if e.self_cpu_time_total > 0}
    total = sum(us for us, _ in spent.values())
    ordered = sorted(spent.items(), key=lambda item: -item[1][0])
    rest = ordered[TOP:]
    rows = [*ordered[:TOP], ("all others", (sum(us for _, (us, _) in rest), sum(n for _, (_, n) in rest)))]
    return [
        {"name": name, "calls": round(n / PROFILED), "ms": us / PROFILED / 1e3, "share": us / total}
        for name, (us, n) in rows
    ]


def tables(told: dict[str, Any]) -> str:
    """The printed tables: times, ratios, and the kernels of our step."""
    rows = []
    for side, row in told["rows"].items():
        peak = f"{row['peak_bytes'] / 2**20:.1f}" if "peak_bytes" in row else ""
        share = told["rate_share"].get(side)
        rows.append([side, f"{1e3 * row['median']:.1f}", peak, f"{share['median']:.1%}" if share else ""])
    ratios = [[name, f"{r['median']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"] for name, r in told["ratios"].items()]
    spent = [
        [k["name"], k["calls"], f"{k['ms']:.1f}", f"{k['share']:.1%}"] for k in told["rows"]["own masks"]["kernels"]
    ]
    return "\n\n".join(
        [
            tabulate(rows, ["side", "step, ms", "peak, MiB", "of the machine's rate"], disable_numparse=True),
            tabulate(ratios, ["ratio", "median and 95 % interval"], disable_numparse=True),
            tabulate(spent, ["kernel of own masks", "calls", "ms", "share"], disable_numparse=True),
        ]
    )


if __name__ == "__main__":
    main()
