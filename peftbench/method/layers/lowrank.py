"""The products of a frozen linear layer with a low-rank update, forward and backward, without a tensor to spare.

    y = g (W x + s B A x) + b       x (..., in), W (out, in), A (r, in), B (out, r), b (out,); s a number
    g = m / ||W + s B A||           m (out,), the norm over each row and constant in the gradient; without m, g = 1

Autograd on the plain formula computes the same with a full-size tensor, and a pass over it, for every sign in it. Here
one output is made and added into. Backward keeps x, the activation s A x (..., r) and, with m, y; not W, which is
frozen, so that of a 4-bit layer no dense copy lives from one pass to the other. With h = g dy:

    dx = h W + s h B A    dA = s (h B)^T x    dB = h^T (s A x)    dm = sum over the rows of dy (y - b), over m

g scales what is smaller, weight or output. The norm needs no W + s B A: row by row its square is ||W||^2, which never
changes, + 2 s <B, W A^T> + s^2 <B, B A A^T>.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 128  # multiplied at once where a sum over rows follows
CHUNK = 1 << 20  # weights widened at once, where the norm's products want more digits than W has


def fits(base: Any) -> bool:
    """Whether `base` is exactly x W^T + b with W from its `dense_weight`, and none of it trains.

    A linear site's layer says the first by ``is_dense`` (backbones/modules.py); an adapter, or a layer with a product
    of its own, does not.
    """
    return getattr(base, "is_dense", False) and not any(p.requires_grad for p in base.parameters(recurse=False))


def linear(
    x: Tensor, base: Any, A: Tensor, B: Tensor, scale: float, m: Tensor | None = None, squares: Tensor | None = None
) -> Tensor:
    """y (..., out) for a base that `fits`; in autocast's dtype under autocast, else in x's. Gradients: x, A, B, m.

    `squares` (out,): ||W||^2 of each row, which m needs.
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
            if _weight_is_smaller(W, rows):
                y = F.linear(rows, g[:, None] * W, b).addmm_(down, (g[:, None] * B).to(dtype).t())
            else:
                y = F.linear(rows, W).addmm_(down, B.to(dtype).t())
                y = y.mul_(g) if b is None else torch.addcmul(b, y, g, out=y)
            ctx.save_for_backward(rows, down, A, B, m, g, y)
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
            dm = _magnitude_gradient(dy, y, b, m) if needs_m else None
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
        if needs_B:  # (r, n) (n, out): several times as fast on the CPU as its transpose, for the same numbers
            dB = (down.t() @ dy).t().to(B.dtype)
            dB = dB if after is None else dB.mul_(after)
        return dx, dA, dB, dm, None, None, None


@torch.no_grad()
def norms(base: Any, dtype: torch.dtype) -> Tensor:
    """||W|| of each row, (out,), in `dtype`."""
    W = base.dense_weight()
    return torch.cat([torch.linalg.vector_norm(part.to(dtype), dim=1) for part in W.split(_step(W, dtype))])


def _norm(W: Tensor, A: Tensor, B: Tensor, scale: float, squares: Tensor) -> Tensor:
    """||W + s B A|| of each row, (out,), in A's dtype."""
    parts = [F.linear(part.to(A.dtype), A) for part in W.split(_step(W, A.dtype))]
    crossed = parts[0] if len(parts) == 1 else torch.cat(parts)  # W A^T, (out, r)
    crossed = torch.addmm(crossed, B, A @ A.t(), beta=2, alpha=scale)
    squared = torch.add(squares, torch.linalg.vecdot(B, crossed), alpha=scale)
    return squared.clamp_(min=torch.finfo(A.dtype).tiny).sqrt_()  # a row of zeros has none, and rounding may lose it


def _weight_is_smaller(W: Tensor, rows: Tensor) -> bool:
    """Than its output: out * in numbers against n * out."""
    return W.shape[1] < len(rows)


def _step(W: Tensor, dtype: torch.dtype) -> int:
    """Rows of W to take at a time, so that a copy of them in `dtype` stays small."""
    return len(W) if W.dtype == dtype else max(1, CHUNK // W.shape[1])


def _magnitude_gradient(dy: Tensor, y: Tensor, b: Tensor | None, m: Tensor) -> Tensor:
    """dm (out,): what m multiplies is read off the output instead of being kept beside it.

    Nothing can be read off where a magnitude is exactly zero, as for a row of zeros; the gradient is zero there.
    """
    total = dot_rows(dy, y, m.dtype)
    if b is not None:
        total.addcmul_(b.to(m.dtype), dy.sum(0).to(m.dtype), value=-1)
    return torch.where(m == 0, 0.0, total / m)


def dense(base: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """W and b of a base that `fits`, in `dtype`."""
    return base.dense_weight(dtype), None if base.bias is None else base.bias.to(dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """What nn.Linear would compute in."""
    device = x.device.type
    if device != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def dot_rows(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the rows of a b: (..., width) twice -> (width,), in `dtype`; no product of full size is made."""
    a, b = a.flatten(0, -2), b.flatten(0, -2)
    if a.dtype != dtype or b.dtype != dtype or len(a) <= ROWS:
        return (a * b).sum(0, dtype=dtype)
    whole = len(a) // ROWS * ROWS
    total = a[:ROWS] * b[:ROWS]
    for start in range(ROWS, whole, ROWS):
        total.addcmul_(a[start : start + ROWS], b[start : start + ROWS])
    return total.sum(0).add_((a[whole:] * b[whole:]).sum(0))
