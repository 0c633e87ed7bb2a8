"""The rank that each layer's update ended with (AdaLoRA, arXiv:2303.10512, figure 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftbench.measure.probes import Trained
from peftbench.measure.probes._changes import changes

TOLERANCE = 1e-8  # of the largest singular value: far above the rounding of float64, far below any trained one


def measure(trained: Trained) -> dict[str, Any]:
    """{"sites": [{"role", "layer", "path", "rank"}]}, of every linear layer that the method changes."""
    return {"sites": [{**c.place, "rank": rank(c.after - c.before)} for c in changes(trained.edit)]}


def rank(update: Tensor) -> int:  # (out, in)
    singular = torch.linalg.svdvals(update)
    return int((singular > TOLERANCE * singular[0]).sum()) if singular[0] > 0 else 0
