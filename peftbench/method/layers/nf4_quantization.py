"""4-bit NormalFloat (NF4): quantising tensors to it and back.

QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3 and appendix E:

    w ~ table[code] * absmax        code: 4 bits per weight, two to a byte; absmax: one float32 per block of 64 weights
    absmax ~ dynamic[byte] * scale + offset     double quantisation: one byte per block, one scale per 256 blocks

The table's 16 values are quantiles of N(0, 1), scaled to [-1, 1]: seven below zero, eight above, zero itself exact.
Layout, tie rules and rounding follow bitsandbytes, so that codes, absmax and dequantised values equal its own bit for
bit. Tests compare the two and explain why a doubly quantised absmax may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from peftbench.backbones.devices import has_no_data
from peftbench.errors import UserError
from peftbench.method.layers.nf4_tables import code_table, dynamic_table, pair_table
from peftbench.method.layers.pieces import pieces

BLOCK = 64  # weights that share one absmax
STATISTICS_BLOCK = 256  # absmax values that share one scale
_SMALLEST = 1e-38  # lower bound of absmax in divisions, so that a block of zeros stays zero
_CHUNK = 1 << 24  # weights processed at once; bounds the temporaries of large layers


@dataclass(frozen=True)
class Quantized:
    """A tensor of any shape in 4 bits per value, in row-major order.

    Attributes:
        codes: uint8 (ceil(n / 2),); the first of two values is in the high half of the byte.
        absmax: float32 (blocks,), or uint8 (blocks,) with double quantisation.
        scales: float32 (ceil(blocks / 256),) with double quantisation, else None.
        offset: float32 () with double quantisation, else None.
        shape: Shape of the tensor.
        dtype: Dtype of the original tensor.
        block: Values that share one absmax.
    """

    codes: Tensor  # uint8 (ceil(n / 2),)
    absmax: Tensor
    scales: Tensor | None
    offset: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype  # of the original
    block: int = BLOCK

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors; equal to `stored_bytes` of the same size."""
        return sum(t.nbytes for t in (self.codes, self.absmax, self.scales, self.offset) if t is not None)


def stored_bytes(count: int, block: int = BLOCK, double: bool = True) -> int:
    """Return the bytes of `count` values: codes and statistics (4.127 bits per value with double quantisation).

    Args:
        count: Number of values.
        block: Values that share one absmax.
        double: Whether the absmax is quantised too.
    """
    blocks = ceil(count / block)
    statistics = blocks + 4 * ceil(blocks / STATISTICS_BLOCK) + 4 if double else 4 * blocks
    return ceil(count / 2) + statistics


