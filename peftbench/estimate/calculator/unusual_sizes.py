"""Let a network with readable dimensions run: its sizes are not those that libraries expect, or loops divide.

Two loops depend on sizes: NF4 weights are computed by pieces of 2^24 numbers, and DoRA's norms by rows. A recording has
one piece of a readable size, and the replay gives it the size, and its kernels the number, that the real weight has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from peftbench.method.layers import lowrank, nf4, nf4_quantization

WHOLE = 2**62


@contextmanager
def unusual_sizes(values: Mapping[str, int]) -> Iterator[None]:
    """Take hidden sizes that are no multiple of the heads, and one piece of each weight.

    Args:
        values: The dimensions.
    """
    from transformers import PreTrainedConfig

    kinds = [kind for kind in _below(PreTrainedConfig) if "__class_validators__" in vars(kind)]
    validators = {kind: kind.__class_validators__ for kind in kinds}
    chunk, usual = lowrank.CHUNK, nf4_quantization.dequantize_with_tables
    users: tuple[Any, ...] = (nf4, nf4_quantization)

    def one_piece(q: Any, tables: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return _one_piece(q, tables, dtype, values, usual)

    try:
        lowrank.CHUNK = WHOLE
        for module in users:
            module.dequantize_with_tables = one_piece
        for kind, checks in validators.items():
            kind.__class_validators__ = [check for check in checks if check.__name__ != "validate_architecture"]
        yield
    finally:
        lowrank.CHUNK = chunk
        for module in users:
            module.dequantize_with_tables = usual
        for kind, checks in validators.items():
            kind.__class_validators__ = checks


def _one_piece(q: Any, tables: tuple[Tensor, ...], dtype: torch.dtype, values: Mapping[str, int], usual: Any) -> Tensor:
    """Compute one piece of a weight, as `dequantize_with_tables` computes each."""
    if nf4_quantization._arithmetic.left_out:
        return usual(q, tables, dtype)
    pairs, dynamic = tables
    absmax = dynamic.index_select(0, q.absmax.int())
    absmax = nf4_quantization._times_blocks(absmax, q.scales, nf4_quantization.STATISTICS_BLOCK).add_(q.offset)
    piece = _piece(prod(q.shape), values)
    out = torch.empty(prod(q.shape), dtype=dtype, device=q.codes.device)
    made = nf4_quantization._values(q.codes[: piece // 2], absmax[: piece // q.block], pairs, piece, q.block)
    out[:piece] = made
    return out.view(q.shape)


def _piece(count: int, values: Mapping[str, int]) -> int:
    """Return the readable size of a piece of a weight with so many numbers."""
    query = values["K"] * values["G"] * values["D"]
    by_count = {
        values["h"] * query: "x",
        values["h"] * values["K"] * values["D"]: "y" if values["G"] > 1 else "x",
        values["h"] * values["i"]: "z",
    }
    return values[by_count[count]]


def _below(kind: Any) -> Iterator[Any]:
    yield kind
    for child in kind.__subclasses__():
        yield from _below(child)
