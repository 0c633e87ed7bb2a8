"""Peak memory of our training step against Hugging Face peft's: same weights, same batch, same optimizer, one tracker.

    python benchmarks/step_memory.py [--model minilm-l6 ...] [--dtype float32 ...] [--only "lora, q v" ...]
                                     [--device auto] [--out results/benchmarks/step_memory.json]

Every method that peft has too (benchmarks/cases.py), in float32 and in bfloat16: frozen weights in bfloat16, autocast,
what trains in float32, which is peft's default as well. The peak is the largest sum of live tensor bytes in the second
step, which has the optimizer's state from the first; both sides' parts at that moment stand beside it. Nothing here
depends on time or on what else runs, so one run is enough.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from cases import CASES
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from twins import Batch, Side, batch_for, build

from peftbench.backbones import devices
from peftbench.measure.memory import LiveTensors
from peftbench.records import environment

SHAPES = {"minilm-l6": (32, 64), "smollm2-135m": (4, 128)}  # rows, tokens
PARTS = ("weights", "trained", "gradients", "optimizer", "activations", "temporaries")
MIB = 2**20


def main() -> None:
    args = arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = devices.pick(args.device)
    rows = []
    for model in args.model or SHAPES:
        for dtype in args.dtype or ("float32", "bfloat16"):
            for name in args.only or CASES:
                rows.append(measured(name, model, dtype, device))
                print(line(rows[-1]), flush=True)
                gc.collect()
    print(f"\n{table(rows)}")
    about = {"peft": peft.__version__, "source": "live tensors of the second training step"}
    env = environment.facts(str(device), torch.get_num_threads())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"benchmark": "step_memory", "about": about, "env": env, "rows": rows}
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written: {args.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(SHAPES), help="default: both")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="default: both")
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/step_memory.json"))
    return parser.parse_args()


def measured(name: str, model: str, dtype: str, device: torch.device) -> dict[str, Any]:
    """One row: both sides' `LiveTensors.record()`, and the ratio of their peaks."""
    twins = build(CASES[name], model, dtype, device)
    batch = batch_for(twins.backbone, *SHAPES[model])
    row: dict[str, Any] = {"case": name, "model": model, "dtype": dtype, "shape": list(batch["input_ids"].shape)}
    for side, who in ((twins.ours, "ours"), (twins.theirs, "peft")):
        side.stepper(batch)()
        row[who] = second_step(side, batch)
    return {**row, "ratio": row["ours"]["peak_bytes"] / row["peft"]["peak_bytes"]}


def second_step(side: Side, batch: Batch) -> dict[str, Any]:
    """The record of one training step; its groups are the tensors that train, and the others."""
    optimizer = side.optimizer
    if optimizer is None:
        raise ValueError("nothing trains here, so there is no training step to measure")
    optimizer.state.update(averages(side.net))
    trained = [p for p in side.net.parameters() if p.requires_grad]
    with LiveTensors({"trained": trained, "weights": frozen(side.net)}, optimizer) as live:
        loss = side.loss(batch)
        live.phase("backward")
        loss.backward()
        del loss
        live.phase("optimizer")
        optimizer.step()
        side.after_step(2)
        optimizer.zero_grad(set_to_none=True)
    return live.record()


def averages(net: nn.Module) -> dict[Any, Any]:
    """peft keeps AdaLoRA's moving averages neither in the network nor in the optimizer's state, where ours are."""
    allocator = getattr(getattr(net, "base_model", None), "rankallocator", None)
    return {} if allocator is None else {allocator: [allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc]}


def frozen(net: nn.Module) -> list[Tensor]:
    """What does not train; bitsandbytes keeps a quantised weight's statistics outside parameters and buffers."""
    still: list[Tensor] = [*(p for p in net.parameters() if not p.requires_grad), *net.buffers()]
    states = [vars(p.quant_state) for p in still if getattr(p, "quant_state", None) is not None]
    states += [vars(state["state2"]) for state in states if state.get("state2") is not None]
    return [*still, *(leaf for leaf in tree_leaves(states) if isinstance(leaf, Tensor))]


def line(row: Mapping[str, Any]) -> str:
    ours, theirs = (row[who]["peak_bytes"] / MIB for who in ("ours", "peft"))
    return (
        f"{row['model']}, {row['dtype']}, {row['case']}: {ours:.1f} MiB against {theirs:.1f} MiB, {row['ratio']:.3f}\n"
        f"    ours {parts(row['ours'])}\n    peft {parts(row['peft'])}"
    )


def parts(record: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{part} {record['at_peak'][part] / MIB:.1f}" for part in PARTS)
    return f"in {record['peak_phase']}: {shown}"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    cells = []
    for row in rows:
        ours, theirs = row["ours"], row["peft"]
        both = [f"{ours['at_peak'][part] / MIB:.1f} / {theirs['at_peak'][part] / MIB:.1f}" for part in PARTS]
        peaks = [f"{side['peak_bytes'] / MIB:.1f}" for side in (ours, theirs)]
        cells.append([row["model"], row["dtype"], row["case"], *peaks, f"{row['ratio']:.3f}", *both])
    header = ["model", "dtype", "method", "ours, MiB", "peft, MiB", "ours / peft", *PARTS]
    return tabulate(cells, header, disable_numparse=True, colalign=("left",) * 3 + ("right",) * 9)


if __name__ == "__main__":
    main()
