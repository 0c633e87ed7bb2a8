"""Frozen linear layers scaled by trained vectors: fused forward and backward that allocate no extra tensors.

    IA3, scaled output:  y = l (W x + b)            l (out,)
    IA3, scaled input:   y = W (l x) + b            l (in,)
    VeRA:                y = W x + b + c B d A x    d (r,), c (out,); A (r, in), B (out, r) frozen

x (..., in), W (out, in), b (out,). Autograd on these formulas allocates, and keeps, a tensor as large as x or y for
every product. A vector can instead multiply the weight, which is smaller than a batch: W l, and W + c B d A. Their
gradients are, with h = dy W and G = dy^T x,

    scaled input:  dx = h l           dl = sum over the rows of h x
    VeRA:          dx = dy (W + c B d A)    dc = rows of (B d A) . G    dd = rows of ((c B)^T G) . A

so that no product of VeRA is as large as batch times r.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftbench.method.layers.lowrank import dense, dot_rows, product_dtype


def scaled_output(x: Tensor, base: Any, l: Tensor) -> Tensor:  # noqa: E741
    """Return l (W x + b), in autocast's dtype under autocast, else in the dtype of x.

    Args:
        x: (..., in).
        base: A layer that `lowrank.fits`.
        l: (out,).

    Returns:
        (..., out).
    """
    return _ScaledOutput.apply(x, l, base)


def scaled_input(x: Tensor, base: Any, l: Tensor) -> Tensor:  # noqa: E741
    """Return W (l x) + b, in autocast's dtype under autocast, else in the dtype of x.

    Args:
        x: (..., in).
        base: A layer that `lowrank.fits`.
        l: (in,).

    Returns:
        (..., out).
    """
    return _ScaledInput.apply(x, l, base)


def vera(x: Tensor, base: Any, d: Tensor, c: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Return W x + b + c B d A x. Use it where it `pays`.

    Args:
        x: (..., in).
        base: A layer that `lowrank.fits`.
        d: (r,), trained.
        c: (out,), trained.
        A: (r, in), frozen.
        B: (out, r), frozen.

    Returns:
        (..., out).
    """
    return _VeRA.apply(x, d, c, A, B, base)


def pays(x: Tensor, A: Tensor, B: Tensor) -> bool:
    """Whether computing c B d A (out, in) takes fewer operations for this batch, and adding it to W loses no precision.

    In addition to the frozen layer, a step takes 2 n r (in + out) products through the rank, or n in out + 4 r in out
    through the weight, for n rows of x.
    """
    (r, inside), outside = A.shape, len(B)
    n = x.numel() // inside
    through_weight, through_rank = (n + 4 * r) * inside * outside, 2 * n * r * (inside + outside)
    return product_dtype(x) == x.dtype == A.dtype and through_weight < through_rank


class _ScaledOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, l: Tensor, base: Any) -> Tensor:  # noqa: E741
        dtype = product_dtype(x)
        y = F.linear(x.to(dtype), *dense(base, dtype))
        ctx.save_for_backward(y, l)
        ctx.base, ctx.dtype = base, x.dtype
        return y * l.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, l = ctx.saved_tensors  # noqa: E741
        dx = dl = None
        if ctx.needs_input_grad[0]:
            W, _ = dense(ctx.base, dy.dtype)
            dx = (dy @ (W * l.to(dy.dtype).unsqueeze(1))).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            dl = dot_rows(dy, y, l.dtype)
        return dx, dl, None


class _ScaledInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, l: Tensor, base: Any) -> Tensor:  # noqa: E741
        dtype = product_dtype(x)
        W, b = dense(base, dtype)
        ctx.save_for_backward(x, l)
        ctx.base = base
        if x.numel() > W.numel():
            return F.linear(x.to(dtype), W * l.to(dtype), b)
        return F.linear((x * l.to(x.dtype)).to(dtype), W, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, l = ctx.saved_tensors  # noqa: E741
        W, _ = dense(ctx.base, dy.dtype)
        h = dy @ W  # (..., in)
        dl = dot_rows(h, x, l.dtype) if ctx.needs_input_grad[1] else None
        dx = h.mul_(l.to(h.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        return dx, dl, None


class _VeRA(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor, c: Tensor, A: Tensor, B: Tensor, base: Any) -> Tensor:
        W, b = dense(base, x.dtype)
        ctx.save_for_backward(x, d, c, A, B)
        ctx.base = base
        return F.linear(x, _updated(W, d, c, A, B), b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, d, c, A, B = ctx.saved_tensors
        needs_x, needs_d, needs_c, *_ = ctx.needs_input_grad
        dx = dd = dc = None
        if needs_x:
            dx = dy @ _updated(dense(ctx.base, dy.dtype)[0], d, c, A, B)
        G = dy.flatten(0, -2).t() @ x.flatten(0, -2)  # (out, in)
        left = (B * c.unsqueeze(1)).t() @ G if needs_d else None  # (r, in)
        if left is not None:
            dd = left.mul_(A).sum(1)
        if needs_c:
            dc = ((B * d) @ A).mul_(G).sum(1)
        return dx, dd, dc, None, None, None


def _updated(W: Tensor, d: Tensor, c: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Return W + c B d A, (out, in)."""
    return torch.addmm(W, B * d * c.unsqueeze(1), A)
