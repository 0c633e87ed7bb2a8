"""Every pair of rows of a table: how far one is ahead of the other, and what is sure of it at any margin.

`decisions` answers at one margin. The same tests at another margin need only two bounds of each pair, each one-sided at
the level that `decisions` uses: what the gap is surely above, and what it is surely below. "Not worse by more than m"
then means that the lower bound is above -m, whatever m is.

With planned looks, what a look has decided stays decided. So the bounds are the tightest of all looks so far, which
holds for any rule of stopping (repeated confidence intervals: Jennison and Turnbull, J. R. Stat. Soc. B 51, 1989).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from peftbench.report.data import answer, decisions, scores
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.weak_cache import weak_cache
from peftbench.report.stats import equivalence, intervals, moderated, spending
from peftbench.report.stats.intervals import LEVEL, Estimate, Scores

OPPOSITE = {"better": "worse", "worse": "better"}


@dataclass(frozen=True)
class Pair:
    """How far one row is ahead of another; above 0 is better, in the metric's unit.

    Attributes:
        gap: the estimate, with moderated variances.
        least: what the true gap is surely above, at the table's one-sided level; -inf if not known.
        most: what it is surely below.
        found: "better" or "worse" if that is sure, from both sides, corrected over all rows that are compared with the
            same other row. Against the reference it is what the answer of the table says.
        low, high: bounds for "equal within a margin", from both sides; against the reference those of its own column.
    """

    gap: Estimate
    least: float
    most: float
    found: str | None = None
    low: float = -math.inf
    high: float = math.inf

    def how(self, margin: float) -> str | None:
        """ "better", "worse", or "equal" within a margin; None if it is not known."""
        return self.found or ("equal" if self.low > -margin and self.high < margin else None)


@weak_cache
def of(c: Comparison) -> Mapping[tuple[str, str], Pair]:
    """(row, other row) -> how far the first is ahead, of all rows with two seeds or more."""
    known = {label: s for label, s in scores.of(c).items() if len(s.seeds) > 1}
    d = decisions.of(c)
    level = (1 - LEVEL) / (2 if c.design.looks else 1) / max(1, len(d.rows) - 1)
    if c.design.looks:
        level = spending.nominal_levels(c.design.looks, level, c.design.spending)[max(0, d.looked - 1)]
    found: dict[tuple[str, str], Pair] = {}
    different: dict[tuple[str, str], str] = {}
    for against in known:
        ahead = _ahead(known, against, -1 if c.direction == "min" else 1)
        different |= {
            (label, against): how for label, how in _different(ahead, level if c.design.looks else None).items()
        }
        for label, gap in ahead.items():
            least, most = equivalence.bounds(gap, level)
            before = d.surely.get((label, against), (-math.inf, math.inf))
            found[label, against] = Pair(gap, max(least, before[0]), min(most, before[1]))
    return {key: _from_both_sides(c, key, found, different) for key in found}


def _from_both_sides(
    c: Comparison, key: tuple[str, str], found: Mapping[tuple[str, str], Pair], different: Mapping[tuple[str, str], str]
) -> Pair:
    """A pair with what is sure of it, so that what a row says of another, the other says of it."""
    pair, back = found[key], found[key[1], key[0]]
    told = answer.of(c)
    if told is None or c.reference not in key:
        how = different.get(key)
        agreed = how if how and different.get((key[1], key[0])) == OPPOSITE[how] else None
        return replace(pair, found=agreed, low=min(pair.least, -back.most), high=max(pair.most, -back.least))
    is_row = key[1] == c.reference
    low, high = (pair.least, pair.most) if is_row else (-back.most, -back.least)
    how = told.versus.get(key[0] if is_row else key[1])
    if how == "equal":  # an earlier look may have said so; it stays so at its margin and above
        low, high = max(low, math.nextafter(-told.margin, 0)), min(high, math.nextafter(told.margin, 0))
        return replace(pair, low=low, high=high)
    return replace(pair, found=how if is_row or how is None else OPPOSITE[how], low=low, high=high)


def _ahead(known: Mapping[str, Scores], against: str, sign: int) -> dict[str, Estimate]:
    """How far each other row is ahead of one."""
    others = [label for label in known if label != against]
    gaps = [intervals.difference(known[label], known[against]) for label in others]
    signed = [gap if sign > 0 else gap.negative() for gap in gaps]
    return dict(zip(others, moderated.moderate(signed), strict=True))


def _different(ahead: Mapping[str, Estimate], level: float | None) -> dict[str, str]:
    """The rows that surely differ: by Holm's method, or where looks are planned, at the level of a look."""
    if level is not None:
        ends = {label: equivalence.bounds(gap, level / 2) for label, gap in ahead.items()}
        return {label: "better" if low > 0 else "worse" for label, (low, high) in ends.items() if low > 0 or high < 0}
    adjusted = dict(zip(ahead, intervals.holm([gap.p for gap in ahead.values()]), strict=True))
    return {
        label: "better" if ahead[label].value > 0 else "worse"
        for label, p in adjusted.items()
        if p is not None and p < 1 - LEVEL
    }


def without_spread(c: Comparison) -> tuple[str, ...]:
    """Open rows whose difference to a candidate for the best is the same in every seed, so that it has no interval.

    Test examples or other rows of the table would give it one.
    """
    told, table = answer.of(c), of(c)
    if told is None:
        return ()
    candidates = decisions.of(c).candidates
    unknown = {label for (label, other), p in table.items() if other in candidates and not p.gap.is_known}
    return tuple(label for label in told.open if label in unknown)


def least_margin(c: Comparison, labels: Sequence[str]) -> tuple[float, tuple[str, ...]] | None:
    """The smallest margin at which some row is surely within it of the best, and the rows that then are.

    Args:
        c: the table.
        labels: its candidates for the best.

    Returns:
        The margin that must be exceeded, in the metric's unit, and the rows; None if no margin does.
    """
    table = of(c)
    rows = dict.fromkeys(label for label, _ in table)
    needs = {
        label: max((-table[label, other].least if (label, other) in table else math.inf
                    for other in labels if other != label), default=0.0)
        for label in rows
    }  # fmt: skip
    least = min(needs.values(), default=math.inf)
    return None if math.isinf(least) else (least, tuple(label for label, need in needs.items() if need == least))
