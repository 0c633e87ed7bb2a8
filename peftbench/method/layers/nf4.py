"""4-bit NormalFloat (NF4): a frozen linear layer that stores its weight in 4 bits.

QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314. `nf4_quantization` has the format and its rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.devices import has_no_data
from peftbench.errors import UserError, unknown
from peftbench.method.layers import nf4_bitsandbytes
from peftbench.method.layers.nf4_quantization import (
    BLOCK,
    STATISTICS_BLOCK,
    Quantized,
    check_quantizable,
    dequantize,
    dequantize_with_tables,
    quantize,
    stored_bytes,
)
from peftbench.method.layers.nf4_tables import code_table, dynamic_table, pair_table

__all__ = [
    "BACKENDS",
    "BLOCK",
    "STATISTICS_BLOCK",
    "TABLE_BYTES",
    "NF4Linear",
    "Quantized",
    "code_table",
    "dequantize",
    "dynamic_table",
    "pair_table",
    "quantize",
    "stored_bytes",
]

BACKENDS = ("torch", "bitsandbytes")
TABLE_BYTES = 2 * 256 * 4 + 256 * 4  # both lookup tables, which a layer holds in addition to its saved state


class NF4Linear(nn.Module):
    """A frozen linear layer with its weight in 4 bits: y = x W^T + b, with W dequantised for each product.

    Backward dequantises again and does not keep W, so no dense weight lives between the passes. Gradients flow to the
    input and to the bias, if it trains.

    Under autocast, the product and the result have autocast's dtype, as in nn.Linear. Otherwise the product has
    `compute_dtype` (default: the input's dtype), and the result the input's dtype.

    Attributes:
        in_features: Width of the input.
        out_features: Width of the output.
        codes, absmax, scales, offset: The stored tensors; see `Quantized`.
        bias: b (out,) or None.
        dtype: Dtype of `dense_weight`.
        backend: One of `BACKENDS`.
        compute_dtype: Dtype of the product outside autocast.
    """

    STORED = ("codes", "absmax", "scales", "offset")

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
        """Make the layer around stored tensors.

        Args:
            quantized: The weight (out, in), quantised.
            bias: b (out,) or None.
            backend: One of `BACKENDS`.
            compute_dtype: Dtype of the product outside autocast; None for the input's.

        Raises:
            UserError: The backend is unknown.
        """
        super().__init__()
        if backend not in BACKENDS:
            raise unknown("NF4 backend", backend, BACKENDS)
        self.out_features, self.in_features = quantized.shape
        self.block, self.dtype = quantized.block, quantized.dtype
        self.backend, self.compute_dtype = backend, compute_dtype
        for name in self.STORED:
            self.register_buffer(name, getattr(quantized, name))
        self.register_buffer("pairs", pair_table(quantized.codes.device), persistent=False)
        self.register_buffer("dynamic", dynamic_table(quantized.codes.device), persistent=False)
        if bias is None or isinstance(bias, nn.Parameter):
            self.register_parameter("bias", bias)
        else:  # a part of a parameter of the base
            self.register_buffer("bias", bias, persistent=False)

    @classmethod
    def from_dense(
        cls,
        layer: Any,
        backend: str = "torch",
        compute_dtype: torch.dtype | None = None,
        block: int = BLOCK,
        double: bool = True,
    ) -> NF4Linear:
        """Quantise a dense layer.

        The bias parameter is shared with `layer`, not copied; `layer` is not changed.

        Args:
            layer: An nn.Linear, or a layer with `dense_weight()` (out, in) and `bias`.
            backend: One of `BACKENDS`.
            compute_dtype: Dtype of the product outside autocast; None for the input's.
            block: Weights that share one absmax.
            double: Whether to quantise the absmax too.

        Raises:
            UserError: The backend is unknown or does not support this layer, or the weight cannot be quantised.
        """
        if backend not in BACKENDS:
            raise unknown("NF4 backend", backend, BACKENDS)
        weight = (layer.dense_weight() if hasattr(layer, "dense_weight") else layer.weight).detach()
        if backend == "torch":
            return cls(quantize(weight, block, double), layer.bias, backend, compute_dtype)
        check_quantizable(weight, block)
        if has_no_data(weight):
            raise UserError("NF4 backend 'bitsandbytes' cannot run on meta or fake tensors; use backend 'torch'")
        parts = nf4_bitsandbytes.quantize(weight, block, STATISTICS_BLOCK, double)
        return cls(Quantized(*parts, tuple(weight.shape), weight.dtype, block), layer.bias, backend, compute_dtype)

    @property
    def quantized(self) -> Quantized:
        """The stored tensors themselves, not copies."""
        shape = (self.out_features, self.in_features)
        return Quantized(self.codes, self.absmax, self.scales, self.offset, shape, self.dtype, self.block)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the saved state: codes, statistics, bias."""
        return self.quantized.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def is_dense(self) -> bool:
        """Whether the output is exactly the product with `dense_weight` in the input's dtype; see `SiteLinear`."""
        return self.backend == "torch" and self.compute_dtype is None

    @property
    def weight(self) -> Tensor:  # (out, in)
        """The dequantised weight (out, in), for networks that read it instead of calling the layer."""
        return self.dense_weight()

    @torch.no_grad()
    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:  # (out, in)
        """Return the dequantised weight (out, in), in `dtype` or the layer's own."""
        return dequantize_with_tables(self.quantized, (self.pairs, self.dynamic), dtype or self.dtype)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        """Return x W^T + b.

        Args:
            x: (..., in).

        Returns:
            (..., out).
        """
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
        """Return the layer's sizes and backend for its repr."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, backend={self.backend}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NF4Linear:
        """Move like any module. A cast (`.to(bfloat16)`) changes only `dtype`; the statistics stay float32."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=before["codes"].device)).dtype  # type: ignore[union-attr]
        return self


@torch.compiler.disable  # inductor fails on the table lookups, so the graph breaks here
def _linear(x: Tensor, bias: Tensor | None, layout: tuple[tuple[int, int], int], *stored: Tensor) -> Tensor:
    return _Linear.apply(x, bias, layout, *stored)


class _Linear(torch.autograd.Function):
    """x W^T + b, saving only the 4-bit tensors themselves, never W."""

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
    return dequantize_with_tables(
        Quantized(codes, absmax, scales, offset, layout[0], dtype, layout[1]), tuple(tables), dtype
    )
