"""Lookup tables of 4-bit NormalFloat, of the data types it is compared with, and of the 8-bit type of its statistics.

All are computed from their definitions, not copied.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

_OUTERMOST = 0.9677083  # 1 - (1/32 + 1/30) / 2: probability of the largest quantile (appendix E), as published


def code_table(device: torch.device | str | None = None) -> Tensor:
    """Return the 16 NF4 values, ascending, float32."""
    return torch.tensor(_code_values(), dtype=torch.float32, device=device)


def dynamic_table(device: torch.device | str | None = None) -> Tensor:
    """Return the 256 values of the signed 8-bit dynamic type (https://arxiv.org/abs/1511.04561), ascending, float32."""
    return torch.tensor(_dynamic_values(), dtype=torch.float32, device=device)


def integer_table(device: torch.device | str | None = None) -> Tensor:
    """Return the Int4 values k / 7 for k from -7 to 7, float32 (15,).

    This is equation 1 of QLoRA with 7 in place of Int8's 127.
    """
    return torch.arange(-7, 8, dtype=torch.float32, device=device) / 7


def float_table(
    exponent_bits: int, mantissa_bits: int, subnormal: float = 1.0, device: torch.device | str | None = None
) -> Tensor:
    """Return the values of a small float type over their largest value, ascending, float32, zero once.

    In units of the smallest step, with exponent e, mantissa m and M mantissa bits, a value is (2^M + m) 2^(e - 1), and
    m where e is 0. E2M1 is (0 1 2 3 4 6 8 12) / 12, as in OCP's Microscaling Formats 1.0. E3M0 is
    (0 1 2 4 8 16 32 64) / 64.

    Args:
        exponent_bits: Number of exponent bits.
        mantissa_bits: M.
        subnormal: Factor of the values with e = 0; bitsandbytes' FP4 is E2M1 with 1 / 16.
        device: Device of the table.
    """
    implicit = 2**mantissa_bits
    above = [m * subnormal for m in range(implicit)]
    above += [(implicit + m) * 2.0 ** (e - 1) for e in range(1, 2**exponent_bits) for m in range(implicit)]
    values = torch.tensor([-v for v in above[:0:-1]] + above, dtype=torch.float32, device=device)
    return values / values[-1]


def pair_table(device: torch.device | str | None = None) -> Tensor:
    """Return for every byte its two code values, as the eight bytes of two float32 in one int64 (256,).

    One lookup per byte then gives two weights: four times faster than looking up pairs, six times faster than single
    codes.
    """
    values = np.array(_code_values(), dtype=np.float32)
    pairs = np.stack([values.repeat(16), np.tile(values, 16)], axis=1)
    return torch.tensor(pairs.view(np.int64)[:, 0].tolist(), dtype=torch.int64, device=device)


@cache
def _code_values() -> tuple[float, ...]:
    """Compute the values of appendix E.

    The published table was computed with float32 probabilities and division; this does the same, to be equal.
    """
    quantile = NormalDist().inv_cdf
    below = [quantile(p) for p in _linspace(_OUTERMOST, 0.5, 9)[:-1].tolist()]
    above = [quantile(p) for p in _linspace(_OUTERMOST, 0.5, 8)[:-1].tolist()]
    values = np.array([-v for v in above] + [0.0] + below, dtype=np.float32)
    return tuple(np.sort(values / values.max()).tolist())


@cache
def _dynamic_values() -> tuple[float, ...]:
    """Compute sign, a unary exponent of base ten (1e-6 to 1), and the remaining bits linear within the decade.

    The values are computed in float64 and rounded once. bitsandbytes uses float32 vector instructions, so the last bit
    of some of its values depends on the processor.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = np.linspace(0.1, 1.0, 2**exponent + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
        values += [*means, *-means]
    return tuple(np.sort(np.array(values, dtype=np.float32)).tolist())


def _linspace(start: float, stop: float, count: int) -> np.ndarray:
    """Return float32 steps counted from both ends to the middle, like torch's scalar code.

    numpy's linspace differs in the last bit.
    """
    first, last = np.float32(start), np.float32(stop)
    step = (last - first) / np.float32(count - 1)
    half = count // 2
    up = [first + step * np.float32(i) for i in range(half)]
    down = [last - step * np.float32(count - 1 - i) for i in range(half, count)]
    return np.array(up + down, dtype=np.float32)
