"""What the page's scripts compute with: every number of a table once, JSON-ready. The page holds it as one block.

The scripts decide with these numbers as `report.data` does, so that they give the same answer at the same margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from peftbench.report.data import answer, decisions, families, pairs, scores, verdicts
from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.times import Summary
from peftbench.report.media.plain import visible
from peftbench.report.stats.intervals import RANGES, Estimate
from peftbench.report.tables import formatting
from peftbench.report.web import costs, wording

Facts = dict[str, Any]


def of_table(c: Comparison) -> Facts:
    """The facts of one table.

    Returns:
        slug, experiment, title, metric, direction, reference, learned, task: of the table.
        scale, unit: what a margin is multiplied by to be shown, and the word after it.
        margin, prefer: what the experiment asks.
        answerable: whether the table can have an answer at all, and `why` it has none.
        sequential: whether seeds run until decided.
        behind: rows that another is surely better than; `candidates`: those that may be the best.
        rows: as `_row`, in the table's order.
        pairs: row -> other row -> [how far it is ahead, ends of its 95 % interval, bounds of the table, what is
            sure, bounds for "equal"].
        sentences: the verdict at the experiment's own margin.
    """
    d, told = decisions.of(c), answer.of(c)
    unit = RANGES.get(c.metric)
    return {
        "slug": c.slug,
        "experiment": visible(c.experiment),
        "title": visible(c.title),
        "metric": visible(c.metric),
        "direction": c.direction,
        "reference": visible(c.reference),
        "learned": c.learned,
        "constant": c.majority,
        "scale": 100 if unit and unit[1] == 1 else 1,
        "unit": "points" if unit else "",
        "margin": d.margin,
        "prefer": c.design.prefer,
        "answerable": told is not None,
        "why": None if told else wording.why_none(c),
        "sequential": bool(c.design.looks),
        "behind": [visible(label) for label, v in verdicts.of(c).items() if v.tied is False],
        "candidates": [visible(label) for label in d.candidates],
        "seeds": wording.seeds_of(c),
        "examples": wording.examples_of(c),
        "rows": [_row(c, e) for e in c.entries],
        "pairs": _pairs(c),
        "sentences": wording.of(c),
    }


def of_average(a: Average, tables: Sequence[Comparison], slugs: Mapping[int, str]) -> Facts:
    """The facts of a table over tasks: its rows, and the slugs of its tables."""
    mine = [c for c in tables if c.experiment == a.experiment and (c.point.words if c.point else "") == a.variant]
    return {
        "slug": a.slug,
        "experiment": visible(a.experiment),
        "title": f"{wording.all_of(len(mine)).capitalize()} tasks" + (f", {visible(a.variant)}" if a.variant else ""),
        "reference": visible(a.reference),
        "tables": [slugs[id(c)] for c in mine],
        "rows": [
            {
                "label": visible(s.label),
                "family": families.of(s.method),
                "mean": s.relative,
                "low": s.relative_interval[0] if s.relative_interval else None,
                "high": s.relative_interval[1] if s.relative_interval else None,
                "score": formatting.estimate(s.relative, s.relative_interval),
                "rank": s.rank,
                "costs": {"memory": s.peak_ratio, "parameters": s.trainable, "time": s.step_ratio, "latency": None},
                "text": costs.over_tasks(a, s),
            }
            for s in a.standings
        ],
        "sentences": wording.over_tasks(a, mine),
    }


def _row(c: Comparison, e: Entry) -> Facts:
    """One row.

    Returns:
        label, family, method: of the row.
        mean, low, high, seeds, failed: its score with its 95 % interval.
        known: whether it has two seeds, and so can be decided on.
        costs: cost -> its value in bytes, parameters or seconds; `spread`: cost -> ends of what was measured.
        score, text: its score and its costs in words.
        need: variance of its gap to the best: [between seeds, over examples, examples, degrees of freedom lent].
    """
    v = verdicts.of(c).get(e.label)
    known = len(scores.of(c)[e.label].seeds) > 1 if e.n else False
    return {
        "label": visible(e.label),
        "family": families.of(e.method),
        "method": visible(e.method),
        "mean": e.mean,
        "low": v.interval[0] if v and v.interval else None,
        "high": v.interval[1] if v and v.interval else None,
        "seeds": e.n,
        "failed": e.failed,
        "known": known,
        "costs": {name: costs.value(e, name) for name in costs.NAMES},
        "spread": {name: _spread(s) for name in ("time", "latency") if (s := costs.summary(e, name))},
        "score": costs.score(c, e),
        "text": costs.beside(c, e),
        "short": {name: costs.short(c, e, name) for name in costs.NAMES},
        "need": _need(v.to_best) if v and v.to_best else None,
    }


def _spread(s: Summary) -> list[float] | None:
    return None if s.iqr is None else [s.median - s.iqr / 2, s.median + s.iqr / 2]


def _need(to_best: Estimate) -> list[float] | None:
    """What `power.VarianceComponents.of` averages over rows; None where it leaves the row out."""
    if not to_best.is_known or to_best.is_of_runs:
        return None
    lent = min(df for _, df in to_best.parts) - (to_best.seeds - 1)
    seed = sum(v for v, _ in to_best.parts) * to_best.seeds
    return [seed, to_best.shared, to_best.examples, lent]


def _pairs(c: Comparison) -> dict[str, dict[str, list[Any]]]:
    found: dict[str, dict[str, list[Any]]] = {}
    for (label, other), p in pairs.of(c).items():
        ends = p.gap.interval() or (-math.inf, math.inf)
        numbers = [None if math.isinf(x) else x for x in (p.gap.value, *ends, p.least, p.most, p.low, p.high)]
        found.setdefault(visible(label), {})[visible(other)] = [*numbers[:5], p.found, *numbers[5:]]
    return found
