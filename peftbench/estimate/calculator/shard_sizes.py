"""Read the sizes of a network in shards: each parameter whole and one shard of it, and what is gathered together.

A block is gathered into one buffer, whose size is a sum over unlike matrices. It is no product of dimensions, so that
the sizes of the network's own parameters tell what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from peftbench.backbones.sharded import is_sharded, local
from peftbench.estimate.calculator.dimensions import CONSTANT, NAMES, SHARDS, Sized, Unreadable, term
from peftbench.estimate.simulate.simulated_ranks import SimulatedRank
from peftbench.run.parallel import shards
from peftbench.run.train import Trainer

SMALLEST = 16  # bytes; scalars have fewer
Terms = dict[tuple[int, ...], Fraction]
GRADIENTS = (2, 4)  # bytes of a number of a gradient, or of a moment


class UnsummedRank(SimulatedRank):
    """A rank that leaves out the sums of an adapter's gradients: how many go together depends on sizes (shards.js)."""

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum nothing."""


class ShardSizes:
    """Reads the sizes of a step, of a network in shards once that is made.

    Attributes:
        values: The dimensions.
    """

    def __init__(self, values: Mapping[str, int]) -> None:
        self.values = values
        self._known: dict[int, Sized] = {}

    def read(self, size: int) -> Sized:
        """Return a size with its reading."""
        return self._known[size] if size >= CONSTANT and size in self._known else Sized.of(size, self.values)

    def note(self, trainer: Trainer) -> None:
        """Note the sizes of a network in shards before its first step."""
        if trainer.ranks.shards > 1:
            _note(trainer.backbone, self.values, self._known)


def _note(backbone: Any, values: Mapping[str, int], known: dict[int, Sized]) -> None:
    blocks = [list(block.parameters()) for block in shards.blocks(backbone)]
    in_blocks = {id(p) for block in blocks for p in block}
    rest = [p for p in backbone.net.parameters() if id(p) not in in_blocks]
    for group in (*blocks, rest):
        sharded = [p for p in group if is_sharded(p)]
        _note_all(known, [(p, p.element_size()) for p in sharded], values)
        for size in GRADIENTS:
            _note_all(known, [(p, size) for p in sharded if p.requires_grad], values)
    texts = 8 * values["b"] * values["s"]
    _add(known, Sized.made(SHARDS * texts, _times(Sized.of(texts, values).terms, "N")))  # of all devices, in one tensor


def _note_all(known: dict[int, Sized], group: Iterable[tuple[nn.Parameter, int]], values: Mapping[str, int]) -> None:
    """Note the parameters of a group, one by one and together, with so many bytes for each of their numbers."""
    gathered, part = Sized.made(0, {}), Sized.made(0, {})
    for p, size in group:
        constant, exponents = term(p.numel() * size, values, SMALLEST)
        whole, shard = {exponents: constant}, local(p).numel() * size
        if not 0 <= shard * SHARDS - p.numel() * size < SHARDS * SMALLEST:
            raise Unreadable(f"{SHARDS} shards do not divide the rows of a parameter of shape {tuple(p.shape)}")
        own = _times(whole, "F")
        for count, terms in ((p.numel() * size, whole), (shard * SHARDS, whole), (shard, own)):
            _add(known, Sized.made(count, terms))
        gathered, part = gathered + Sized.made(shard * SHARDS, whole), part + Sized.made(shard, own)
    _add(known, gathered)
    _add(known, part)


def _times(terms: Terms, name: str) -> Terms:
    """Return a sum of products, each multiplied by a dimension."""
    place = NAMES.index(name)
    return {tuple(n + (at == place) for at, n in enumerate(key)): value for key, value in terms.items()}


def _add(known: dict[int, Sized], size: Sized) -> None:
    usual = known.setdefault(int(size), size)
    if size >= CONSTANT and usual.terms != size.terms:
        raise Unreadable(f"{int(size)} bytes of a network in shards have two readings")
