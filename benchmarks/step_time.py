"""Our training step against Hugging Face peft's: same weights, same batch, same work, interleaved in one run.

    python benchmarks/step_time.py [--backbone minilm-l6] [--device auto] [--batch 32] [--length 64] [--rounds 15]
                                   [--out results/benchmarks/step_time.json]

Prints a table of ratios (ours / peft's, taken within rounds: below 1 is faster) and writes the samples as JSON. Run it
when nothing else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from tabulate import tabulate
from torch import Tensor, nn

from peftbench import devices, environment, method
from peftbench.backbones import source
from peftbench.backbones.load import load
from peftbench.edit import Edit
from peftbench.measure import timing

LINEAR = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "lora, q v": ("lora", {}, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])),
    "lora, all linear": ("lora", {"roles": "q k v o up down"}, LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR)),
    "dora, q v": ("dora", {}, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], use_dora=True)),
    "ia3": (
        "ia3",
        {},
        IA3Config(
            target_modules=["key", "value", "layer.*.output.dense"],
            feedforward_modules=["layer.*.output.dense"],
        ),
    ),
    "prefix, 10": ("prefix", {}, PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=10)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/step_time.json"))
    args = parser.parse_args()
    device = devices.pick(args.device)
    batch = _batch(args.batch, args.length, device)
    rows = {}
    for name, (ours, hyper, theirs) in CASES.items():
        actions = {
            "ours": _ours(args.backbone, ours, hyper, batch, device),
            "peft": _peft(args.backbone, theirs, batch, device),
        }
        samples = timing.interleaved(actions, args.rounds, 3, lambda: timing.synchronise(device))
        rows[name] = {
            "ours": timing.summary(samples["ours"]),
            "peft": timing.summary(samples["peft"]),
            "ratio": timing.ratio(samples["ours"], samples["peft"]),
        }
    table = [
        [n, 1e3 * r["ours"]["median"], 1e3 * r["peft"]["median"], r["ratio"]["median"], r["ratio"]["iqr"]]
        for n, r in rows.items()
    ]
    print(
        tabulate(
            table, ["method", "ours, ms", "peft, ms", "ours / peft", "iqr"], floatfmt=("", ".1f", ".1f", ".3f", ".3f")
        )
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"backbone": args.backbone, "batch": args.batch, "length": args.length, "rounds": args.rounds}
    about["env"] = environment.facts(str(device), torch.get_num_threads())
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(f"written: {args.out}")


def _batch(size: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Random tokens, every second row padded by a quarter."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 250, (size, length), generator=g)
    mask = torch.ones_like(ids)
    mask[::2, length - length // 4 :] = 0
    labels = torch.randint(0, 2, (size,), generator=g)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


def _ours(
    model: str, name: str, hyper: dict[str, Any], batch: dict[str, Tensor], device: torch.device
) -> Callable[[], None]:
    backbone = load(model, "classification", 2, device=device)
    edit = Edit(backbone)
    method.make(method.find(name), hyper).attach(edit)
    for p in backbone.head_parameters():
        p.requires_grad_(True)
    return _step(backbone.net, batch)


def _peft(model: str, config: Any, batch: dict[str, Tensor], device: torch.device) -> Callable[[], None]:
    from transformers import AutoModelForSequenceClassification

    net = AutoModelForSequenceClassification.from_pretrained(source.locate(model), num_labels=2).to(device)
    head = [net.bert.pooler, net.classifier]
    net = get_peft_model(net, config)
    for module in head:
        module.requires_grad_(True)
    return _step(net, batch)


def _step(net: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """The same step for both: forward, cross-entropy, backward, fused AdamW over what trains."""
    net.train()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4, fused=True)
    inputs = {k: v for k, v in batch.items() if k != "labels"}

    def step() -> None:
        nn.functional.cross_entropy(net(**inputs).logits, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
