"""One-sided tests of an estimate, and equivalence within a margin by two of them.

A one-sided test has one tail of the two-sided test of `Estimate.p`, with the estimate moved by the bound. Two of them
test equivalence (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987): a difference is within the margin at level alpha if
"it is at most -margin" and "it is at least margin" are both rejected at alpha. This needs no correction for two tests.
The same follows from an interval at level 1 - 2 alpha that lies within the margin.
"""

from __future__ import annotations

import math
from dataclasses import replace

from peftbench.report.stats.intervals import Estimate


def p_above(e: Estimate, bound: float) -> float | None:
    """One-sided p-value of "the true value is at most `bound`"; a small one says that the value is above.

    Args:
        e: a mean or difference.
        bound: in the unit of `e`.

    Returns:
        The p-value; None if the uncertainty is not known.
    """
    moved = replace(e, value=e.value - bound)
    if (p := moved.p) is None:
        return None
    return p / 2 if moved.value > 0 else 1 - p / 2


def p_within(e: Estimate, margin: float) -> float | None:
    """p-value of "the true value is `margin` or more away from 0"; a small one says that the value is within.

    Args:
        e: a difference.
        margin: smallest difference that matters, above 0, in the unit of `e`.

    Returns:
        The larger p-value of the two one-sided tests; None if the uncertainty is not known.
    """
    low, high = p_above(e, -margin), p_above(e.negative(), -margin)
    return None if low is None or high is None else max(low, high)


def is_above(e: Estimate, bound: float, level: float) -> bool:
    """Whether `p_above` is below a level, without its search."""
    return bounds(e, level)[0] > bound


def bounds(e: Estimate, level: float) -> tuple[float, float]:
    """What the true value is surely above, and surely below, each at a one-sided level; infinite if not known."""
    half = e.half(1 - 2 * level) if level > 0 else None
    return (-math.inf, math.inf) if half is None else (e.value - half, e.value + half)
