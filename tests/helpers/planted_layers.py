"""LoRA layers with one mistake each, planted on purpose; `planted_bugs` says what must catch them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.backbones.modules import SiteLinear
from peftbench.method.base import Method
from peftbench.method.edit import Adapter, Edit
from peftbench.methods.lora import LoRA, LoRALinear


def with_layer(layer: type[Adapter], **facts: Any) -> type[Method]:
    """LoRA with another layer class, and class attributes of the method changed by `facts`."""

    def attach(self: LoRA, edit: Edit) -> None:
        edit.swap(self.roles, lambda base: layer(base, self.rank, self.alpha, self.dropout))  # type: ignore[call-arg]

    planted = type("PlantedLoRA", (LoRA,), {"attach": attach, "__doc__": "LoRA with a mistake.", **facts})
    return dataclass(frozen=True)(planted)


class ScaleForgottenInFold(LoRALinear):
    def folded(self) -> SiteLinear:
        return SiteLinear.of(self.base.dense_weight() + self.B @ self.A, self.base.bias)


class AlphaWithoutRankInFold(LoRALinear):
    def folded(self) -> SiteLinear:
        alpha = self.scale * self.A.shape[0]
        return SiteLinear.of(self.base.dense_weight() + alpha * (self.B @ self.A), self.base.bias)


class UpdateTransposedInFold(LoRALinear):
    def folded(self) -> SiteLinear:
        return SiteLinear.of(self.base.dense_weight() + self.scale * (self.B @ self.A).T, self.base.bias)


class ATransposedInFold(LoRALinear):
    """A's numbers read as if they were stored (in, r)."""

    def folded(self) -> SiteLinear:
        A = self.A.reshape(self.A.shape[::-1]).T
        return SiteLinear.of(self.base.dense_weight() + self.scale * (self.B @ A), self.base.bias)


class BiasLostInFold(LoRALinear):
    def folded(self) -> SiteLinear:
        return SiteLinear.of(super().folded().weight, None)


class FoldsIntoTheBase(LoRALinear):
    def folded(self) -> SiteLinear:
        self.base.weight += self.scale * (self.B @ self.A)
        return self.base


class IgnoresA(LoRALinear):
    def update(self, x: Tensor) -> Tensor:
        return F.linear(x[..., : self.A.shape[0]], self.B)


class NotZeroAtTheStart(LoRALinear):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        nn.init.normal_(self.B, std=0.02)


class BothFactorsZero(LoRALinear):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        nn.init.zeros_(self.A)


class DropoutAtEvaluation(LoRALinear):
    def update(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(F.dropout(x, 0.1), self.A), self.B)


class DrawsInForward(LoRALinear):
    def update(self, x: Tensor) -> Tensor:
        torch.rand(1)
        return super().update(x)


class AdapterInTheBasesType(LoRALinear):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.to(self.base.weight.dtype)


class FloatComesOut(LoRALinear):
    """Under autocast the layers after it get float32 where they expect bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x).float() + self.scale * self.update(x).float()


class AveragesOverTheSentence(LoRALinear):
    def update(self, x: Tensor) -> Tensor:
        return super().update(x - x.mean(dim=1, keepdim=True))


class ComparesTheExamples(LoRALinear):
    def update(self, x: Tensor) -> Tensor:
        return super().update(x - x[:1, :1])


class FirstTokenIsSpecial(LoRALinear):
    """True of the chunk's first token: with a cache each new token is one."""

    def update(self, x: Tensor) -> Tensor:
        first = torch.zeros_like(x)
        first[:, 0] = x[:, 0]
        return super().update(first)


class CountsItsCalls(LoRALinear):
    calls = 0

    def update(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().update(x) / (1 + self.calls)


class UnsavedProjection(LoRALinear):
    """A is random and frozen, but a plain attribute: it is not in the file."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        drawn = self.A.detach().clone()
        del self.A
        self.A = drawn


class UnsavedTrainedTensor(LoRALinear):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gain = torch.ones(self.base.out_features, requires_grad=True)

    def update(self, x: Tensor) -> Tensor:
        return super().update(x) * self.gain


class RemembersTheUpdate(LoRALinear):
    """The product of the factors is computed at the first evaluation and never again."""

    product: Tensor | None = None

    def update(self, x: Tensor) -> Tensor:
        if self.training:
            return super().update(x)
        if self.product is None:
            self.product = (self.B @ self.A).detach()
        return F.linear(x, self.product)


class UnusedTensor(LoRALinear):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.C = nn.Parameter(torch.ones(3))


class SystemEntropy(LoRALinear):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        draws = torch.Generator()
        draws.seed()
        nn.init.normal_(self.A, generator=draws)
