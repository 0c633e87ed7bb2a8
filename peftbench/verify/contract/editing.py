"""Promises about reversible changes: undo, merge and unmerge, and `finish`."""

from __future__ import annotations

import torch
from torch import Tensor

from peftbench.method.edit import Adapter, Edit, NotMergeable
from peftbench.verify.contract.case import AdaptedModel, Case, network
from peftbench.verify.contract.compare import FOLDING, ROUNDING, distance, first_difference, same, snapshot, tensors


def undo_is_exact(case: Case) -> None:
    """After training and `undo`, the network is what it was: modules, values, flags, hooks, attention, logits."""
    backbone = network(case)
    Edit(backbone)
    backbone.net.eval()
    before = snapshot(backbone)
    bare = AdaptedModel(case, backbone=backbone)
    bare.edit.undo()
    _unchanged(before, bare, "attaching and undoing")
    head, logits = bare.head(), bare.logits()
    used = AdaptedModel(case, seed=5, backbone=backbone)
    used.train()
    used.method.finish(used.edit)
    used.logits()
    used.edit.undo()
    used.set_head(head)
    _unchanged(before, used, "training and undoing")
    assert same(used.logits(), logits), "after undo the network computes something else than before"
    assert not used.edit.state(), "after undo the edit still has a state"
    used.edit.undo()
    _unchanged(before, used, "undoing twice")


def merging_computes_the_same(case: Case) -> None:
    """The folded network computes the same with plain layers, leaves the base alone, and unmerging is exact."""
    model = AdaptedModel(case)
    model.train()
    model.method.finish(model.edit)
    before, kept = model.logits(), _values(model)
    try:
        with model.edit.merged() as net:
            assert not any(isinstance(m, Adapter) for m in net.modules()), "an adapter is left in the merged network"
            merged = model.logits()
    except NotMergeable:
        _restored(model, before, kept, "a refused merge")
        return
    off = distance(merged, before)
    assert off <= FOLDING, f"merging changes the logits by {off:.1e} of their size (allowed: {FOLDING:.0e})"
    _restored(model, before, kept, "merging and unmerging")
    with model.edit.merged():
        assert same(model.logits(), merged), "merging a second time gives other logits than the first time"
    try:
        with model.edit.merged():
            raise _Interrupted
    except _Interrupted:
        _restored(model, before, kept, "an error inside merged()")


def finishing_changes_nothing(case: Case) -> None:
    """`finish` changes no output, also when called twice, and its result can be saved and loaded."""
    model = AdaptedModel(case)
    model.train()
    before = model.logits()
    model.method.finish(model.edit)
    after = model.logits()
    off = distance(after, before)
    assert off <= ROUNDING, f"finish changes the logits by {off:.1e} of their size; it may only drop what is not needed"
    for name, t in model.edit.state().items():
        assert bool(torch.isfinite(t).all()), f"after finish the tensor {name} is not finite"
    model.method.finish(model.edit)
    assert same(model.logits(), after), "a second call of finish changes the network again"
    other = AdaptedModel(case, seed=9)
    other.method.finish(other.edit)
    other.edit.load(model.state())
    other.set_head(model.head())
    assert same(other.logits(), after), "an adapter saved after finish computes something else once it is loaded"


class _Interrupted(Exception):
    pass


def _values(model: AdaptedModel) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors(model.net).items()}


def _restored(model: AdaptedModel, logits: Tensor, kept: dict[str, Tensor], after: str) -> None:
    now = tensors(model.net)
    assert now.keys() == kept.keys(), f"{after} leaves other tensors: {sorted(now.keys() ^ kept.keys())[:3]}"
    for name, t in now.items():
        assert same(t, kept[name]), f"{after} changes {name}"
    assert same(model.logits(), logits), f"{after} changes the logits"


def _unchanged(before: dict[str, object], model: AdaptedModel, after: str) -> None:
    model.net.eval()
    model.net.zero_grad(set_to_none=True)
    found = first_difference(before, snapshot(model.backbone))
    assert found is None, f"{after} does not restore the network: {found}"