def quantize(weight: Tensor, block: int = BLOCK, double: bool = True) -> Quantized:
    """Round every value to the nearest code of its block; a value halfway between two codes takes the lower one.

    Works on meta and fake tensors too, for shapes and sizes.

    Args:
        weight: Tensor of any shape.
        block: Values that share one absmax; a positive even number.
        double: Whether to quantise the absmax too.

    Returns:
        The quantised tensor.

    Raises:
        UserError: The tensor is empty, not floating-point or not finite, or the block size is invalid.
    """
    check_quantizable(weight, block)
    if has_no_data(weight):
        return _without_data(weight, block, double)
    flat = weight.detach().reshape(-1)
    codes = torch.empty(ceil(flat.numel() / 2), dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(ceil(flat.numel() / block), dtype=torch.float32, device=flat.device)
    table = code_table(flat.device)
    bounds = (table[:-1] + table[1:]) / 2
    step = max(_CHUNK // block, 1) * block
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step].float()
        scaled, statistics = _scaled(part, block)
        packed = _pack(torch.bucketize(scaled, bounds, out_int32=True))
        codes[start // 2 : start // 2 + packed.numel()] = packed
        absmax[start // block : start // block + statistics.numel()] = statistics
    if not bool(absmax.isfinite().all()):
        raise UserError("cannot quantise a weight with values that are infinite or not a number; check the checkpoint")
    shape, dtype = tuple(weight.shape), weight.dtype
    if not double:
        return Quantized(codes, absmax, None, None, shape, dtype, block)
    offset = absmax.mean()
    scaled, scales = _scaled(absmax - offset, STATISTICS_BLOCK)
    dynamic = dynamic_table(flat.device)
    bytes_ = torch.bucketize(scaled, (dynamic[:-1] + dynamic[1:]) / 2, out_int32=True).to(torch.uint8)
    return Quantized(codes, bytes_, scales, offset, shape, dtype, block)


def _without_data(weight: Tensor, block: int, double: bool) -> Quantized:
    """Return the tensors of a quantised weight that has a shape only: the arithmetic on large ones takes seconds."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=weight.device)

    blocks, shape = ceil(weight.numel() / block), tuple(weight.shape)
    codes = empty(ceil(weight.numel() / 2), dtype=torch.uint8)
    if not double:
        return Quantized(codes, empty(blocks), None, None, shape, weight.dtype, block)
    scales, offset = empty(ceil(blocks / STATISTICS_BLOCK)), empty()
    return Quantized(codes, empty(blocks, dtype=torch.uint8), scales, offset, shape, weight.dtype, block)


def dequantize(q: Quantized, dtype: torch.dtype | None = None) -> Tensor:
    """Return the dense tensor: products in float32, rounded once to `dtype` (default: the original's)."""
    tables = pair_table(q.codes.device), dynamic_table(q.codes.device)
    return dequantize_with_tables(q, tables, dtype or q.dtype)


def dequantize_with_tables(q: Quantized, tables: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """Return the dense tensor, with lookup tables that already exist.

    Args:
        q: The quantised tensor.
        tables: Results of `pair_table` and `dynamic_table` on its device.
        dtype: Dtype of the result.

    Returns:
        A tensor of `q.shape`.
    """
    if _arithmetic.left_out and has_no_data(q.codes):
        return torch.empty(q.shape, dtype=dtype, device=q.codes.device)
    pairs, dynamic = tables
    absmax = q.absmax
    if q.scales is not None and q.offset is not None:
        absmax = _times_blocks(dynamic.index_select(0, absmax.int()), q.scales, STATISTICS_BLOCK).add_(q.offset)
    count = prod(q.shape)
    step = max(_CHUNK // q.block, 1) * q.block
    if count <= step:
        return _values(q.codes, absmax, pairs, count, q.block).to(dtype).view(q.shape)
    out = torch.empty(count, dtype=dtype, device=q.codes.device)
    for part in pieces(count, step, q.codes):
        start, stop = part.start, part.stop
        statistics = absmax[start // q.block : ceil(stop / q.block)]
        out[part] = _values(q.codes[start // 2 : ceil(stop / 2)], statistics, pairs, stop - start, q.block)
    return out.view(q.shape)


class _Arithmetic:
    """Whether tensors without data are dequantised by every operation, whose memory counts, or by their shape alone."""

    left_out = False


_arithmetic = _Arithmetic()


@contextmanager
def by_shape_alone() -> Iterator[None]:
    """Dequantise tensors without data at once: for a step whose memory is not tracked."""
    before, _arithmetic.left_out = _arithmetic.left_out, True
    try:
        yield
    finally:
        _arithmetic.left_out = before


def _values(codes: Tensor, absmax: Tensor, pairs: Tensor, count: int, block: int) -> Tensor:
    """Return the first `count` values of `codes`, float32 (count,)."""
    values = pairs.index_select(0, codes.int()).view(torch.float32)[:count]
    return _times_blocks(values, absmax, block)


def _times_blocks(values: Tensor, factors: Tensor, block: int) -> Tensor:
    """Multiply each block of `values` by its factor, in place; the last block may be short."""
    full = values.numel() // block
    values[: full * block].view(full, block).mul_(factors[:full, None])
    if full < factors.numel():
        values[full * block :].mul_(factors[full])
    return values


def _scaled(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return the values over their block's absmax, in [-1, 1], and the absmax (blocks,).

    Full blocks are multiplied by the reciprocal, and a short last block is divided, like bitsandbytes on the CPU. The
    choice affects the last bit, and so occasionally a code.
    """
    full = values.numel() // block
    whole = values[: full * block].view(full, block)
    absmax = whole.abs().amax(1) if full else values.new_empty(0)
    scaled = (whole * (1.0 / absmax.clamp(min=_SMALLEST))[:, None]).clamp_(-1, 1).view(-1)
    if full * block == values.numel():
        return scaled, absmax
    rest = values[full * block :]
    largest = rest.abs().amax()
    tail = (rest / largest.clamp(min=_SMALLEST)).clamp_(-1, 1)
    return torch.cat([scaled, tail]), torch.cat([absmax, largest[None]])


def _pack(indices: Tensor) -> Tensor:
    """Pack two codes per byte, the first in the high half; an odd end is padded with the code of zero."""
    small = indices.to(torch.uint8)
    if small.numel() % 2:
        small = F.pad(small, (0, 1), value=7)
    return (small[::2] << 4) | small[1::2]


def check_quantizable(weight: Tensor, block: int) -> None:
    """Raise `UserError` unless the tensor and the block size can be quantised."""
    if not weight.is_floating_point() or weight.numel() == 0:
        given = f"{weight.dtype} of shape {tuple(weight.shape)}"
        raise UserError(f"NF4 quantises floating-point tensors with at least one value, not {given}")
    if block <= 0 or block % 2:
        raise UserError(f"NF4 block size {block}: give a positive even number, such as {BLOCK}")
