"""The lookup tables of 4-bit NormalFloat, of the types it is held against, and of the 8-bit type of its statistics.

All are computed from their definitions, not copied.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

_OUTERMOST = 0.9677083  # 1 - (1/32 + 1/30) / 2: the probability of the largest quantile (appendix E), as published


def code_table(device: torch.device | str | None = None) -> Tensor:
    """The 16 NF4 values in ascending order, float32."""
    return torch.tensor(_code_values(), dtype=torch.float32, device=device)


def dynamic_table(device: torch.device | str | None = None) -> Tensor:
    """The 256 values of the signed 8-bit dynamic type (https://arxiv.org/abs/1511.04561), ascending, float32."""
    return torch.tensor(_dynamic_values(), dtype=torch.float32, device=device)


def integer_table(device: torch.device | str | None = None) -> Tensor:
    """Int4: k / 7 for k from -7 to 7, float32 (15,); equation 1 of QLoRA with 7 in the place of Int8's 127."""
    return torch.arange(-7, 8, dtype=torch.float32, device=device) / 7


def float_table(
    exponent_bits: int, mantissa_bits: int, subnormal: float = 1.0, device: torch.device | str | None = None
) -> Tensor:
    """Sign, exponent e and mantissa m over their largest value, ascending, float32; zero once.

    In units of the smallest step, with M mantissa bits: (2^M + m) 2^(e - 1), and m itself where e is 0. E2M1 is
    (0 1 2 3 4 6 8 12) / 12 (as in OCP's Microscaling Formats 1.0), E3M0 is (0 1 2 4 8 16 32 64) / 64.
    `subnormal` moves the values of e = 0: bitsandbytes' FP4 is E2M1 with 1 / 16.
    """
    implicit = 2**mantissa_bits
    above = [m * subnormal for m in range(implicit)]
    above += [(implicit + m) * 2.0 ** (e - 1) for e in range(1, 2**exponent_bits) for m in range(implicit)]
    values = torch.tensor([-v for v in above[:0:-1]] + above, dtype=torch.float32, device=device)
    return values / values[-1]


def pair_table(device: torch.device | str | None = None) -> Tensor:
    """For every byte its two code values, the eight bytes of both float32 as one int64 (256,).

    One lookup a byte then yields two weights (four times as fast as looking up pairs, six times as single codes).
    """
    values = np.array(_code_values(), dtype=np.float32)
    pairs = np.stack([values.repeat(16), np.tile(values, 16)], axis=1)
    return torch.tensor(pairs.view(np.int64)[:, 0].tolist(), dtype=torch.int64, device=device)


@cache
def _code_values() -> tuple[float, ...]:
    """Appendix E. The published table was made with float32 probabilities and division: so is this, to be equal."""
    quantile = NormalDist().inv_cdf
    below = [quantile(p) for p in _linspace(_OUTERMOST, 0.5, 9)[:-1].tolist()]
    above = [quantile(p) for p in _linspace(_OUTERMOST, 0.5, 8)[:-1].tolist()]
    values = np.array([-v for v in above] + [0.0] + below, dtype=np.float32)
    return tuple(np.sort(values / values.max()).tolist())


@cache
def _dynamic_values() -> tuple[float, ...]:
    """Sign, a unary exponent of base ten (1e-6 to 1), and the remaining bits linear within the decade.

    Computed in float64 and rounded once. bitsandbytes computes it with float32 vector instructions: there the last bit
    of some values depends on the processor, here nothing does.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = np.linspace(0.1, 1.0, 2**exponent + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
        values += [*means, *-means]
    return tuple(np.sort(np.array(values, dtype=np.float32)).tolist())


def _linspace(start: float, stop: float, count: int) -> np.ndarray:
    """float32 steps counted from both ends to the middle, as torch's scalar code; numpy differs in the last bit."""
    first, last = np.float32(start), np.float32(stop)
    step = (last - first) / np.float32(count - 1)
    half = count // 2
    up = [first + step * np.float32(i) for i in range(half)]
    down = [last - step * np.float32(count - 1 - i) for i in range(half, count)]
    return np.array(up + down, dtype=np.float32)
