"""Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning (Lian et al. 2022, arXiv:2210.08823).

Section 3.2: behind an operation, every feature is scaled and shifted: y = gamma * x + beta. Behind a linear layer both
fold into it: W' = gamma * W, b' = gamma * b + beta. (The paper does so behind the norms, too.)

A method outside the project, compared with what ran before, in minutes:

    python -m peftbench run experiments/quickstart.yaml --plugin examples/ssf.py --only method=ssf \\
        --against results/reference/quickstart
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from peftbench.backbones.modules import SiteLinear
from peftbench.edit import Adapter, Edit
from peftbench.method import Method, register
from peftbench.sites import Sites


class ScaledAndShifted(Adapter):
    """gamma * (W x + b) + beta."""

    def __init__(self, base: SiteLinear) -> None:
        super().__init__(base)
        W = base.dense_weight()
        self.gamma = nn.Parameter(torch.ones(base.out_features, device=W.device))  # (out,)
        self.beta = nn.Parameter(torch.zeros(base.out_features, device=W.device))  # (out,)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        y = self.base(x)
        return self.gamma.to(y.dtype) * y + self.beta.to(y.dtype)

    def folded(self) -> SiteLinear:
        W, b = self.base.dense_weight(), self.base.bias
        shift = self.beta if b is None else self.gamma * b + self.beta
        return SiteLinear.of((self.gamma.unsqueeze(1) * W).to(W.dtype), shift.to(W.dtype))


@register
@dataclass(frozen=True)
class SSF(Method):
    """A scale and a shift for every output of the linear layers: starts as the identity and merges into them."""

    name = "ssf"
    paper = "arXiv:2210.08823"
    formula = "y = gamma * (W x + b) + beta"
    lr = 1e-2
    lr_source = "a choice of this example"
    size_formula = "2 out at each site"
    caveats = "Published for images: nothing is known here of text beyond the records of this project"
    search_space = {"lr": (1e-3, 1e-1)}

    roles: Annotated[str, Field(description="linear roles to change: q k v o gate up down")] = "q k v o up down"

    def attach(self, edit: Edit) -> None:
        edit.swap(self.roles, ScaledAndShifted)

    def parameters(self, sites: Sites) -> int:
        return sum(2 * site.size[1] for site in sites.linear(self.roles))
