"""The directions that a layer's update reads, stored for comparison between runs (LoRA, arXiv:2106.09685, section 7.2).

The paper compares the right-singular vectors of the trained matrices A of two runs. A starts at random and, in short
training, keeps much of its start; the update B A starts at zero. Both are therefore stored.
`report/papers/_similarity.py` compares two runs.
"""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.measure.probes import TrainedNetwork
from peftbench.measure.probes.weight_changes import weight_changes

KEPT = 16  # directions per matrix; more would make records of several megabytes


def measure(trained: TrainedNetwork) -> dict[str, Any]:
    """Return {"sites": [{"role", "layer", "path", "width", "update", "A"}]}; see `directions`.

    "A" is null if none trains.
    """
    sites = []
    for c in weight_changes(trained.edit):
        A = getattr(c.adapter, "A", None)
        if isinstance(A, nn.Parameter) and A.requires_grad:
            down = directions(A.detach().double().cpu())
        else:
            down = None
        sites.append({**c.place, "width": c.after.shape[1], "update": directions(c.after - c.before), "A": down})
    return {"sites": sites}


def directions(matrix: Tensor) -> dict[str, Any]:
    """Return the largest singular values and their right-singular vectors of a matrix (any, in), at most `KEPT`.

    Directions with a singular value below 1e-8 of the largest are left out.
    """
    _, singular, rows = torch.linalg.svd(matrix, full_matrices=False)
    count = min(KEPT, int((singular > 1e-8 * singular[0]).sum()))
    stored = rows[:count].to(torch.float16).contiguous().numpy()
    text = base64.b64encode(stored.astype("<f2").tobytes()).decode("ascii")
    return {"singular": [float(f"{s:.6g}") for s in singular[:count].tolist()], "vectors": text}
