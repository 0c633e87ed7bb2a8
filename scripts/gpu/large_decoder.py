"""Train steps of a large decoder with random weights: memory and time, beside what `estimate` predicts.

    python scripts/gpu/large_decoder.py [--device cuda] [--small] [--out FILE.json]

The network is made from its configuration, so that nothing is downloaded. Each row is one method: tracked bytes, the
allocator's bytes, the predicted bytes, seconds of a step and floating-point operations a second. The last row asks for
too large a batch, and shows that running out of memory is recognised and leaves the device as usable as before.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from peftbench.backbones import devices
from peftbench.backbones.in_memory import wrap
from peftbench.backbones.networks import DTYPES, prepare_for_training, random_network
from peftbench.errors import UserError
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.simulate.simulated_step import STEPS, batch_of, trainer_of
from peftbench.estimate.step_estimate import Setting, estimate
from peftbench.method.registry import find, make
from peftbench.records import environment
from peftbench.run.attempt import is_out_of_memory

LARGE = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
CASES: list[tuple[str, dict[str, Any], bool]] = [  # method, its hyperparameters, gradient checkpointing
    ("lora", {}, False),
    ("lora", {}, True),
    ("qlora", {}, False),
    ("qlora", {"backend": "bitsandbytes"}, False),
    ("full", {}, False),
    ("adapter", {}, False),
]
TIMED = 5  # steps, after the tracked one


def network(config: Any, device: torch.device, dtype: str, checkpointing: bool) -> Any:
    """Return the backbone with random weights, made on the device."""
    with torch.device(device):
        net = random_network("generation", config, DTYPES[dtype]).requires_grad_(False)
    prepare_for_training(net, checkpointing)
    return wrap(net)


def measure(config: Any, device: torch.device, setting: Setting, name: str, hyper: dict[str, Any]) -> dict[str, Any]:
    """Return what a few training steps of one method need."""
    backbone = network(config, device, setting.dtype, setting.checkpointing)
    trainer = trainer_of(backbone, make(find(name), hyper), setting.dtype)
    batch = devices.on_device(batch_of(backbone, setting.batch, setting.seq, padded=False), device)
    backbone.net.train()
    for done in (1, 2):
        trainer.step(batch, done / STEPS)
    _, memory = trainer.tracked_step(batch, 3 / STEPS)
    seconds = []
    for done in range(TIMED):
        devices.synchronise(device)
        started = time.perf_counter()
        trainer.step(batch, (4 + done) / STEPS)
        devices.synchronise(device)
        seconds.append(time.perf_counter() - started)
    trainer.edit.undo()
    return {
        "peak_bytes": memory["peak_bytes"],
        "allocated_bytes": memory["allocated_bytes"],
        "step_seconds": statistics.median(seconds),
        "attention": memory["attention"],
        "optimizer": memory["optimizer"],
    }


def row(config: Any, device: torch.device, folder: str, setting: Setting, name: str, hyper: dict[str, Any]) -> Any:
    """Return measured and predicted figures of one method; the reason if it cannot run here."""
    about = {"method": name, "hyper": hyper, "checkpointing": setting.checkpointing}
    try:
        measured = measure(config, device, setting, name, hyper)
    except (UserError, ImportError) as error:  # a backend that is not installed
        return {**about, "skipped": str(error)}
    try:
        predicted = estimate(ModelQuery(folder), name, hyper, setting)
    except UserError as error:  # kernels of others that fake tensors do not know
        return {**about, **measured, "not_predicted": str(error)}
    return {
        **about,
        **measured,
        "predicted_bytes": predicted.peak_bytes,
        "predicted_over_tracked": predicted.peak_bytes / measured["peak_bytes"],
        "flops": predicted.flops,
        "flops_per_second": predicted.flops / measured["step_seconds"],
    }


def out_of_memory(config: Any, device: torch.device, setting: Setting) -> dict[str, Any]:
    """Ask for too large a batch; then take a step of the usual size in the same process."""
    backbone = network(config, device, setting.dtype, False)
    trainer = trainer_of(backbone, make(find("lora"), {}), setting.dtype)
    ids = torch.zeros(1, 1, dtype=torch.long, device=device).expand(2**24, setting.seq)  # one number, seen often
    recognised = False
    try:
        if device.type == "cpu":
            torch.empty(2**50)  # a step might use all memory of the machine before it fails
        trainer.step({"input_ids": ids, "labels": ids}, 1 / STEPS)
    except Exception as error:
        recognised = is_out_of_memory(error)
        if not recognised:
            raise
    trainer.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    batch = devices.on_device(batch_of(backbone, setting.batch, setting.seq, padded=False), device)
    loss = float(trainer.step(batch, 2 / STEPS))
    if not recognised or not torch.isfinite(torch.tensor(loss)):
        raise SystemExit(f"out of memory: recognised {recognised}, the loss after it {loss}")
    return {"recognised": recognised, "loss_after_it": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="a network that a CPU trains in a second")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from transformers import LlamaConfig

    device, sizes = devices.pick(args.device), SMALL if args.small else LARGE
    heads = sizes["num_attention_heads"] // 4
    config = LlamaConfig(**sizes, num_key_value_heads=heads, vocab_size=1000 if args.small else 32000, pad_token_id=0)
    rows, batch, seq = [], *((2, 16) if args.small else (8, 1024))
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        for name, hyper, checkpointing in CASES:
            attention = None if device.type == "cpu" else "flash"
            setting = Setting(batch, seq, "bfloat16", checkpointing=checkpointing, attention=attention, padded=False)
            rows.append(row(config, device, folder, setting, name, hyper))
            print(json.dumps(rows[-1]), flush=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            write(args.out, device, sizes, batch, seq, rows)
        rows.append({"method": "lora", "out_of_memory": out_of_memory(config, device, setting)})
        write(args.out, device, sizes, batch, seq, rows)
        print(json.dumps(rows[-1]), flush=True)


def write(out: Path | None, device: torch.device, sizes: Any, batch: int, seq: int, rows: list[Any]) -> None:
    """Write what is known so far, after each row: a time limit may end the program."""
    if out is not None:
        told = {"env": environment.facts(str(device), None), "sizes": sizes, "batch": batch, "seq": seq, "rows": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
