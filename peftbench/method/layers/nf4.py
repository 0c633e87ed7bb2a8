"""4-bit NormalFloat (NF4): quantised storage of frozen weights, and the linear layer that computes with it.

QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3 and appendix E:

    w ~ table[code] * absmax        code: 4 bits a weight, two to a byte; absmax: one float32 a block of 64 weights
    absmax ~ dynamic[byte] * scale + offset     double quantisation: one byte a block, one scale per 256 blocks

The table's 16 values are quantiles of N(0, 1), scaled to [-1, 1]: seven below zero, eight above, zero itself exact.
Layout, tie rules and rounding follow bitsandbytes, so that codes, absmax and dequantised values are its own, bit for
bit; the tests hold the two against each other and say why doubly quantised absmax may differ. It is optional here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from peftbench.errors import UserError, unknown
from peftbench.method.layers import nf4_bitsandbytes
from peftbench.method.layers.nf4_tables import code_table, dynamic_table, pair_table

BLOCK = 64  # weights that share one absmax
STATISTICS_BLOCK = 256  # absmax values that share one scale
BACKENDS = ("torch", "bitsandbytes")
TABLE_BYTES = 2 * 256 * 4 + 256 * 4  # what a layer holds beside its stored bytes: both lookup tables, never saved
_SMALLEST = 1e-38  # absmax is raised to this before division, so that a block of zeros stays zero
_CHUNK = 1 << 24  # weights worked on at once; bounds the temporaries of large layers


@dataclass(frozen=True)
class Quantized:
    """A tensor of any shape in 4 bits a value.

    Row-major order; the first of two values is in a byte's high half. Statistics come in one of two forms: `absmax`
    float32 (blocks,), `scales` and `offset` None; or doubly quantised, `absmax` uint8 (blocks,), `scales` float32
    (ceil(blocks / 256),), `offset` float32 ().
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
        """Bytes of the tensors; equal to `stored_bytes` of the same size."""
        return sum(t.nbytes for t in (self.codes, self.absmax, self.scales, self.offset) if t is not None)


def stored_bytes(count: int, block: int = BLOCK, double: bool = True) -> int:
    """Bytes that `count` values take: codes and statistics (4.127 bits a value with double quantisation)."""
    blocks = ceil(count / block)
    statistics = blocks + 4 * ceil(blocks / STATISTICS_BLOCK) + 4 if double else 4 * blocks
    return ceil(count / 2) + statistics


def quantize(weight: Tensor, block: int = BLOCK, double: bool = True) -> Quantized:
    """Round every value to the nearest code of its block; a value halfway between two takes the lower.

    Runs on meta and fake tensors too, for shapes and sizes. Raises UserError for a tensor that is empty, not
    floating-point or not finite, and for a block size that is not a positive even number.
    """
    _check(weight, block)
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
    if not _abstract(weight) and not bool(absmax.isfinite().all()):
        raise UserError("cannot quantise a weight with values that are infinite or not a number; check the checkpoint")
    shape, dtype = tuple(weight.shape), weight.dtype
    if not double:
        return Quantized(codes, absmax, None, None, shape, dtype, block)
    offset = absmax.mean()
    scaled, scales = _scaled(absmax - offset, STATISTICS_BLOCK)
    dynamic = dynamic_table(flat.device)
    bytes_ = torch.bucketize(scaled, (dynamic[:-1] + dynamic[1:]) / 2, out_int32=True).to(torch.uint8)
    return Quantized(codes, bytes_, scales, offset, shape, dtype, block)


def dequantize(q: Quantized, dtype: torch.dtype | None = None) -> Tensor:
    """The dense tensor of `q.shape`: products in float32, rounded once to `dtype` (default: the original's)."""
    tables = pair_table(q.codes.device), dynamic_table(q.codes.device)
    return _dequantize(q, tables, dtype or q.dtype)


