"""Write docs/estimate-cpu.md: predicted peaks beside what the tracker measures on the real step.

python scripts/validate_estimate.py

Every pair is measured in a process of its own, so that the resident memory beside it is that step's alone. Shapes
whose weights are not at hand have random ones: memory does not depend on them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

PAGE = Path(__file__).resolve().parent.parent / "docs" / "estimate-cpu.md"
METHODS = ("full", "lora", "qlora", "dora", "adapter", "prefix", "ia3")
PAIRS = [("minilm-l6", name, 8, 64) for name in (*METHODS, "bitfit")]
PAIRS += [("smollm2-135m", name, 8, 64) for name in (*METHODS, "layernorm")]  # it has no biases
PAIRS += [("bert-large", "lora", 4, 64), ("gpt2-large", "lora", 1, 64), ("gpt2-large", "qlora", 1, 64)]
HEAD = """# Predicted and measured on a CPU

Made by `python scripts/validate_estimate.py`: the second training step, float32, the same attention kernel, optimiser
and mask (one text is shorter than the others) on both sides. *Predicted* comes from fake tensors, *measured* from the
tracker on the real step; a difference is in bytes. *Resident* is the high-water mark of the process in that step,
with the interpreter and its libraries in it. The shapes of bert-large and gpt2-large have random weights.

| model | method | batch | tokens | predicted, bytes | measured, bytes | difference | resident, bytes |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def measured(model: str, name: str, size: int, length: int) -> tuple[int, int | None]:
    """Peak of live tensors and of resident memory of the real second step."""
    from peftbench.backbones.configuration import natural_kind
    from peftbench.backbones.load import load, load_on_meta
    from peftbench.backbones.source import PRESETS
    from peftbench.estimate.count import origin
    from peftbench.estimate.simulate import fake_tensors, simulated_step
    from peftbench.method.catalogue import Catalogue
    from peftbench.method.registry import find, make

    kind = natural_kind(origin(model))
    torch.manual_seed(0)
    backbone = (
        load(model, kind, 2)
        if model in PRESETS
        else fake_tensors.replace_tensors(load_on_meta(origin(model), kind, 2), _drawn)
    )
    trainer = simulated_step.trainer_of(backbone, make(find(name), Catalogue().hyper(name, {})), "float32")
    batch = simulated_step.batch_of(backbone, size, length, padded=size > 1)
    backbone.net.train()
    trainer.step(batch, 1 / simulated_step.STEPS)
    record = trainer.tracked_step(batch, 2 / simulated_step.STEPS)[1]
    return record["peak_bytes"], record["resident_bytes"]


def _drawn(t: Tensor) -> Tensor:
    return torch.randn(t.shape) * 0.02 if t.is_floating_point() else torch.zeros(t.shape, dtype=t.dtype)


def row(model: str, name: str, size: int, length: int) -> list[Any]:
    from peftbench.estimate.count import ModelQuery
    from peftbench.estimate.step_estimate import Setting, estimate

    told = estimate(ModelQuery(model), name, {}, Setting(size, length)).peak_bytes
    there, resident = measured(model, name, size, length)
    shown = "—" if resident is None else f"{resident:,}"
    return [model, name, size, length, f"{told:,}", f"{there:,}", told - there, shown]


def main() -> None:
    lines = []
    for pair in PAIRS:
        command = [sys.executable, __file__, *map(str, pair)]
        lines.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(lines[-1], flush=True)
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 5:
        cells = row(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        print(tabulate([cells], tablefmt="pipe", disable_numparse=True).splitlines()[-1])
    else:
        main()
