"""How far training moved each weight in magnitude and in direction (DoRA, arXiv:2402.09353, section 3.2).

Equation 3:  dM = sum_n |m'_n - m_n| / k,            m_n = ||w_n||
Equation 4:  dD = sum_n (1 - cos(w'_n, w_n)) / k

over the k vectors w_n (pretrained) and w'_n (trained) of a weight. The paper's are the columns of its W (in, out); with
W as (out, in) they are the rows, one an output, as in methods/dora.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from peftbench.measure.probes import Trained
from peftbench.measure.probes._changes import changes


def measure(trained: Trained) -> dict[str, Any]:
    """{"sites": [{"role", "layer", "path", "dM", "dD"}]}, of every linear layer that the method changes."""
    return {"sites": [{**c.place, **decompose(c.before, c.after)} for c in changes(trained.edit)]}


def decompose(before: Tensor, after: Tensor) -> dict[str, float]:  # both (out, in)
    dM = (after.norm(dim=1) - before.norm(dim=1)).abs().mean()
    # 1 - cos is half the squared distance of the unit vectors: where both are near, nothing cancels
    apart = (F.normalize(after, dim=1) - F.normalize(before, dim=1)).square().sum(1)
    return {"dM": float(f"{dM:.7g}"), "dD": float(f"{apart.mean() / 2:.7g}")}  # seven digits: records stay small
