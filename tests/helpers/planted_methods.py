"""Methods that do one thing wrong, planted on purpose; `planted_bugs` says what must catch them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from peftbench.backbones.modules import SiteLinear
from peftbench.backbones.sites import Sites
from peftbench.method.edit import Edit
from peftbench.methods.adapter import BottleneckAdapter
from peftbench.methods.full import Full
from peftbench.methods.lora import LoRA, LoRALinear
from peftbench.methods.prefix import Prefix, PrefixTuning


@dataclass(frozen=True)
class SharedFactor(LoRA):
    """Every layer has the same A, which `parameters` counts at each."""

    def attach(self, edit: Edit) -> None:
        shared: list[nn.Parameter] = []

        def make(base: SiteLinear) -> LoRALinear:
            layer = LoRALinear(base, self.rank, self.alpha)
            shared.append(layer.A)
            layer.A = shared[0]
            return layer

        edit.swap(self.roles, make)


@dataclass(frozen=True)
class SharedMemory(LoRA):
    """Every layer has an A of its own, all on the same memory."""

    def attach(self, edit: Edit) -> None:
        super().attach(edit)
        first, *rest = edit.adapters()
        for layer in rest:
            layer.A.data = first.A.data


@dataclass(frozen=True)
class TrainsTheBase(LoRA):
    """The adapted layers' own weights train along."""

    def attach(self, edit: Edit) -> None:
        super().attach(edit)
        for layer in edit.adapters():
            layer.base.weight.requires_grad_(True)


@dataclass(frozen=True)
class LeaksAGradient(TrainsTheBase):
    """The base gets gradients that no optimiser uses: memory for nothing."""

    def optimizer(self, net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        own = [p for m in net.modules() if isinstance(m, LoRALinear) for p in (m.A, m.B)]
        return torch.optim.AdamW(own, lr=lr)


@dataclass(frozen=True)
class ForgetsBInTheOptimizer(LoRA):
    """Half of what trains is never stepped."""

    def optimizer(self, net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW([m.A for m in net.modules() if isinstance(m, LoRALinear)], lr=lr)


@dataclass(frozen=True)
class DriftingBase(LoRA):
    """After each step, a little of the update leaks into the base."""

    def after_step(self, net: nn.Module, done: float) -> None:
        for m in net.modules():
            if isinstance(m, LoRALinear):
                m.base.weight.data += 1e-3 * m.B.detach() @ m.A.detach()


@dataclass(frozen=True)
class CountsStepsInAnIterator(LoRA):
    """The update shrinks from step to step, and what counts the steps is an object that no file can hold."""

    def attach(self, edit: Edit) -> None:
        super().attach(edit)
        for layer in edit.adapters():
            layer.__dict__["steps"] = itertools.count(2)

    def after_step(self, net: nn.Module, done: float) -> None:
        for m in net.modules():
            if isinstance(m, LoRALinear):
                m.scale = self.alpha / self.rank / next(m.__dict__["steps"])


@dataclass(frozen=True)
class PatchesTheNetwork(Full):
    """Past the edit, the method turns a module off: nobody puts it back."""

    def attach(self, edit: Edit) -> None:
        super().attach(edit)
        for m in edit.net.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
                m.noted = True  # type: ignore[assignment]


@dataclass(frozen=True)
class ForgetsTheBiases(BottleneckAdapter):
    """The formula counts 2 d m, and the layers have biases."""

    def parameters(self, sites: Sites) -> int:
        biases = sum(self.bottleneck + s.size[0] for s in sites.of("attn ffn"))
        return super().parameters(sites) - biases


@dataclass(frozen=True)
class RoundsWhenItFinishes(LoRA):
    """The finished adapter is not the trained one."""

    def finish(self, edit: Edit) -> None:
        for layer in edit.adapters():
            layer.B.data = layer.B.data.bfloat16().float()


@dataclass(frozen=True)
class FinishesTwice(PrefixTuning):
    """A second call of finish halves the prefix again: at evaluation and at saving, say."""

    def finish(self, edit: Edit) -> None:
        super().finish(edit)
        for layer in edit.adapters():
            if isinstance(layer, Prefix) and "finished" in layer.__dict__:
                layer.K.data /= 2
            layer.__dict__["finished"] = True


@dataclass(frozen=True)
class NoCard(LoRA):
    pass


@dataclass(frozen=True)
class WrongKnob(LoRA):
    """Its size cannot be solved for a budget."""

    size_knob = "ranks"


@dataclass(frozen=True)
class UndescribedField(LoRA):
    """Nobody learns what `depth` is."""

    depth: Annotated[int, Field(ge=1)] = 4


@dataclass(frozen=True)
class SearchesOutOfRange(LoRA):
    """Tuning would draw a value that the method refuses."""

    search_space = {"dropout": (0.0, 1.0)}


@dataclass(frozen=True)
class SearchesOneRate(LoRA):
    """Every trial would have the same rate."""

    search_space = {"lr": (1e-3, 1e-3)}
