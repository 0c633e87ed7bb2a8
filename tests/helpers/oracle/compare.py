"""Hold another implementation against ours: the same weights, the same batches, the largest differences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from architectures import Model
from torch import Tensor, nn

from oracle.networks import DECAY, RATE, STEPS, Ours, batches, logits, objective
from oracle.pairs import Pair, layer, unmapped, whole

CLOSE = 1e-9  # largest difference over the largest value
LOOKS = ("output", "gradient", "merge", "steps")


@dataclass
class Theirs:
    """Another library's network with its method on it, and where our trained tensors lie in its own."""

    net: Any
    pairs: dict[str, Pair]
    length: int = STEPS  # of the training of which the steps are the first

    def take(self, ours: Ours) -> None:
        """Copy our weights in; what ours does not have stays as it is, and gets no gradient."""
        assert self.pairs.keys() == ours.trained.keys()
        for name, p in ours.trained.items():
            self.pairs[name].write(p)
        for p, free in unmapped(self.pairs):
            p.requires_grad_(True)
            if free.any():
                p.register_hook(lambda g, free=free: g.masked_fill(free, 0.0))

    def inputs_of_ours(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What our network has to be given to be comparable; the same, but where the library shifts positions."""
        return inputs

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        return logits(self.net, inputs)

    def loss(self, inputs: dict[str, Tensor]) -> Tensor:
        return objective(self.logits(inputs))

    def optimizer(self, ours: Ours) -> torch.optim.Optimizer:
        """AdamW as the runner has it: decay on our matrices only."""
        matrices = {id(self.pairs[n].theirs) for n, p in ours.trained.items() if p.ndim > 1}
        tensors = {id(pair.theirs): pair.theirs for pair in self.pairs.values()}
        groups = [
            {"params": [t for key, t in tensors.items() if key in matrices], "weight_decay": DECAY},
            {"params": [t for key, t in tensors.items() if key not in matrices], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=RATE, foreach=False)

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step `step`, counted from 1, while gradients are still there."""

    def merged(self) -> nn.Module:
        """A plain network with the adapters in its weights."""
        return copy.deepcopy(self.net).merge_and_unload()


@dataclass(frozen=True)
class Counterpart:
    """Who computes the same as our `method` with `hyper`, and where."""

    method: str
    make: Callable[[Ours], Theirs]
    hyper: Mapping[str, Any] = field(default_factory=dict)
    merges: bool = True
    without: Mapping[str, str] = field(default_factory=dict)  # "architecture" or "architecture look" -> why not

    def looks(self, architecture: str) -> tuple[str, ...]:
        """What there is to compare."""
        if architecture in self.without:
            return ()
        absent = {look for look in LOOKS if f"{architecture} {look}" in self.without}
        return tuple(look for look in LOOKS if look not in absent and (self.merges or look != "merge"))


def distance(a: Tensor, b: Tensor, may_be_zero: bool = False) -> float:
    """The largest difference over the largest value of `b`."""
    assert a.shape == b.shape
    assert bool(b.isfinite().all())
    scale = float(b.abs().max())
    if scale == 0:
        assert may_be_zero, "nothing to compare: all zero"
        return float(a.abs().max())
    return float((a - b).abs().max()) / scale


def compare(counterpart: Counterpart, model: Model) -> dict[str, float | None]:
    """The largest relative differences by what is compared; None where the method never merges."""
    ours = Ours(model, counterpart.method, **counterpart.hyper)
    theirs = counterpart.make(ours)
    theirs.take(ours)
    first = batches()[0]
    with torch.no_grad():
        output = distance(logits(ours.net, theirs.inputs_of_ours(first)), theirs.logits(first))
    return {
        "output": output,
        "gradient": gradients(ours, theirs, first),
        "merge": merge(ours, theirs) if counterpart.merges else None,
        "steps": steps(ours, theirs),
    }


def gradients(ours: Ours, theirs: Theirs, inputs: dict[str, Tensor]) -> float:
    names = list(ours.trained)
    mine = torch.autograd.grad(ours.loss(theirs.inputs_of_ours(inputs)), list(ours.trained.values()))
    tensors = list({id(pair.theirs): pair.theirs for pair in theirs.pairs.values()}.values())
    found = torch.autograd.grad(theirs.loss(inputs), tensors)
    by_id = {id(t): g for t, g in zip(tensors, found, strict=True)}
    pairs = [theirs.pairs[n] for n in names]
    return max(distance(g, pair.read(by_id[id(pair.theirs)])) for g, pair in zip(mine, pairs, strict=True))


def merge(ours: Ours, theirs: Theirs) -> float:
    """Every weight of the two merged networks, those that no method touched included."""
    plain = theirs.merged()
    sites = {site.path for site in ours.backbone.sites.linear()}
    named = dict(plain.named_parameters(remove_duplicate=False))
    worst = 0.0
    with ours.edit.merged() as net, torch.no_grad():
        for name, p in net.named_parameters():
            path, _, kind = name.rpartition(".")
            pair = layer(plain, path).pair(kind) if path in sites else whole(named[name])
            worst = max(worst, distance(p, pair.read()))
    return worst


def steps(ours: Ours, theirs: Theirs) -> float:
    """Trained weights after some optimiser steps on different batches, and the logits then."""
    before = {name: p.detach().clone() for name, p in ours.trained.items()}
    mine, other = ours.optimizer(), theirs.optimizer(ours)
    for step, inputs in enumerate(batches(), start=1):
        ours.loss(theirs.inputs_of_ours(inputs)).backward()
        mine.step()
        ours.method.after_step(ours.net, step / theirs.length)
        mine.zero_grad()
        theirs.loss(inputs).backward()
        other.step()
        theirs.after_step(step)
        other.zero_grad()
    for name, p in ours.trained.items():
        assert float((p.detach() - before[name]).abs().max()) > RATE, f"{name} has not moved: nothing to compare"
    inputs = batches()[0]
    with torch.no_grad():
        pairs = [(p.detach(), theirs.pairs[name].read()) for name, p in ours.trained.items()]
        weights = [distance(a, b, may_be_zero=True) for a, b in pairs]
        return max(distance(logits(ours.net, theirs.inputs_of_ours(inputs)), theirs.logits(inputs)), *weights)
