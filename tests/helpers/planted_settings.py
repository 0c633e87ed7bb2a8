"""Mistakes that the defaults hide and one setting shows, planted on purpose; `planted_bugs` says what must notice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from peftbench.backbones.modules import SiteLinear
from peftbench.method.edit import Edit
from peftbench.methods.adapter import Bottleneck, BottleneckAdapter
from peftbench.methods.lora import LoRA, LoRALinear
from peftbench.methods.prefix import Prefix, PrefixTuning


class FoldsAtTheDefaultRank(LoRALinear):
    def folded(self) -> SiteLinear:
        scale = self.scale * self.A.shape[0] / LoRA.rank
        return SiteLinear.of(self.base.dense_weight() + scale * (self.B @ self.A), self.base.bias)


class DropsAtEvaluation(LoRALinear):
    def update(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(F.dropout(x, self.dropout), self.A), self.B)


@dataclass(frozen=True)
class SwapsTheParts(PrefixTuning):
    """Once the MLP is dropped, keys stand where values belong."""

    def finish(self, edit: Edit) -> None:
        super().finish(edit)
        for layer in edit.adapters():
            if isinstance(layer, Prefix) and self.reparametrise:
                layer.K.data, layer.V.data = layer.V.data, layer.K.data


class LooksAhead(Bottleneck):
    """In parallel, its input is the next token's."""

    def forward(self, x: Tensor, f: Tensor, r: Tensor) -> Tensor:
        return super().forward(torch.roll(x, -1, dims=1), f, r)


@dataclass(frozen=True)
class ParallelLooksAhead(BottleneckAdapter):
    """The other placements do not read x."""

    def attach(self, edit: Edit) -> None:
        super().attach(edit)
        for layer in edit.adapters():
            layer.__class__ = LooksAhead
