"""The directions that a layer's update reads (LoRA, arXiv:2106.09685, section 7.2), kept to be compared between runs.

The paper compares the right-singular vectors of the trained matrices A of two runs. A starts at random and, in short
training, keeps much of its start; the update B A starts at zero. So both are kept. Two runs are compared by
`report/papers/_similarity.py`.
"""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.measure.probes import Trained
from peftbench.measure.probes._changes import changes

KEPT = 16  # directions of a matrix; more would make records of megabytes


def measure(trained: Trained) -> dict[str, Any]:
    """{"sites": [{"role", "layer", "path", "width", "update", "A"}]}; see `directions`. "A": null if none trains."""
    sites = []
    for c in changes(trained.edit):
        A = getattr(c.adapter, "A", None)
        if isinstance(A, nn.Parameter) and A.requires_grad:
            down = directions(A.detach().double().cpu())
        else:
            down = None
        sites.append({**c.place, "width": c.after.shape[1], "update": directions(c.after - c.before), "A": down})
    return {"sites": sites}


def directions(matrix: Tensor) -> dict[str, Any]:
    """The singular values and right-singular vectors (rows) of a matrix (any, in), the largest first, KEPT at most.

    Directions without a singular value (below 1e-8 of the largest) are none.
    """
    _, singular, rows = torch.linalg.svd(matrix, full_matrices=False)
    count = min(KEPT, int((singular > 1e-8 * singular[0]).sum()))
    stored = rows[:count].to(torch.float16).contiguous().numpy()
    text = base64.b64encode(stored.astype("<f2").tobytes()).decode("ascii")
    return {"singular": [float(f"{s:.6g}") for s in singular[:count].tolist()], "vectors": text}
