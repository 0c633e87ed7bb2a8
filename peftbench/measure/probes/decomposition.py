"""How far training moved each weight in magnitude and in direction (DoRA, arXiv:2402.09353, section 3.2).

Equation 3:  dM = sum_n |m'_n - m_n| / k,            m_n = ||w_n||
Equation 4:  dD = sum_n (1 - cos(w'_n, w_n)) / k

over the k vectors w_n (pretrained) and w'_n (trained) of a weight. The paper's vectors are the columns of its W (in,
out). With W as (out, in) they are the rows, one per output, as in methods/dora.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from peftbench.measure.probes import TrainedNetwork
from peftbench.measure.probes.weight_changes import weight_changes


def measure(trained: TrainedNetwork) -> dict[str, Any]:
    """Return {"sites": [{"role", "layer", "path", "dM", "dD"}]} for every linear layer that the method changes."""
    return {"sites": [{**c.place, **decompose(c.before, c.after)} for c in weight_changes(trained.edit)]}


def decompose(before: Tensor, after: Tensor) -> dict[str, float]:  # both (out, in)
    """Return dM and dD of a weight, from its pretrained and trained values, both (out, in)."""
    dM = (after.norm(dim=1) - before.norm(dim=1)).abs().mean()
    # 1 - cos is half the squared distance of the unit vectors, which avoids cancellation for nearly equal vectors.
    apart = (F.normalize(after, dim=1) - F.normalize(before, dim=1)).square().sum(1)
    return {"dM": float(f"{dM:.7g}"), "dD": float(f"{apart.mean() / 2:.7g}")}  # seven digits: records stay small
