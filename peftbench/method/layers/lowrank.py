"""A frozen linear layer with a low-rank update: fused forward and backward that allocate no extra tensors.

    y = g (W x + s B A x) + b       x (..., in), W (out, in), A (r, in), B (out, r), b (out,); s a number
    g = m / ||W + s B A||           m (out,), the norm of each row, constant in the gradient; without m, g = 1

Autograd on the plain formula computes the same, but makes and reads a full-size tensor for each of its operations. Here
one output is allocated and added into. For backward it keeps x, the activation s A x (..., r) and, with m, y. It does
not keep W, which is frozen; so no dense copy of a 4-bit layer lives between the passes. With h = g dy:

    dx = h W + s h B A    dA = s (h B)^T x    dB = h^T (s A x)    dm = sum over the rows of dy (y - b), over m

In a dtype narrower than that of m, y - b would lose what a large b has rounded off y. The product y - b is kept then,
and b is added to a copy.

g scales the smaller of weight and output. The norm needs no W + s B A. The square of each row's norm is ||W||^2, which
is constant, + 2 s <B, W A^T> + s^2 <B, B A A^T>.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftbench.method.layers.pieces import pieces

ROWS = 128  # rows multiplied at once in `dot_rows`
CHUNK = 1 << 20  # weights cast at once, if the norm's products need a wider dtype than W has


def fits(base: Any) -> bool:
    """Whether `base` computes exactly x W^T + b with W from its `dense_weight`, and is frozen.

    A layer states the former with ``is_dense`` (backbones/modules.py). An adapter, or a layer with its own kernel, has
    no such attribute.
    """
    return getattr(base, "is_dense", False) and not any(p.requires_grad for p in base.parameters(recurse=False))


def linear(
    x: Tensor, base: Any, A: Tensor, B: Tensor, scale: float, m: Tensor | None = None, squares: Tensor | None = None
) -> Tensor:
    """Return y of a frozen base with a low-rank update; gradients flow to x, A, B and m.

    The result has autocast's dtype under autocast, else the dtype of x.

    Args:
        x: (..., in).
        base: A layer that `fits`.
        A: (r, in).
        B: (out, r).
        scale: s.
        m: Magnitudes (out,); None for g = 1.
        squares: ||W||^2 of each row (out,); needed with m.

    Returns:
        y (..., out).
    """
    return _LowRank.apply(x, A, B, m, scale, base, squares)


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, m: Tensor | None, scale: float, base: Any, squares: Tensor | None
    ) -> Tensor:
        dtype = product_dtype(x)
        rows = x.to(dtype).reshape(-1, x.shape[-1])  # (n, in)
        W, b = dense(base, dtype)
        down = F.linear(rows, A.to(dtype)).mul_(scale)  # (n, r)
        if m is None or squares is None:
            y = F.linear(rows, W, b).addmm_(down, B.to(dtype).t())
            ctx.save_for_backward(rows, down, A, B)
        else:
            g = (m / _norm(W, A, B, scale, squares)).to(dtype)
            late = b if is_narrower(dtype, m) else None  # the bias, if it is added to a copy
            b = None if late is not None else b
            if _weight_is_smaller(W, rows):
                y = F.linear(rows, g[:, None] * W, b).addmm_(down, (g[:, None] * B).to(dtype).t())
            else:
                y = F.linear(rows, W).addmm_(down, B.to(dtype).t())
                y = y.mul_(g) if b is None else torch.addcmul(b, y, g, out=y)
            ctx.save_for_backward(rows, down, A, B, m, g, y)
            y = y if late is None else y + late
        ctx.scale, ctx.base, ctx.shape, ctx.dtype = scale, base, x.shape, x.dtype
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, down, A, B, *more = ctx.saved_tensors
        needs_x, needs_A, needs_B, needs_m, *_ = ctx.needs_input_grad
        dy = dy.reshape(-1, dy.shape[-1])  # (n, out)
        W, b = dense(ctx.base, dy.dtype)
        dx = dA = dB = dm = after = None
        if more:
            m, g, y = more
            dm = _magnitude_gradient(dy, y, None if is_narrower(y.dtype, m) else b, m) if needs_m else None
            if _weight_is_smaller(W, rows):
                after = g[:, None].to(B.dtype)
                W, B = g[:, None] * W, after * B
            else:
                dy = dy * g
        up = F.linear(dy, B.to(dy.dtype).t().contiguous()).mul_(ctx.scale)  # s h B, (n, r)
        if needs_x:
            dx = (dy @ W).addmm_(up, A.to(dy.dtype)).view(ctx.shape).to(ctx.dtype)
        if needs_A:
            dA = (up.t() @ rows).to(A.dtype)
        if needs_B:  # (r, n) (n, out): several times faster on the CPU than the transposed product
            dB = (down.t() @ dy).t().to(B.dtype)
            dB = dB if after is None else dB.mul_(after)
        return dx, dA, dB, dm, None, None, None


@torch.no_grad()
def norms(base: Any, dtype: torch.dtype) -> Tensor:
    """Return ||W|| of each row, (out,), in `dtype`."""
    W = base.dense_weight()
    found = torch.empty(len(W), dtype=dtype, device=W.device)
    for rows in pieces(len(W), _step(W, dtype), W):
        found[rows] = torch.linalg.vector_norm(W[rows].to(dtype), dim=1)
    return found


def _norm(W: Tensor, A: Tensor, B: Tensor, scale: float, squares: Tensor) -> Tensor:
    """Return ||W + s B A|| of each row, (out,), in the dtype of A."""
    if W.dtype == A.dtype:
        crossed = F.linear(W, A)  # W A^T, (out, r)
    else:
        crossed = torch.empty(len(W), len(A), dtype=A.dtype, device=A.device)
        for rows in pieces(len(W), _step(W, A.dtype), W):
            crossed[rows] = F.linear(W[rows].to(A.dtype), A)
    crossed = torch.addmm(crossed, B, A @ A.t(), beta=2, alpha=scale)
    squared = torch.add(squares, torch.linalg.vecdot(B, crossed), alpha=scale)
    return squared.clamp_(min=torch.finfo(A.dtype).tiny).sqrt_()  # zero for a row of zeros; rounding may go below it


def _weight_is_smaller(W: Tensor, rows: Tensor) -> bool:
    """Whether the weight has fewer numbers (out * in) than the output (n * out)."""
    return W.shape[1] < len(rows)


def is_narrower(dtype: torch.dtype, m: Tensor) -> bool:
    """Whether `dtype` has fewer digits than the magnitudes have."""
    return torch.finfo(dtype).eps > torch.finfo(m.dtype).eps


def _step(W: Tensor, dtype: torch.dtype) -> int:
    """Return the number of rows of W to cast at a time, so that their copy in `dtype` stays small."""
    return len(W) if W.dtype == dtype else max(1, CHUNK // W.shape[1])


def _magnitude_gradient(dy: Tensor, y: Tensor, b: Tensor | None, m: Tensor) -> Tensor:
    """Return dm (out,). What m multiplies is recovered from y, so that it need not be kept.

    Args:
        dy: (n, out).
        y: (n, out), what m multiplies and, unless b is None, the bias.
        b: (out,) or None.
        m: (out,).

    It cannot be recovered where a magnitude is exactly zero, as for a row of zeros; the gradient is zero there.
    """
    total = dot_rows(dy, y, m.dtype)
    if b is not None:
        total.addcmul_(b.to(m.dtype), dy.sum(0).to(m.dtype), value=-1)
    return torch.where(m == 0, 0.0, total / m)


def dense(base: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return W and b of a base that `fits`, in `dtype`."""
    return base.dense_weight(dtype), None if base.bias is None else base.bias.to(dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which nn.Linear would compute."""
    device = x.device.type
    if device != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def dot_rows(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum over the rows of a * b, without a full-size product.

    Args:
        a: (..., width).
        b: (..., width).
        dtype: Dtype of the sum.

    Returns:
        (width,).
    """
    a, b = a.flatten(0, -2), b.flatten(0, -2)
    if a.dtype != dtype or b.dtype != dtype or len(a) <= ROWS:
        return (a * b).sum(0, dtype=dtype)
    whole = len(a) // ROWS * ROWS
    total = a[:ROWS] * b[:ROWS]
    more_a, more_b = a[ROWS:whole], b[ROWS:whole]
    for rows in pieces(len(more_a), ROWS, a):
        total.addcmul_(more_a[rows], more_b[rows])
    return total.sum(0).add_((a[whole:] * b[whole:]).sum(0))
