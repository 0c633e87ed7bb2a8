"""PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models (Meng et al. 2024,
arXiv:2404.02948).

Section 3:  W = U S V^T;  h = W_res x + (alpha / r) B A x,  where A (r, in) and B (out, r) start as the r largest
singular triplets, A = sqrt(S_r) V_r^T and B = U_r sqrt(S_r) (each divided by sqrt(alpha / r)), and the residual
W_res = W - (alpha / r) B A is frozen. With alpha = r, the paper's choice, the scale is one. The paper writes x W and
calls the left factor A; the names here are LoRA's, as in peft. The signs of the vectors cancel in B A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.method import Edit, Method, SiteLinear, Sites, UserError, register
from peftbench.methods.lora import LoRALinear

SEED = 0  # for the randomised SVD: loading an adapter must give the same residual again


class ResidualLinear(nn.Module):
    """The frozen residual of a layer without its principal part.

    The weight is a buffer, so that it does not count as an added parameter.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.bias = bias  # a parameter of the base, or a part of one

    is_dense = True

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:  # (out, in)
        return self.weight if dtype is None else self.weight.to(dtype)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return F.linear(x, self.weight, self.bias)


def principal(W: Tensor, rank: int, iterations: int | None) -> tuple[Tensor, Tensor]:
    """Return the factors of the `rank` largest singular triplets of a weight.

    Args:
        W: (out, in).
        rank: Number of triplets.
        iterations: Subspace iterations of the randomised SVD of Halko et al. (arXiv:0909.4061), drawn from a fixed
            seed; None for the exact SVD.

    Returns:
        A = sqrt(S) V^T (r, in) and B = U sqrt(S) (out, r).
    """
    W = W.detach().float()
    if iterations is None:
        U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            U, S, V = torch.svd_lowrank(W.cpu(), rank, niter=iterations)
        U, S, Vt = (t.to(W.device) for t in (U, S, V.T))
    root = S[:rank].sqrt()
    return root.unsqueeze(1) * Vt[:rank], U[:, :rank] * root


@register
@dataclass(frozen=True)
class PiSSA(Method):
    """LoRA that starts from a weight's largest singular triplets and freezes the rest of the weight.

    Starts as the identity up to rounding, because W is split in two and added up again. Merges into the weights.
    """

    name = "pissa"
    paper = "arXiv:2404.02948"
    version = 2  # one fused product of base and update: the last digits changed
    formula = "h = (W - s B0 A0) x + s B A x, B0 A0 from the r largest singular triplets, s = alpha/r"
    size_formula = "r (in + out) at each site"
    lr = 2e-5
    lr_source = "section 5: LLaMA 2 7B, Mistral 7B and Gemma 7B on mathematics, code and conversation"
    caveats = (
        "A and B start large, so its gradients are large and LoRA's rates are too high for it (PiSSA issue 48: no "
        "recovery at 2e-4); with each method at its own best rate plain LoRA comes within 1-2 % (arXiv:2602.04998). In "
        "bfloat16 the residual is rounded, and the start is the base only up to that. A stored adapter stands on the "
        "residual, which is computed again: another linear algebra library finds it up to rounding only."
    )
    size_knob = "rank"
    search_space = {"lr": (2e-5, 5e-3)}

    rank: Annotated[int, Field(ge=1, description="r, how many singular triplets train")] = 8
    alpha: Annotated[
        float | None, Field(gt=0, description="alpha; the update is scaled by alpha / r; null, the paper's, is r")
    ] = None
    iterations: Annotated[
        int | None, Field(ge=1, description="subspace iterations of the fast randomised SVD; null: the exact SVD")
    ] = None
    dropout: Annotated[float, Field(ge=0, lt=1, description="probability of dropping an input of A")] = 0.0
    roles: Annotated[
        str | None, Field(description="linear roles to adapt; null, the paper's choice, is every linear layer")
    ] = None

    def attach(self, edit: Edit) -> None:
        roles = edit.linear_roles if self.roles is None else self.roles
        thinnest = min(min(site.size) for site in edit.backbone.sites.linear(roles))
        if self.rank > thinnest:
            raise UserError(
                f"pissa: rank {self.rank}, but a layer at {roles} has only {thinnest} singular values; "
                f"use a rank up to {thinnest}, or other roles"
            )
        edit.swap(roles, self._split)

    def _split(self, base: SiteLinear) -> LoRALinear:
        W = base.dense_weight()
        A, B = principal(W, self.rank, self.iterations)
        alpha = float(self.rank) if self.alpha is None else self.alpha
        residual = (W.detach().float() - B @ A).to(W.dtype)
        layer = LoRALinear(ResidualLinear(residual, base.bias), self.rank, alpha, self.dropout)
        with torch.no_grad():
            layer.A.copy_(A / layer.scale**0.5)
            layer.B.copy_(B / layer.scale**0.5)
        return layer

    def parameters(self, sites: Sites) -> int:  # r (in + out) at each site
        return sum(self.rank * sum(site.size) for site in sites.linear(self.roles))
