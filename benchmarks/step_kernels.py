"""What a step of LoRA and of DoRA on all linear layers spends its time on, by kernel, beside the frozen network's.

    python benchmarks/step_kernels.py [--model minilm-l6] [--batch 32] [--length 64] [--threads 2]
                                      [--out results/benchmarks/step_kernels.json]

*The floor* is the frozen network with its head, as in step_time.py. The profiler's own cost is in the times, so shares
are to be read, not sums. Prints a table and writes JSON. Run it when nothing else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from cases import CASES
from step_dropout import kernels
from step_time import keep_memory
from tabulate import tabulate
from twins import batch_for, build, floor

from peftbench.backbones.load import load
from peftbench.measure import background_load
from peftbench.records import environment

FLOOR, METHODS = "frozen network", ("lora, all linear", "dora, all linear")
WARMUP = 5  # steps


def main() -> None:
    keep_memory()
    transformers.logging.set_verbosity_error()
    args = arguments()
    torch.set_num_threads(args.threads)
    watch = background_load.LoadMonitor()
    told = {
        "benchmark": "step_kernels",
        "about": {"model": args.model, "batch": args.batch, "length": args.length, "dtype": "float32"},
        "rows": measured(args),
        "env": environment.facts("cpu", args.threads),
        "others_cpu_share": watch.share(),
    }
    print(table(told["rows"]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written: {args.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--batch", type=int, default=32, help="rows")
    parser.add_argument("--length", type=int, default=64, help="tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/step_kernels.json"))
    return parser.parse_args()


def measured(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The kernels of each side, the longest first."""
    device = torch.device("cpu")
    batch = batch_for(load(args.model, "classification", 2), args.batch, args.length)
    sides = {FLOOR: floor(CASES[METHODS[0]], args.model, "float32", device)}
    sides |= {name: build(CASES[name], args.model, "float32", device).ours for name in METHODS}
    rows = {}
    for name, side in sides.items():
        step = side.stepper(batch)
        for _ in range(WARMUP):
            step()
        rows[name] = kernels(step)
    return rows


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Milliseconds a step of every kernel, side by side."""
    names = list(dict.fromkeys(k["name"] for side in rows.values() for k in side))
    cells = {side: {k["name"]: f"{k['ms']:.1f} ({k['share']:.0%})" for k in found} for side, found in rows.items()}
    lines = [[name, *(cells[side].get(name, "") for side in rows)] for name in names]
    return tabulate(lines, ["kernel, ms a step (share)", *rows], disable_numparse=True)


if __name__ == "__main__":
    main()
