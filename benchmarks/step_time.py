"""Our training step against Hugging Face peft's: same weights, same batch, same work, interleaved in one run.

    python benchmarks/step_time.py [--model minilm-l6] [--only "lora, q v"] [--dtype float32] [--batch 32] [--length 64]
                                   [--rounds 40] [--threads N] [--device auto] [--out results/benchmarks/FILE.json]

Every method that peft has too. Before a case is timed both networks get the same weights, and their outputs must agree.
A step is forward, loss, backward and fused AdamW over adapter and head; both sides, and for LoRA the frozen network
with the same backward pass as well, take turns. Prints ratios (ours / theirs, taken within rounds: below 1 is faster)
with a 95 % bootstrap interval, and writes the samples as JSON. Both sides keep the memory they free, as this suite's
workers do (pool.KEEP_MEMORY), unless GLIBC_TUNABLES is set already. Run it when nothing else runs on the machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from cases import CASES, Case
from tabulate import tabulate
from twins import batch_for, build, difference, floor

from peftbench.backbones import devices
from peftbench.measure import background_load, timing
from peftbench.records import environment
from peftbench.run.executors import pool

USUAL = {"smollm2-135m": (8, 128, 7)}  # rows, tokens, rounds; a step takes seconds there
OTHERWISE = (32, 64, 40)
WARMUP = 3  # rounds
AGREE = {"float32": 1e-4, "bfloat16": 0.1}  # largest difference of two logits over the largest logit
AGREE_DOUBLY = 1e-2  # doubly quantised: bitsandbytes rounds some absmax to another byte (tests/method/test_nf4.py)


def main() -> None:
    args = arguments()
    keep_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = devices.pick(args.device)
    watch = background_load.LoadMonitor()
    out = args.out or Path(f"results/benchmarks/step_time-{Path(args.model).name}-{args.dtype}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    for name in args.only or CASES:
        rows[name] = measured(name, CASES[name], args, device)
        print(line(name, rows[name]), flush=True)
        told = {
            "benchmark": "step_time",
            "about": about(args),
            "env": environment.facts(str(device), torch.get_num_threads()),
            "others_cpu_share": watch.share(),
            "rows": rows,
        }
        out.write_text(json.dumps(told, indent=1) + "\n")  # after each case: a long run that breaks off is not lost
        gc.collect()
    print(f"\n{table(told)}\nwritten: {out}")


def keep_memory() -> None:
    """Begin again with the setting, which the C library reads when a process starts."""
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": pool.KEEP_MEMORY})


def about(args: argparse.Namespace) -> dict[str, Any]:
    kept = {key: getattr(args, key) for key in ("batch", "length", "rounds", "dtype")}
    return {"model": Path(args.model).name, **kept, "peft": peft.__version__}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6", help="an embedded model, or a directory")
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--dtype", choices=list(AGREE), default="float32", help="of the weights that do not train")
    parser.add_argument("--batch", type=int, help="rows; 32, or 8 for smollm2-135m")
    parser.add_argument("--length", type=int, help="tokens in a row; 64, or 128 for smollm2-135m")
    parser.add_argument("--rounds", type=int, help="timed; 40, or 7 for smollm2-135m")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    usual = USUAL.get(args.model, OTHERWISE)
    for name, value in zip(("batch", "length", "rounds"), usual, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def measured(name: str, case: Case, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One case's row: that both sides agree, then their times."""
    twins = build(case, args.model, args.dtype, device)
    batch = batch_for(twins.backbone, args.batch, args.length)
    apart = difference(twins, batch, case)
    if not apart <= max(AGREE[args.dtype], AGREE_DOUBLY if case.quantised else 0):
        raise SystemExit(f"{name}: the outputs of ours and of peft differ by {apart:.1e}; this is not the same work")
    actions = {"ours": twins.ours.stepper(batch), "peft": twins.theirs.stepper(batch)}
    if case.floor:
        actions["floor"] = floor(case, args.model, args.dtype, device).stepper(batch)
    if case.lora:
        actions["lora"] = build(CASES[case.lora], args.model, args.dtype, device).ours.stepper(batch)
    warmup = min(WARMUP, args.rounds)
    samples = timing.interleaved(actions, args.rounds, warmup, lambda: devices.synchronise(device))
    row: dict[str, Any] = {side: timing.summary(taken) for side, taken in samples.items()}
    row["difference"] = apart
    row["ratio"] = timing.ratio(samples["ours"], samples["peft"])
    if case.floor:
        row["above_floor"] = timing.ratio(samples["ours"], samples["floor"])
        row["peft_above_floor"] = timing.ratio(samples["peft"], samples["floor"])
    if case.lora:
        row["to_lora"] = timing.ratio(samples["ours"], samples["lora"])
    return row


def cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """The row of the printed table."""
    above = row.get("above_floor")
    floors = ["", ""] if above is None else [f"{1e3 * row['floor']['median']:.1f}", f"{above['median'] - 1:+.1%}"]
    times = [f"{1e3 * row[side]['median']:.1f}" for side in ("ours", "peft")]
    return [name, *times, with_interval(row["ratio"]), *floors, f"{row['difference']:.0e}"]


def with_interval(ratio: Mapping[str, Any]) -> str:
    low, high = ratio["low"], ratio["high"]
    return f"{ratio['median']:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def line(name: str, row: Mapping[str, Any]) -> str:
    _, ours, theirs, ratio, _, above, apart = cells(name, row)
    beside = f", {above} above the floor" if above else ""
    return f"{name}: {ours} ms against {theirs} ms, {ratio}{beside}; outputs differ by {apart}"


def table(told: Mapping[str, Any]) -> str:
    header = ["method", "ours, ms", "peft, ms", "ours / peft", "floor, ms", "above it", "outputs differ by"]
    rows = [cells(name, row) for name, row in told["rows"].items()]
    others = told["others_cpu_share"]
    beside = "" if others is None else f"\nother programs used {others:.0%} of the machine meanwhile"
    return tabulate(rows, header, disable_numparse=True, colalign=("left", *["right"] * 6)) + beside


if __name__ == "__main__":
    main()
