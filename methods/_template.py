"""TITLE OF THE PAPER (AUTHORS YEAR, arXiv:NUMBER).

Section S, equation N:  h = W x + b + B x  -- write the formula here, and the code below in its order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from peftbench.method import Adapter, Edit, Method, SiteLinear, Sites, register


class TemplateLinear(Adapter):
    """Replaces a linear layer. Parameters outside `self.base` are saved, counted and trained; buffers are saved."""

    def __init__(self, base: SiteLinear, scale: float) -> None:
        super().__init__(base)
        self.scale = scale
        self.shift = nn.Parameter(torch.zeros(base.out_features, device=base.dense_weight().device))

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        y = self.base(x)
        return y + (self.scale * self.shift).to(y.dtype)  # under autocast y is bfloat16 and must stay so

    def folded(self) -> SiteLinear:
        """Return a plain layer that computes the same. Delete this method if there is none."""
        W, b = self.base.dense_weight(), self.base.bias
        shift = self.scale * self.shift
        return SiteLinear.of(W, shift.to(W.dtype) if b is None else (b + shift).to(b.dtype))


@register
@dataclass(frozen=True)
class Template(Method):
    """One sentence: what trains, and where. This text is the method's card (`peftbench methods NAME`)."""

    name = "template"
    paper = "arXiv:0000.00000"
    formula = "h = W x + b + scale * shift"
    lr = 1e-3  # if an experiment names no rate
    lr_source = "where in the paper the rate comes from"
    search_space = {"lr": (1e-4, 1e-2)}  # what tuning draws from: two decades; a field may follow: "depth": (1, 2, 4)
    size_formula = "out at each site"
    caveats = "known weaknesses, each with its source: a paper, or a record of this project"
    size_knob = None  # the field that a parameter budget solves, e.g. "rank"; None: the method has one size
    starts_as_identity = True  # does the network compute the same before the first step?

    # Hyperparameters are fields, with type, range and description; nothing else is a field. A size for budgets:
    # rank: Annotated[int, Field(ge=1, description="r, the rank of the update")] = 8   (and size_knob = "rank" above)
    scale: Annotated[float, Field(gt=0, description="what it scales")] = 1.0
    roles: Annotated[str, Field(description="linear roles to change: q k v o gate up down")] = "q v"

    def attach(self, edit: Edit) -> None:
        """Swap modules at roles, or thaw base parameters: `edit.swap(roles, make)`, `edit.thaw(roles, part)`."""
        edit.swap(self.roles, lambda base: TemplateLinear(base, self.scale))

    def parameters(self, sites: Sites) -> int:
        """Return how many numbers train, from the sites' sizes alone: (in, out) for a linear site."""
        return sum(site.size[1] for site in sites.linear(self.roles))
