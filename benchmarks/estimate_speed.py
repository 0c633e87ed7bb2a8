"""How long the predictions of memory take: one step, the largest batch that fits, and every method.

    python benchmarks/estimate_speed.py [--repeats 3] [--out results/benchmarks/estimate_speed.json]

Each is the whole process that a user starts, on one thread, after an uncounted round that fills the file cache. Prints
the least and the median processor seconds beside the targets, as other work on the machine changes these less than the
seconds on the wall, and writes the samples as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from start import carry_out, children_cpu_seconds, counted, summary
from tabulate import tabulate

from peftbench.records import environment

STEP = ["--seq", "512", "--dtype", "bf16"]
# name: (arguments of peftbench, target in processor seconds)
COMMANDS: dict[str, tuple[list[str], float]] = {
    "a step of 70B": (["estimate", "llama-2-70b", "lora", *STEP], 10.0),
    "what fits into 80 GB of 70B": (
        ["estimate", "llama-2-70b", "qlora", "--fit", "80GB", "--checkpointing", *STEP],
        15.0,
    ),
    "every method on 8B": (["estimate", "llama-3-8b", "--all", *STEP], 30.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=counted, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/estimate_speed.json"))
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            {name: measured(Path(folder), command) for name, (command, _) in COMMANDS.items()}
            for _ in range(args.repeats + 1)
        ]
    rows = {name: summary([r[name] for r in rounds[1:]], target) for name, (_, target) in COMMANDS.items()}
    print(
        tabulate(
            [[n, r["cpu_seconds"]["min"], r["cpu_seconds"]["median"], r["wall_seconds"]["min"], r["target_seconds"]]
             for n, r in rows.items()],
            ["command", "least cpu, s", "median cpu, s", "least wall, s", "target, s"],
            floatfmt=".1f",
        )
    )  # fmt: skip
    about = {"repeats": args.repeats, "load": load, "commands": {name: c for name, (c, _) in COMMANDS.items()}}
    about["env"] = environment.facts("cpu", None)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(f"written: {args.out}")


def measured(folder: Path, command: Sequence[str]) -> tuple[float, float]:
    """(wall, processor) seconds of one process."""
    before, began = children_cpu_seconds(), time.perf_counter()
    carry_out(folder, command, OMP_NUM_THREADS="1")
    return time.perf_counter() - began, children_cpu_seconds() - before


if __name__ == "__main__":
    main()
