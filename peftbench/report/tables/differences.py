"""The table of differences to the reference and to the best configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from peftbench.report.data import verdicts
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.networks import NetworkTest
from peftbench.report.data.notes import not_learned
from peftbench.report.data.pareto import COSTS
from peftbench.report.data.verdicts import ScoreVerdict
from peftbench.report.stats.intervals import Estimate
from peftbench.report.tables import formatting
from peftbench.report.tables.columns import Column

HOLM = "p is corrected by Holm over the table."
LOOKED = "There is no p, as the table was looked at more than once; what is tied takes all looks into account."
LEGEND = (
    "Differences are of the metric, by seed and test example where the seeds are the same, with their 95 % interval. "
    "p is corrected by Holm over the table. P(better): how often a run of the method beats one of the reference at the "
    "same seed, with Wilson's interval over the seeds. On the front: probability that no other configuration is as "
    "good and as cheap. Tied: not told apart from the best at 95 % over the whole table. How all of this is computed, "
    "and how often it is wrong: docs/statistics.md."
)
MCNEMAR = (
    "McNemar: exact test (mid-p) of two trained networks on the test examples that only one of them has right: won by "
    "the row's network, lost to the other. It is about these networks, not the methods: another seed may turn it "
    "round. Its p is corrected over the table, by Holm against the reference and by Bonferroni against the best."
)


def known(c: Comparison) -> bool:
    """Whether there is a difference to show."""
    return any(v.difference or v.to_best for v in verdicts.of(c).values())


def legend(c: Comparison) -> str:
    """The explanation of the columns, preceded by a warning if the task was not learned."""
    warning = f"{not_learned(c).capitalize()}: differences mean nothing here. " if c.learned is False else ""
    said = LEGEND.replace(HOLM, LOOKED) if c.design.looks else LEGEND
    return warning + said + (f" {MCNEMAR}" if _of_networks(c) else "")


def columns(c: Comparison) -> list[Column]:
    """Columns of the readable table; a configuration without a finished run has dashes."""
    return [
        Column("method", lambda e: e.label),
        Column(f"{c.metric} − {c.reference}'s [95 %]", _cell(c, lambda v: _signed(v.difference)), name="difference"),
        Column("p (Holm)", _cell(c, lambda v: formatting.p_value(v.p_holm)), name="p"),
        Column(f"P(better than {c.reference})", _cell(c, lambda v: formatting.share(v.better)), name="better"),
        Column(f"{c.metric} − the best's [95 %]", _cell(c, lambda v: _signed(v.to_best)), name="to-best"),
        Column("tied with the best", _cell(c, _tied), name="tied"),
        *(
            Column(f"on the front, {cost}", _cell(c, _front(cost)), name=f"front-{cost.replace(' ', '-')}")
            for cost in COSTS
        ),
        *_of_networks(c),
    ]


def _of_networks(c: Comparison) -> list[Column]:
    """McNemar's tests, where a difference is one of two trained networks."""
    all_ = ((c.reference, _mcnemar), ("the best", _mcnemar_to_best))
    return [
        Column(f"McNemar against {name}: p (won / lost)", _cell(c, partial(_network_cell, test)))
        for name, test in all_
        if any(test(v) for v in verdicts.of(c).values())
    ]


def _mcnemar(v: ScoreVerdict) -> NetworkTest | None:
    return v.mcnemar


def _mcnemar_to_best(v: ScoreVerdict) -> NetworkTest | None:
    return v.mcnemar_to_best


def row(c: Comparison, e: Entry) -> dict[str, Any]:
    """The differences of one configuration as JSON fields, None where not known.

    Args:
        c: the table.
        e: one of its rows.

    Returns:
        mean_low, mean_high: 95 % interval of the mean, cut to the metric's range.
        difference, difference_low, difference_high: mean - the reference's, and its 95 % interval.
        p, p_holm: two-sided p-value of that difference, plain and adjusted by Holm's method over the table.
        p_better, p_better_low, p_better_high: share of runs that beat the reference's, and its Wilson interval.
        difference_to_best, difference_to_best_low, difference_to_best_high: mean - the best's, and its 95 % interval.
        tied_with_best: whether it is the best or tied with it.
        on_front: cost -> probability to be on the Pareto front.
        mcnemar_p, mcnemar_p_holm: exact mid-p-value of McNemar's test of the row's one trained network against the
            reference's, plain and adjusted by Holm's method over the table.
        mcnemar_won, mcnemar_lost: number of test examples that only the row's network has right, and only the
            reference's.
        mcnemar_to_best_p, mcnemar_to_best_p_bonferroni, mcnemar_to_best_won, mcnemar_to_best_lost: the same against
            the best's network, adjusted by Bonferroni's method.
    """
    v = verdicts.of(c).get(e.label)
    better = v.better if v and v.better else (None, None, None)
    return {
        **_bounds("mean", v.interval if v else None),
        "difference": v.difference.value if v and v.difference else None,
        **_bounds("difference", v.difference.interval() if v and v.difference else None),
        "p": v.difference.p if v and v.difference else None,
        "p_holm": v.p_holm if v else None,
        "p_better": better[0],
        "p_better_low": better[1],
        "p_better_high": better[2],
        "difference_to_best": v.to_best.value if v and v.to_best else None,
        **_bounds("difference_to_best", v.to_best.interval() if v and v.to_best else None),
        "tied_with_best": v.tied if v else None,
        "on_front": {cost.replace(" ", "_"): (v.on_front or {}).get(cost) if v else None for cost in COSTS},
        **_counts("mcnemar", "holm", v.mcnemar if v else None),
        **_counts("mcnemar_to_best", "bonferroni", v.mcnemar_to_best if v else None),
    }


def _counts(name: str, correction: str, test: NetworkTest | None) -> dict[str, float | None]:
    return {
        f"{name}_p": test.p if test else None,
        f"{name}_p_{correction}": test.p_adjusted if test else None,
        f"{name}_won": test.counts.won if test else None,
        f"{name}_lost": test.counts.lost if test else None,
    }


def _bounds(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _cell(c: Comparison, cell: Callable[[ScoreVerdict], str]) -> Callable[[Entry], str]:
    return lambda e: cell(verdicts.of(c)[e.label]) if e.label in verdicts.of(c) else formatting.DASH


def _signed(of: Estimate | None) -> str:
    return formatting.difference(of.value, of.interval()) if of else formatting.DASH


def _network_cell(test: Callable[[ScoreVerdict], NetworkTest | None], v: ScoreVerdict) -> str:
    if (found := test(v)) is None:
        return formatting.DASH
    return f"{formatting.p_value(found.p_adjusted)} ({found.counts.won:,} / {found.counts.lost:,})"


def _tied(v: ScoreVerdict) -> str:
    if v.is_best:
        return "best"
    return formatting.DASH if v.tied is None else "tied" if v.tied else "no"


def _front(cost: str) -> Callable[[ScoreVerdict], str]:
    def cell(v: ScoreVerdict) -> str:
        share = (v.on_front or {}).get(cost)
        return formatting.DASH if share is None else f"{share * 100:.0f} %"

    return cell
