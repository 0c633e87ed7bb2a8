"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv:2106.09685).

Section 4.1, equation 3:  h = W x + (alpha / r) B A x,  with A (r, in) random, B (out, r) zero, W frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.method import Adapter, Edit, Method, SiteLinear, Sites, register
from peftbench.method.layers import lowrank


class LoRALinear(Adapter):
    """A linear layer with a trainable update of rank r."""

    def __init__(self, base: SiteLinear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.scale, self.dropout = alpha / rank, dropout
        where = base.dense_weight().device
        A = nn.init.kaiming_uniform_(torch.empty(rank, base.in_features), a=math.sqrt(5))  # as in the authors' code
        self.A = nn.Parameter(A.to(where))  # the paper says Gaussian
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=where))

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if self.can_fuse():
            return lowrank.linear(x, self.base, self.A, self.B, self.scale)  # the same result from one fused product
        return self.base(x) + self.scale * self.update(x)

    def can_fuse(self) -> bool:
        """Whether base and update can be computed in one fused product.

        This needs a frozen dense base, no dropout, and `update` as defined here.
        """
        plain = type(self).update is LoRALinear.update
        return plain and not (self.training and self.dropout) and lowrank.fits(self.base)

    def update(self, x: Tensor) -> Tensor:  # B A x
        """Return B A x, with dropout on x while training."""
        x = F.dropout(x, self.dropout, self.training)
        return F.linear(F.linear(x, self.A), self.B)

    def folded(self) -> SiteLinear:
        W = self.base.dense_weight()
        return SiteLinear.of((W + self.scale * (self.B @ self.A)).to(W.dtype), self.base.bias)


@register
@dataclass(frozen=True)
class LoRA(Method):
    """A trainable low-rank update added to frozen linear layers.

    Starts as the identity (B = 0) and merges into the weights, so that it costs nothing at inference.
    """

    name = "lora"
    paper = "arXiv:2106.09685"
    version = 2  # one fused product of base and update: the last digits changed
    formula = "h = W x + (alpha/r) B A x"
    lr = 5e-4
    lr_source = "table 9: RoBERTa base on MNLI, SST-2, CoLA and others, 4e-4 to 5e-4"
    size_formula = "r (in + out) at each site"
    caveats = (
        "Given much new data it learns less than full fine-tuning: HumanEval .224 at r 256 against .263 after 20 "
        "billion tokens of code (arXiv:2405.09673). Before blaming the rank, tune the rate: most variants of LoRA then "
        "come within 2 % of it (arXiv:2602.04998)"
    )
    size_knob = "rank"
    search_space = {"lr": (2e-4, 2e-2)}  # alpha only scales the update, as the rate does

    rank: Annotated[int, Field(ge=1, description="r, the rank of the update")] = 8
    alpha: Annotated[float, Field(gt=0, description="alpha; the update is scaled by alpha / r")] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="probability of dropping an input of A")] = 0.0
    roles: Annotated[str, Field(description="linear roles to adapt; the paper's choice is q and v")] = "q v"

    def attach(self, edit: Edit) -> None:
        edit.swap(self.roles, lambda base: LoRALinear(base, self.rank, self.alpha, self.dropout))

    def parameters(self, sites: Sites) -> int:  # r (in + out) at each site
        return sum(self.rank * sum(site.size) for site in sites.linear(self.roles))
