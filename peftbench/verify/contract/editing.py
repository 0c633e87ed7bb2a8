"""Promises about the way back: undo, merge and unmerge, and what `finish` may do."""

from __future__ import annotations

import torch
from torch import Tensor

from peftbench.method.edit import Adapter, Edit, NotMergeable
from peftbench.verify.contract.case import (
    FOLDING,
    ROUNDING,
    Bench,
    Case,
    difference,
    distance,
    network,
    portrait,
    same,
    tensors,
)


def undo_is_exact(case: Case) -> None:
    """After training and `undo`, the network is what it was: modules, values, flags, hooks, attention, logits."""
    backbone = network(case)
    Edit(backbone)
    backbone.net.eval()
    before = portrait(backbone)
    bare = Bench(case, backbone=backbone)
    bare.edit.undo()
    _unchanged(before, bare, "attaching and undoing")
    head, logits = bare.head(), bare.logits()
    used = Bench(case, seed=5, backbone=backbone)
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
    bench = Bench(case)
    bench.train()
    bench.method.finish(bench.edit)
    before, kept = bench.logits(), _values(bench)
    try:
        with bench.edit.merged() as net:
            assert not any(isinstance(m, Adapter) for m in net.modules()), "an adapter is left in the merged network"
            merged = bench.logits()
    except NotMergeable:
        _restored(bench, before, kept, "a refused merge")
        return
    off = distance(merged, before)
    assert off <= FOLDING, f"merging changes the logits by {off:.1e} of their size (allowed: {FOLDING:.0e})"
    _restored(bench, before, kept, "merging and unmerging")
    with bench.edit.merged():
        assert same(bench.logits(), merged), "merging a second time gives other logits than the first time"
    try:
        with bench.edit.merged():
            raise _Interrupted
    except _Interrupted:
        _restored(bench, before, kept, "an error inside merged()")


def finishing_changes_nothing(case: Case) -> None:
    """`finish` changes no output, also when called twice, and its result can be saved and loaded."""
    bench = Bench(case)
    bench.train()
    before = bench.logits()
    bench.method.finish(bench.edit)
    after = bench.logits()
    off = distance(after, before)
    assert off <= ROUNDING, f"finish changes the logits by {off:.1e} of their size; it may only drop what is not needed"
    for name, t in bench.edit.state().items():
        assert bool(torch.isfinite(t).all()), f"after finish the tensor {name} is not finite"
    bench.method.finish(bench.edit)
    assert same(bench.logits(), after), "a second call of finish changes the network again"
    other = Bench(case, seed=9)
    other.method.finish(other.edit)
    other.edit.load(bench.state())
    other.set_head(bench.head())
    assert same(other.logits(), after), "an adapter saved after finish computes something else once it is loaded"


class _Interrupted(Exception):
    pass


def _values(bench: Bench) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors(bench.net).items()}


def _restored(bench: Bench, logits: Tensor, kept: dict[str, Tensor], after: str) -> None:
    now = tensors(bench.net)
    assert now.keys() == kept.keys(), f"{after} leaves other tensors: {sorted(now.keys() ^ kept.keys())[:3]}"
    for name, t in now.items():
        assert same(t, kept[name]), f"{after} changes {name}"
    assert same(bench.logits(), logits), f"{after} changes the logits"


def _unchanged(before: dict[str, object], bench: Bench, after: str) -> None:
    bench.net.eval()
    bench.net.zero_grad(set_to_none=True)
    found = difference(before, portrait(bench.backbone))
    assert found is None, f"{after} does not restore the network: {found}"
