"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al. 2023, arXiv:2310.11454).

Section 3.1:  h = W x + Lambda_b B Lambda_d A x,  with A (r, in) and B (out, r) random, frozen and shared by all layers.
Only the vectors d (r,) and b (out,) on the diagonals of Lambda_d and Lambda_b train; they start at d = 0.1 and b = 0.

The paper shares one pair among layers of one shape. Here one pair of the largest sizes serves all shapes: a layer uses
the first columns of A and the first rows of B. This and the draws (Kaiming uniform, A before B, from one CPU
generator) follow peft 0.21. With the same seed and roles, d and b can therefore be copied to and from it.
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
from peftbench.method.layers import lowrank, vectors


class Projection(nn.Module):
    """The frozen pair that all layers share, as one module, so that moving the network moves it once.

    Its buffers are not saved: the seed reproduces them. The stored adapter therefore has only two vectors per layer.
    """

    A: Tensor
    B: Tensor

    def __init__(self, rank: int, inside: int, outside: int, seed: int, where: torch.device) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers for every device
        for name, shape in (("A", (rank, inside)), ("B", (outside, rank))):
            bound = math.sqrt(6 / shape[1])  # Kaiming uniform: variance 2 / fan-in
            t = torch.empty(shape).uniform_(-bound, bound, generator=draws)
            self.register_buffer(name, t.to(where), persistent=False)


class VeRALinear(Adapter):
    """A linear layer with an update whose directions are random and whose scales are learned."""

    def __init__(self, base: SiteLinear, projection: Projection, d_initial: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.projection, self.dropout = projection, dropout
        where, rank = base.dense_weight().device, len(projection.A)
        self.d = nn.Parameter(torch.full((rank,), d_initial, device=where))
        self.b = nn.Parameter(torch.zeros(base.out_features, device=where))

    @property
    def A(self) -> Tensor:  # (r, in)
        """The first columns of the shared A: (r, in)."""
        return self.projection.A[:, : self.base.in_features]

    @property
    def B(self) -> Tensor:  # (out, r)
        """The first rows of the shared B: (out, r)."""
        return self.projection.B[: self.base.out_features]

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if lowrank.fits(self.base) and not (self.training and self.dropout) and vectors.pays(x, self.A, self.B):
            return vectors.vera(x, self.base, self.d, self.b, self.A, self.B)  # the same result, with fewer operations
        y = self.base(x)
        x = F.dropout(x, self.dropout, self.training)
        update = self.b * F.linear(self.d * F.linear(x, self.A), self.B)
        return y + update.to(y.dtype)

    def folded(self) -> SiteLinear:
        W = self.base.dense_weight()
        update = (self.b.unsqueeze(1) * self.B) @ (self.d.unsqueeze(1) * self.A)
        return SiteLinear.of((W + update).to(W.dtype), self.base.bias)


@register
@dataclass(frozen=True)
class VeRA(Method):
    """Two trained vectors per layer scale a random update that is frozen and shared by all layers.

    Starts as the identity (b = 0) and merges into the weights. The shared pair is drawn again from `projection_seed`
    whenever an adapter is loaded; it uses memory while attached, but is not stored.
    """

    name = "vera"
    paper = "arXiv:2310.11454"
    formula = "h = W x + Lambda_b B Lambda_d A x, A and B random, frozen, shared"
    size_formula = "out + r at each site"
    lr = 4e-3
    lr_source = "appendix A, GLUE with RoBERTa base: 4e-3 or 1e-2, by task"
    caveats = (
        "A rank adds one number a layer, so a budget that fits LoRA asks for ranks far beyond the layers' width, and a "
        "frozen pair of that size takes part in every step. It wants rates some ten times LoRA's (the paper's appendix "
        "A), and d is to start at 0.1 or below (table 6c)."
    )
    version = 2  # the update goes through the weight where that is shorter: the last digits changed
    size_knob = "rank"
    search_space = {"lr": (3e-3, 3e-1)}

    rank: Annotated[int, Field(ge=1, description="r, the rank of the random pair; the paper's for RoBERTa base")] = 1024
    d_initial: Annotated[float, Field(gt=0, description="every entry of d at the start")] = 0.1
    projection_seed: Annotated[int, Field(ge=0, description="seed from which A and B are drawn")] = 0
    dropout: Annotated[float, Field(ge=0, lt=1, description="probability of dropping an input of A")] = 0.0
    roles: Annotated[str, Field(description="linear roles to adapt; the paper's choice is q and v")] = "q v"

    def attach(self, edit: Edit) -> None:
        sizes = [site.size for site in edit.backbone.sites.linear(self.roles)]
        inside, outside = (max(column) for column in zip(*sizes, strict=True))
        pair = Projection(self.rank, inside, outside, self.projection_seed, edit.backbone.device)
        edit.swap(self.roles, lambda base: VeRALinear(base, pair, self.d_initial, self.dropout))

    def parameters(self, sites: Sites) -> int:  # b and d at each site
        return sum(site.size[1] + self.rank for site in sites.linear(self.roles))
