"""Error spent over looks: at which p-value a comparison may be decided when seeds are added until it is.

The scores are looked at after n_1 < ... < n_K seeds. By look k, when t_k = n_k / n_K of the seeds are there, alpha(t_k)
of the error is spent (Lan and DeMets, Biometrika 70, 1983):

    obrien_fleming   alpha(t) = 2 - 2 Phi(z / sqrt(t)),  z the normal quantile of 1 - level / 2
    pocock           alpha(t) = level ln(1 + (e - 1) t)

Without a difference, the sum of the first n_k scores is S_k = S_(k-1) + N(0, t_k - t_(k-1)), in standard deviations of
the sum of all n_K. Its boundary b_k follows from those before it (Armitage, McPherson and Rowe, J. R. Stat. Soc. A 132,
1969):

    P(S_1 < b_1, ..., S_(k-1) < b_(k-1), S_k >= b_k) = alpha(t_k) - alpha(t_(k-1))

Its nominal level is 1 - Phi(b_k / sqrt(t_k)). One-sided p-values of Student's t are compared with it all the same, the
significance-level approach (Jennison and Turnbull, Group Sequential Methods, 2000, ch. 11). docs/statistics.md has the
measured error rates.

Another seed brings no other test examples. What the examples do to all seeds alike makes the looks agree more than in
this process, so that the true error is below `level` (Slepian, Bell Syst. Tech. J. 41, 1962).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import count, pairwise, takewhile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Spending = Literal["obrien_fleming", "pocock"]
Array = NDArray[np.float64]

GROWTH = 5 / 4  # of the seeds, from one look to the next, at least
LOWEST = 7.0  # standard deviations of S_k; from further below, no boundary is reached
HIGHEST = 38.0  # the same; the density further above is zero in floating point
NEVER = 1e-280  # a smaller share of the error is left to the next look
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)  # of each panel, two standard deviations of a step wide


def looks(least: int, most: int) -> tuple[int, ...]:
    """Plan the looks: about 1.6 times as many seeds each, in round numbers (1, 2, 3, 5, 8, 12, 20, 30, 50, ...).

    Args:
        least: seeds at the first look, at least 1.
        most: seeds at the last look.

    Returns:
        Numbers of seeds, ascending, from `least` to `most`.

    Raises:
        ValueError: `least` below 1 or above `most`.
    """
    if not 1 <= least <= most:
        raise ValueError(f"looks from {least} to {most} seeds: expected 1 <= least <= most")
    planned = [least]
    series = (n * 10**tens for tens in count() for n in (2, 3, 5, 8, 12))
    for n in takewhile(lambda n: n * GROWTH <= most, series):
        if n >= planned[-1] * GROWTH:
            planned.append(n)
    return (*planned, most) if most > least else (least,)


def nominal_levels(looks: Sequence[int], level: float, spending: Spending) -> tuple[float, ...]:
    """The one-sided level of each look, such that any of them is significant by chance with probability `level`.

    Args:
        looks: numbers of seeds, ascending; the last is the most that will run.
        level: one-sided error over all looks, above 0 and below 0.5.
        spending: how the error is spent over the looks.

    Returns:
        The nominal level of each look; 0 where less than 1e-280 of the error is spent by then.

    Raises:
        ValueError: looks that do not ascend from 1 or more, a level out of range, or an unknown spending function.
    """
    if not looks or looks[0] < 1 or any(b <= a for a, b in pairwise(looks)):
        raise ValueError(f"looks {list(looks)}: expected ascending numbers of seeds, the first at least 1")
    if not 0 < level < 0.5:
        raise ValueError(f"level {level}: expected a one-sided error above 0 and below 0.5")
    if spending not in ("obrien_fleming", "pocock"):
        raise ValueError(f"spending {spending!r}: expected 'obrien_fleming' or 'pocock'")
    return _nominal_levels(tuple(looks), level, spending)


@cache
def _nominal_levels(looks: tuple[int, ...], level: float, spending: Spending) -> tuple[float, ...]:
    times = [n / looks[-1] for n in looks]
    steps = [math.sqrt(b - a) for a, b in pairwise([0.0, *times])]
    sums, mass = np.zeros(1), np.ones(1)  # values of S with their probabilities, while no look is significant
    levels, before = [], 0.0
    for t, step, following in zip(times, steps, [*steps[1:], math.inf], strict=True):
        spent = _spent(t, level, spending)
        if spent - before > NEVER:
            levels.append(_nominal_level(sums, mass, step, t, (spent - before, spent)))
            before = spent
        else:
            levels.append(0.0)
        high = min(_boundary(levels[-1], t), HIGHEST * math.sqrt(t))
        at, weights = _panels(-LOWEST * math.sqrt(t), high, 2 * min(step, following))
        sums, mass = at, weights * (_density((at[:, None] - sums) / step) @ mass) / step
    return tuple(levels)


def _spent(t: float, level: float, spending: Spending) -> float:
    """alpha(t): the error spent by the time t, above 0 and at most 1."""
    from scipy.special import ndtr, ndtri

    if t == 1:
        return level
    if spending == "pocock":
        return level * math.log1p((math.e - 1) * t)
    return 2 * float(ndtr(ndtri(level / 2) / math.sqrt(t)))


def _nominal_level(sums: Array, mass: Array, step: float, t: float, spent: tuple[float, float]) -> float:
    """The level of this look that spends `spent[0]`, by bisection; at most `spent[1]`, what is spent by now."""
    from scipy.special import ndtr

    low, high = spent
    for _ in range(50):
        level = (low + high) / 2
        first = float(ndtr((sums - _boundary(level, t)) / step) @ mass)  # significant here, and at no look before
        low, high = (level, high) if first < spent[0] else (low, level)
    return high


def _boundary(level: float, t: float) -> float:
    from scipy.special import ndtri

    return -float(ndtri(level)) * math.sqrt(t)


def _panels(low: float, high: float, width: float) -> tuple[Array, Array]:
    """Nodes and weights of Gauss and Legendre's integration in panels of at most this width."""
    edges = np.linspace(low, high, math.ceil((high - low) / width) + 1)
    half = (edges[1] - edges[0]) / 2
    middles = edges[:-1] + half
    return (middles[:, None] + half * NODES).ravel(), np.tile(half * WEIGHTS, len(middles))


def _density(z: Array) -> Array:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
