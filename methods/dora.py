"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al. 2024, arXiv:2402.09353).

Equation 5:  W' = m (W + B A) / ||W + B A||,  the norm taken over each output row and, by section 4.3, held constant in
the gradient. The paper writes the norm per column of W (in, out); here W is (out, in). Only m, A and B train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.method import Edit, Method, SiteLinear, Sites, register
from peftbench.method.layers import lowrank
from peftbench.methods.lora import LoRALinear


class DoRALinear(LoRALinear):
    """LoRA for the direction of each weight row, and a trained magnitude m for its norm."""

    def __init__(self, base: SiteLinear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, alpha, dropout)
        self.m = nn.Parameter(lowrank.norms(base, self.A.dtype))  # (out,): B = 0, so this is ||W + s B A||
        self.squares: Tensor
        self.register_buffer("squares", self.m.detach().square(), persistent=False)  # ||W||^2, whatever m becomes

    def norm(self) -> Tensor:  # (out,), without gradient
        """Return ||W + s B A|| of each row (out,), without gradient."""
        with torch.no_grad():
            W = self.base.dense_weight().to(self.A.dtype)
            norm = torch.linalg.vector_norm(torch.addmm(W, self.B, self.A, alpha=self.scale), dim=1)
            return norm.clamp_(min=torch.finfo(norm.dtype).tiny)  # no 0 / 0 for a row of zeros

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if self.can_fuse():  # the same result, without computing W + s B A
            return lowrank.linear(x, self.base, self.A, self.B, self.scale, self.m, self.squares)
        g = self.m / self.norm()  # exactly 1 at the start
        y, product = self.base_and_product(x)
        # g (W x + s B A x) + b, written as a change of the base's output: at the start it is exactly the identity
        out = y + (g - 1) * product + g * self.scale * self.update(x)
        return out.to(y.dtype)  # under autocast the base returns bfloat16, which the next layer expects

    def base_and_product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the base's output W x + b, and W x alone."""
        bias, dtype = self.base.bias, lowrank.product_dtype(x)
        if bias is not None and lowrank.is_narrower(dtype, self.m):  # W x + b - b would lose what b has rounded off
            product = F.linear(x.to(dtype), self.base.dense_weight().to(dtype))
            return product + bias.to(dtype), product
        y = self.base(x)
        return y, y if bias is None else y - bias

    def _apply(self, fn: Any, recurse: bool = True) -> DoRALinear:
        """Recompute ||W||^2 after a move or cast, so that it has the new dtype's precision."""
        super()._apply(fn, recurse)
        self.squares = lowrank.norms(self.base, self.A.dtype).square()
        return self

    def folded(self) -> SiteLinear:
        W = self.base.dense_weight()
        g = (self.m / self.norm()).unsqueeze(1)
        return SiteLinear.of((g * (W + self.scale * (self.B @ self.A))).to(W.dtype), self.base.bias)


@register
@dataclass(frozen=True)
class DoRA(Method):
    """LoRA for the direction of each weight row, and a trained magnitude m for its norm.

    Starts as the identity (m is the rows' own norm) and merges into the weights.
    """

    name = "dora"
    paper = "arXiv:2402.09353"
    version = 2  # one fused product of base and update: the last digits changed
    formula = "h = m (W + (alpha/r) B A) x / ||W + (alpha/r) B A||, rowwise, norm detached"
    lr = 2e-4
    lr_source = "table 8: LLaMA-7B, commonsense reasoning"
    size_formula = "r (in + out) + out at each site"
    caveats = (
        "The norm of the whole weight makes each step slower than LoRA's: 141 against 117 ms at r 32 "
        "(method_comparison of Hugging Face peft, where it scores no better). Its table 1 has not always been "
        "reproduced: 54 to 63 for 77.5 in issues 14 and 26 of NVlabs/DoRA"
    )
    size_knob = "rank"
    search_space = {"lr": (2e-4, 2e-2)}  # alpha only scales the update, as the rate does

    rank: Annotated[int, Field(ge=1, description="r, the rank of the directional update")] = 8
    alpha: Annotated[float, Field(gt=0, description="alpha; the update is scaled by alpha / r")] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="probability of dropping an input of A")] = 0.0
    roles: Annotated[str, Field(description="linear roles to adapt")] = "q v"

    def attach(self, edit: Edit) -> None:
        edit.swap(self.roles, lambda base: DoRALinear(base, self.rank, self.alpha, self.dropout))

    def parameters(self, sites: Sites) -> int:  # r (in + out), and out magnitudes
        return sum(self.rank * sum(site.size) + site.size[1] for site in sites.linear(self.roles))
