"""The optional bitsandbytes backend of the 4-bit layer; the package is imported only if it is used.

Codes, absmax and their layout equal those of `nf4.quantize`, so a layer's stored tensors do not depend on its backend.
The exception is the doubly quantised absmax on the CPU. There bitsandbytes looks its byte up in a grid of 65,536 steps,
and a value within half a step of the middle of two bytes may get the farther one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from peftbench.errors import UserError
from peftbench.method.layers.nf4_tables import dynamic_table

Parts = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # codes, absmax, scales, offset


class Stored(Protocol):
    """A linear layer's weight (out_features, in_features) in 4 bits, as `nf4.NF4Linear` keeps it."""

    out_features: int
    in_features: int
    block: int  # weights that share one absmax
    codes: Tensor  # uint8 (ceil(out_features * in_features / 2),)
    absmax: Tensor  # float32 (blocks,), or uint8 where it is quantised itself
    scales: Tensor | None  # float32 (ceil(blocks / 256),); None without double quantisation
    offset: Tensor | None  # float32 ()
    pairs: Tensor  # int64 (256,), `nf4_tables.pair_table`
    dynamic: Tensor  # float32 (256,), `nf4_tables.dynamic_table`


def library() -> Any:
    """Import bitsandbytes.

    Raises:
        UserError: It is not installed; the message names the alternative.
    """
    try:
        return import_module("bitsandbytes")
    except ImportError as reason:
        raise UserError(
            f"NF4 backend 'bitsandbytes' needs the package bitsandbytes ({reason}); install it or use backend 'torch'"
        ) from reason


def quantize(weight: Tensor, block: int, statistics_block: int, double: bool) -> Parts:
    """Compute with bitsandbytes what `nf4.quantize` stores.

    Args:
        weight: (out, in).
        block: Weights that share one absmax.
        statistics_block: Absmax values that share one scale.
        double: Whether to quantise the absmax too.

    Returns:
        Codes, absmax, scales and offset; the last two are None without double quantisation.

    Raises:
        UserError: bitsandbytes does not support this device, shape or block size.
    """
    functional = library().functional
    _check_rows(weight.shape[-1], block, weight.device)
    try:
        codes, state = functional.quantize_4bit(weight.contiguous(), blocksize=block, quant_type="nf4")
    except ValueError as reason:
        raise UserError(f"NF4 backend 'bitsandbytes': {reason}; backend 'torch' has no such limit") from reason
    if not double:
        return codes.view(-1), state.absmax, None, None
    offset = state.absmax.mean()
    table = dynamic_table(weight.device)
    small, second = functional.quantize_blockwise(state.absmax - offset, code=table, blocksize=statistics_block)
    return codes.view(-1), small, second.absmax, offset


def linear(x: Tensor, layer: Stored, bias: Tensor | None, statistics_block: int) -> Tensor:
    """Return x W^T + b; backward dequantises again. The library's state is built from the layer's buffers at each call.

    Args:
        x: (..., in).
        layer: The 4-bit layer.
        bias: (out,) or None.
        statistics_block: Absmax values that share one scale.

    Returns:
        (..., out).

    Raises:
        UserError: bitsandbytes does not support this dtype or shape.
    """
    if x.dtype == torch.float64:
        raise UserError("NF4 backend 'bitsandbytes' computes in 16 or 32 bits, not float64; use backend 'torch'")
    _check_rows(layer.in_features, layer.block, x.device)
    state = library().functional.QuantState
    second = None
    if layer.scales is not None:
        second = state(layer.scales, code=layer.dynamic, blocksize=statistics_block, dtype=torch.float32)
    first = state(
        layer.absmax,
        shape=torch.Size((layer.out_features, layer.in_features)),
        code=layer.pairs.view(torch.float32)[1:32:2].contiguous(),  # the 16 values, without a copy from the host
        blocksize=layer.block,
        quant_type="nf4",
        dtype=x.dtype,
        offset=layer.offset,
        state2=second,
    )
    return library().matmul_4bit(x, layer.codes.view(-1, 1), quant_state=first, bias=bias)


def _check_rows(length: int, block: int, device: torch.device) -> None:
    """Raise `UserError` if bitsandbytes' AVX512 kernel would be wrong.

    The kernel assumes that every row starts a new block; other shapes give wrong values without an error (0.50).
    """
    if device.type == "cpu" and length % block:
        raise UserError(
            f"NF4 backend 'bitsandbytes' is wrong on the CPU for rows of {length} weights, not a multiple of the block "
            f"of {block}; use backend 'torch'"
        )
