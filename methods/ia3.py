"""(IA)^3: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning (Liu et al. 2022,
arXiv:2205.05638).

Section 3.3: learned vectors rescale keys, values and the FFN's inner activations:
softmax(Q (l_k * K)^T / sqrt(d)) (l_v * V)  and  (l_ff * gamma(W_1 x)) W_2. All vectors start at one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftbench.method import Adapter, Edit, Method, SiteLinear, Sites, register
from peftbench.method.layers import lowrank, vectors


class ScaledOutput(Adapter):
    """l * (W x + b): keys and values."""

    def __init__(self, base: SiteLinear) -> None:
        super().__init__(base)
        self.l = nn.Parameter(torch.ones(base.out_features, device=base.dense_weight().device))

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if lowrank.fits(self.base):
            return vectors.scaled_output(x, self.base, self.l)  # the same result, fused
        y = self.base(x)
        return y * self.l.to(y.dtype)

    def folded(self) -> SiteLinear:
        W, b = self.base.dense_weight(), self.base.bias
        return SiteLinear.of((self.l.unsqueeze(1) * W).to(W.dtype), None if b is None else (self.l * b).to(b.dtype))


class ScaledInput(Adapter):
    """W (l * x) + b: the inner activations, as input of the FFN's second layer."""

    def __init__(self, base: SiteLinear) -> None:
        super().__init__(base)
        self.l = nn.Parameter(torch.ones(base.in_features, device=base.dense_weight().device))

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if lowrank.fits(self.base):
            return vectors.scaled_input(x, self.base, self.l)
        return self.base(x * self.l.to(x.dtype))

    def folded(self) -> SiteLinear:
        W = self.base.dense_weight()
        return SiteLinear.of((W * self.l).to(W.dtype), self.base.bias)


@register
@dataclass(frozen=True)
class IA3(Method):
    """Three learned vectors per layer rescale keys, values and the FFN's inner activations.

    Starts as the identity, merges into the weights, and has one size: it cannot be matched to a parameter budget.
    """

    name = "ia3"
    paper = "arXiv:2205.05638"
    formula = "k -> l_k * k,  v -> l_v * v,  gamma(W_1 x) -> l_ff * gamma(W_1 x)"
    lr = 3e-3
    lr_source = "section 3.2: 1,000 steps of Adafactor at 3e-3"
    version = 2  # scaling goes through the weight where that is shorter: the last digits changed
    size_formula = "d_k + d_v + d_ff a layer"
    caveats = (
        "One size: it cannot be grown for a harder task. At the rates that suit LoRA it hardly moves: .31 on GSM8K at "
        "1e-4, .40 at 1e-3, the same vectors (method_comparison of Hugging Face peft)"
    )
    search_space = {"lr": (3e-3, 3e-1)}

    def attach(self, edit: Edit) -> None:
        edit.swap("k v", ScaledOutput)
        edit.swap("down", ScaledInput)

    def parameters(self, sites: Sites) -> int:  # d_k + d_v + d_ff a layer
        return sum(s.size[1] for s in sites.of("k v")) + sum(s.size[0] for s in sites.of("down"))
