"""Where two curves cross, and how sure that is.

The difference of two curves is known at the tested values, each with its interval. Between two neighbours it is taken
to be straight in the logarithm of the axis. Its interval there runs straight between theirs. It is never too narrow:
the standard error of a weighted mean is at most the weighted mean of the standard errors, however the two correlate.

The confidence set of a crossing is every position whose interval contains 0 (Fieller's way to turn tests into a set,
J. R. Stat. Soc. B 16, 1954). A true crossing lies in it whenever the interval at its own position holds, so that the
set has the level of the intervals. It may have several parts, and may be open at the ends of the tested range. No
estimate of a slope and no simulation is needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Interval = tuple[float, float]


@dataclass(frozen=True)
class Crossings:
    """The crossings of a difference with 0 within the tested range.

    Attributes:
        estimates: positions where the difference itself changes its sign, ascending.
        parts: the parts of the confidence set, ascending: the first and the last position of each.
        tested: the least and the greatest position at which the difference and its interval are known.
    """

    estimates: tuple[float, ...]
    parts: tuple[Interval, ...]
    tested: Interval

    def is_open(self, position: float) -> bool:
        """Whether an end of a part is an end of the tested range: the set may go on beyond it."""
        return position in self.tested


def crossings(at: Sequence[float], differences: Sequence[float], intervals: Sequence[Interval]) -> Crossings:
    """Find where a difference crosses 0.

    Args:
        at: positions on the axis, ascending and positive; at least one.
        differences: the difference at each.
        intervals: its interval at each.
    """
    parts = list[Interval]()
    marks = list(zip(at, intervals, strict=True))
    for (x0, (low0, high0)), (x1, (low1, high1)) in itertools.pairwise(marks):
        below, above = _share(low0, low1), _share(-high0, -high1)  # where low <= 0, and where high >= 0
        if below and above and (first := max(below[0], above[0])) <= (last := min(below[1], above[1])):
            parts.append((_between(x0, x1, first), _between(x0, x1, last)))
    if len(marks) == 1 and intervals[0][0] <= 0 <= intervals[0][1]:
        parts.append((at[0], at[0]))
    return Crossings(tuple(_changes(at, differences)), tuple(_merged(parts)), (at[0], at[-1]))


def _changes(at: Sequence[float], differences: Sequence[float]) -> Iterator[float]:
    """The positions at which the differences change their sign; of several that are 0 in between, the first."""
    signed = [i for i, d in enumerate(differences) if d != 0]
    for i, j in itertools.pairwise(signed):
        if differences[i] * differences[j] < 0:
            share = differences[i] / (differences[i] - differences[j])
            yield _between(at[i], at[j], share) if j == i + 1 else at[i + 1]


def _between(x0: float, x1: float, share: float) -> float:
    """The position at a share of the way between two, in logarithms; exact at both ends."""
    return x0 if share <= 0 else x1 if share >= 1 else math.exp(math.log(x0) + share * math.log(x1 / x0))


def _share(start: float, end: float) -> Interval | None:
    """The shares of the way at which a straight line from `start` to `end` is at most 0; None if at none."""
    if start <= 0 and end <= 0:
        return 0.0, 1.0
    if start > 0 and end > 0:
        return None
    zero = start / (start - end)
    return (0.0, zero) if start <= 0 else (zero, 1.0)


def _merged(parts: Sequence[Interval]) -> Iterator[Interval]:
    """Join parts that touch."""
    current: Interval | None = None
    for part in parts:
        if current is None:
            current = part
        elif part[0] <= current[1]:
            current = current[0], part[1]
        else:
            yield current
            current = part
    if current is not None:
        yield current
