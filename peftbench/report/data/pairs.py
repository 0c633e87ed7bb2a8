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
from dataclasses import dataclass

from peftbench.report.data import answer, decisions, scores
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.weak_cache import weak_cache
from peftbench.report.stats import equivalence, intervals, moderated, spending
from peftbench.report.stats.intervals import LEVEL, Estimate, Scores


@dataclass(frozen=True)
class Pair:
    """How far one row is ahead of another; above 0 is better, in the metric's unit.

    Attributes:
        gap: the estimate, with moderated variances.
        least: what the true gap is surely above, at the table's one-sided level; -inf if not known.
        most: what it is surely below.
        found: "better" or "worse" if that is sure, corrected over all rows that are compared with the same other row.
    """

    gap: Estimate
    least: float
    most: float
    found: str | None

    def how(self, margin: float) -> str | None:
        """ "better", "worse", or "equal" within a margin; None if it is not known."""
        return self.found or ("equal" if self.least > -margin and self.most < margin else None)


@weak_cache
def of(c: Comparison) -> Mapping[tuple[str, str], Pair]:
    """(row, other row) -> how far the first is ahead, of all rows with two seeds or more."""
    known = {label: s for label, s in scores.of(c).items() if len(s.seeds) > 1}
    d = decisions.of(c)
    level = (1 - LEVEL) / (2 if c.design.looks else 1) / max(1, len(d.rows) - 1)
    if c.design.looks:
        level = spending.nominal_levels(c.design.looks, level, c.design.spending)[max(0, d.looked - 1)]
    told = answer.of(c)
    versus = told.versus if told else {}
    found: dict[tuple[str, str], Pair] = {}
    for against in known:
        ahead = _ahead(known, against, -1 if c.direction == "min" else 1)
        sure = _different(ahead, level if c.design.looks else None)
        if against == c.reference and told:
            sure = {label: how if how != "equal" else None for label, how in versus.items()}
        for label, gap in ahead.items():
            least, most = equivalence.bounds(gap, level)
            before = d.surely.get((label, against), (-math.inf, math.inf))
            pair = Pair(gap, max(least, before[0]), min(most, before[1]), sure.get(label))
            found[label, against] = pair
    return found


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
