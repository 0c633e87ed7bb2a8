"""The rank of each layer's final update (AdaLoRA, arXiv:2303.10512, figure 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftbench.measure.probes import TrainedNetwork
from peftbench.measure.probes.weight_changes import weight_changes

TOLERANCE = 1e-8  # relative to the largest singular value: far above float64 rounding, far below trained values


def measure(trained: TrainedNetwork) -> dict[str, Any]:
    """Return {"sites": [{"role", "layer", "path", "rank"}]} for every linear layer that the method changes."""
    return {"sites": [{**c.place, "rank": rank(c.after - c.before)} for c in weight_changes(trained.edit)]}


def rank(update: Tensor) -> int:  # (out, in)
    """Return the rank of an update (out, in): its singular values above `TOLERANCE` of the largest."""
    singular = torch.linalg.svdvals(update)
    return int((singular > TOLERANCE * singular[0]).sum()) if singular[0] > 0 else 0
