"""Dropout of a network on a CPU, with masks that cost a fraction of torch's to draw and half the memory to keep.

torch draws one number of a Mersenne twister for each element, and keeps the mask as floats. Here each call takes one
number from torch's generator, as the seed of a stream of its own (SFC64 of numpy, whose raw numbers are the same in
every version), and reads 16 bits of that stream for each element. Backward keeps these bits, 2 bytes an element.

As a call takes one number whatever its size, equal seeds give every method the same masks wherever the network has the
same shape, and gradient checkpointing, which restores torch's generator, repeats them. Other devices keep torch's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.backbones.devices import has_no_data

LEVELS = 1 << 16  # values of 16 bits: a probability is met to 1 / 2 LEVELS, and what is kept is scaled by what is met
PER_WORD = 4  # elements that one word of 64 bits serves


class Dropout(nn.Dropout):
    """`nn.Dropout` with the masks of this module."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x with elements zeroed and the others scaled, in training; else x.

        Args:
            x: A tensor of any shape.
        """
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element of x with probability p, and scale the others so that the mean stays.

    Args:
        x: Floating point numbers of any shape.
        p: The probability, from 0 to 1.

    Returns:
        A tensor of the same shape.
    """
    if x.device.type != "cpu" or not 0 < p < 1:
        return F.dropout(x, p)
    out: Tensor = _Dropout.apply(x, p)
    return out


def replace(net: nn.Module) -> None:
    """Replace each `nn.Dropout` of a network by `Dropout`. What a network calls as a function keeps torch's masks."""
    for path, module in list(net.named_modules(remove_duplicate=False)):  # one module may stand in several places
        if type(module) is nn.Dropout:
            net.set_submodule(path, Dropout(module.p).train(module.training))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        bits = _bits(x)
        ctx.save_for_backward(bits)
        ctx.dropped = min(round(p * LEVELS), LEVELS - 1)
        return _masked(x, bits, ctx.dropped)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        return _masked(dy, bits, ctx.dropped), None


def _bits(x: Tensor) -> Tensor:
    """Return 16 random bits for each element of x, in its shape: int16, uniform over all values."""
    words = -(-x.numel() // PER_WORD)
    seed = torch.empty((), dtype=torch.int64).random_()
    if has_no_data(x):
        drawn = seed.new_empty(PER_WORD * words, dtype=torch.int16)
    else:
        drawn = torch.from_numpy(np.random.SFC64(int(seed)).random_raw(words).view(np.int16))
    return drawn[: x.numel()].view(x.shape)


def _masked(x: Tensor, bits: Tensor, dropped: int) -> Tensor:
    """Return x / (1 - p) where bits are among the upper LEVELS - dropped values, else 0."""
    out = torch.empty_like(x)
    torch.ge(bits, dropped - LEVELS // 2, out=out)  # 1 where kept: as a number, not a bool, which multiplies slowly
    return out.mul_(x).mul_(LEVELS / (LEVELS - dropped))