class NF4Linear(nn.Module):
    """A frozen linear layer whose weight is kept in 4 bits; y = x W^T + b with W dequantised for each product.

    Backward dequantises again instead of keeping W, so between the passes no dense weight is alive. Gradients flow to
    the input and, where it trains, the bias. The product runs in autocast's dtype under autocast (and stays in it, as
    nn.Linear's does), else in `compute_dtype` with the result in the input's dtype, else in the input's dtype.
    """

    codes: Tensor
    absmax: Tensor
    scales: Tensor | None
    offset: Tensor | None
    pairs: Tensor
    dynamic: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        quantized: Quantized,
        bias: nn.Parameter | None = None,
        backend: str = "torch",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise unknown("NF4 backend", backend, BACKENDS)
        self.out_features, self.in_features = quantized.shape
        self.block, self.dtype = quantized.block, quantized.dtype
        self.backend, self.compute_dtype = backend, compute_dtype
        for name in ("codes", "absmax", "scales", "offset"):
            self.register_buffer(name, getattr(quantized, name))
        self.register_buffer("pairs", pair_table(quantized.codes.device), persistent=False)
        self.register_buffer("dynamic", dynamic_table(quantized.codes.device), persistent=False)
        self.register_parameter("bias", bias)

    @classmethod
    def from_dense(
        cls,
        layer: Any,
        backend: str = "torch",
        compute_dtype: torch.dtype | None = None,
        block: int = BLOCK,
        double: bool = True,
    ) -> NF4Linear:
        """Quantise a dense layer: an nn.Linear, or whatever offers `dense_weight()` (out, in) and `bias`.

        The bias parameter is shared with `layer`, not copied; `layer` is left as it is.
        """
        if backend not in BACKENDS:
            raise unknown("NF4 backend", backend, BACKENDS)
        weight = (layer.dense_weight() if hasattr(layer, "dense_weight") else layer.weight).detach()
        if backend == "torch":
            return cls(quantize(weight, block, double), layer.bias, backend, compute_dtype)
        _check(weight, block)
        if _abstract(weight):
            raise UserError("NF4 backend 'bitsandbytes' cannot run on meta or fake tensors; use backend 'torch'")
        parts = nf4_bitsandbytes.quantize(weight, block, STATISTICS_BLOCK, double)
        return cls(Quantized(*parts, tuple(weight.shape), weight.dtype, block), layer.bias, backend, compute_dtype)

    @property
    def quantized(self) -> Quantized:
        """The stored tensors as they are, no copies."""
        shape = (self.out_features, self.in_features)
        return Quantized(self.codes, self.absmax, self.scales, self.offset, shape, self.dtype, self.block)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the saved state: codes, statistics, bias."""
        return self.quantized.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def is_dense(self) -> bool:
        """Whether the product is that of `dense_weight` in the input's dtype, and no other kernel's."""
        return self.backend == "torch" and self.compute_dtype is None

    @torch.no_grad()
    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:  # (out, in)
        """The dequantised weight, in the layer's dtype unless told."""
        return _dequantize(self.quantized, (self.pairs, self.dynamic), dtype or self.dtype)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        dtype = self.compute_dtype or x.dtype
        result = x.dtype
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:  # nn.Linear's rule
            dtype = result = torch.get_autocast_dtype(device)
        bias = None if self.bias is None else self.bias.to(dtype)
        if self.backend == "bitsandbytes":
            return nf4_bitsandbytes.linear(x.to(dtype), self, bias, STATISTICS_BLOCK).to(result)
        q = self.quantized
        tensors = (q.codes, q.absmax, q.scales, q.offset, self.pairs, self.dynamic)
        return _linear(x.to(dtype), bias, (q.shape, q.block), *tensors).to(result)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, backend={self.backend}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NF4Linear:
        """Moves like any module, but a cast (`.to(bfloat16)`) changes `dtype` only: statistics stay float32."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=before["codes"].device)).dtype  # type: ignore[union-attr]
        return self


@torch.compiler.disable  # inductor fails on the table look-ups; the graph breaks here and goes on behind
def _linear(x: Tensor, bias: Tensor | None, layout: tuple[tuple[int, int], int], *stored: Tensor) -> Tensor:
    return _Linear.apply(x, bias, layout, *stored)


class _Linear(torch.autograd.Function):
    """x W^T + b, saving only the 4-bit tensors; not a copy of them, and never W."""

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, layout: tuple[tuple[int, int], int], *stored: Tensor) -> Tensor:
        return F.linear(x, _from_parts(stored, layout, x.dtype), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.layout, *stored = inputs
        ctx.save_for_backward(*stored)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_input, to_bias, *rest = ctx.needs_input_grad
        grad_x = grad @ _from_parts(ctx.saved_tensors, ctx.layout, grad.dtype) if to_input else None
        grad_bias = grad.flatten(0, -2).sum(0) if to_bias else None
        return grad_x, grad_bias, *(None for _ in rest)


def _from_parts(stored: tuple[Tensor, ...], layout: tuple[tuple[int, int], int], dtype: torch.dtype) -> Tensor:
    codes, absmax, scales, offset, *tables = stored
    return _dequantize(Quantized(codes, absmax, scales, offset, layout[0], dtype, layout[1]), tuple(tables), dtype)


def _dequantize(q: Quantized, tables: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    pairs, dynamic = tables
    absmax = q.absmax
    if q.scales is not None and q.offset is not None:
        absmax = _times_blocks(dynamic.index_select(0, absmax.int()), q.scales, STATISTICS_BLOCK).add_(q.offset)
    count = prod(q.shape)
    step = max(_CHUNK // q.block, 1) * q.block
    if count <= step:
        return _values(q.codes, absmax, pairs, count, q.block).to(dtype).view(q.shape)
    out = torch.empty(count, dtype=dtype, device=q.codes.device)
    for start in range(0, count, step):
        stop = min(start + step, count)
        statistics = absmax[start // q.block : ceil(stop / q.block)]
        out[start:stop] = _values(q.codes[start // 2 : ceil(stop / 2)], statistics, pairs, stop - start, q.block)
    return out.view(q.shape)


def _values(codes: Tensor, absmax: Tensor, pairs: Tensor, count: int, block: int) -> Tensor:
    """The first `count` values of `codes`, float32 (count,)."""
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
    """Values over their block's absmax, in [-1, 1], and the absmax (blocks,).

    Full blocks are multiplied by the reciprocal and a short last block is divided: which of the two decides the last
    bit, and with it a code now and then; this is bitsandbytes' choice on the CPU.
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
    """Two codes a byte, the first in the high half; an odd end is filled with the code of zero."""
    small = indices.to(torch.uint8)
    if small.numel() % 2:
        small = F.pad(small, (0, 1), value=7)
    return (small[::2] << 4) | small[1::2]


def _check(weight: Tensor, block: int) -> None:
    if not weight.is_floating_point() or weight.numel() == 0:
        given = f"{weight.dtype} of shape {tuple(weight.shape)}"
        raise UserError(f"NF4 quantises floating-point tensors with at least one value, not {given}")
    if block <= 0 or block % 2:
        raise UserError(f"NF4 block size {block}: give a positive even number, such as {BLOCK}")


def _abstract(weight: Tensor) -> bool:
    return weight.is_meta or isinstance(weight, FakeTensor)
