"""Verdicts on one table: intervals, differences to the reference, and ties with the best configuration.

The p-values of differences to the reference are adjusted by Holm's method over the table. A configuration is tied with
the best if no other is surely better than it, each pair one-sided at level 5 % / (configurations - 1). The truly best
one is then among the tied ones with at least 95 % (Bonferroni; Hsu, Multiple Comparisons, 1996, chapter 4). `decisions`
takes looks at the seeds so far and planned questions into account.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from peftbench.report.data import decisions, networks, pareto, scores
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.networks import NetworkTest
from peftbench.report.data.weak_cache import weak_cache
from peftbench.report.stats import intervals, moderated
from peftbench.report.stats.intervals import LEVEL, RANGES, Estimate, Scores


@dataclass(frozen=True)
class ScoreVerdict:
    """The statistics of one configuration in a table; None where they are not known.

    Attributes:
        mean: mean score over the seeds, in the metric's unit.
        interval: 95 % interval of the mean, cut to the metric's range.
        to_best: mean - the best configuration's mean; None for the best itself.
        tied: whether it is the best or tied with it; None if undecided.
        difference: mean - the reference's mean; None for the reference itself.
        p_holm: p-value of that difference, adjusted by Holm's method.
        relative: mean / the reference's mean.
        better: probability that a run beats one of the reference, and the ends of its interval.
        on_front: cost -> probability to be on the Pareto front.
        mcnemar: McNemar's test against the reference, where the difference is that of two trained networks.
        mcnemar_to_best: the same against the best configuration.
    """

    mean: Estimate
    interval: tuple[float, float] | None
    to_best: Estimate | None = None
    tied: bool | None = None
    difference: Estimate | None = None
    p_holm: float | None = None
    relative: Estimate | None = None
    better: tuple[float, float, float] | None = None
    on_front: Mapping[str, float | None] | None = None
    mcnemar: NetworkTest | None = None
    mcnemar_to_best: NetworkTest | None = None

    @property
    def is_best(self) -> bool:
        """Whether it has the best mean of the table."""
        return self.tied is True and self.to_best is None


@weak_cache
def of(c: Comparison) -> Mapping[str, ScoreVerdict]:
    """The verdicts on a table, computed once per comparison.

    Args:
        c: the table.

    Returns:
        label -> verdict, for every configuration that has a score.
    """
    known = scores.of(c)
    results = {label: _decided(c, label, v) for label, v in on(known, c).items()}
    fronts = pareto.probabilities(c) if results else {}
    best = next((label for label, v in results.items() if v.is_best), "")
    tests = networks.against_reference(known, c.reference, c.metric)
    to_best = networks.against_best(known, best, c.metric)
    return {
        label: replace(v, on_front=fronts[label], mcnemar=tests.get(label), mcnemar_to_best=to_best.get(label))
        for label, v in results.items()
    }


def _decided(c: Comparison, label: str, v: ScoreVerdict) -> ScoreVerdict:
    """The verdict with what looks and planned questions decide, where there are any."""
    if not c.design.looks and not c.design.claims:
        return v
    v = replace(v, p_holm=None) if c.design.looks else v  # a p-value of one look says nothing of all
    if v.is_best or v.mean.is_of_runs:
        return v
    state = decisions.of(c)
    beaten = any(
        q.claim.method == label and q.found == "worse" for q in state.questions
    )  # the best is no worse than any
    return replace(v, tied=not state.rows[label].behind and not beaten)


def on(known: Mapping[str, Scores], c: Comparison) -> dict[str, ScoreVerdict]:
    """The verdicts of a table on some of its scores, without fronts and tests of networks.

    Args:
        known: label -> scores, all or some of those of the table.
        c: the table, for its reference and metric.
    """
    return verdicts(known, c.reference, c.direction, RANGES.get(c.metric))


def some_are_behind(c: Comparison) -> bool:
    """Whether a mark tells anything: some configuration is not among the best and those tied with it."""
    return any(v.tied is not True for v in of(c).values())


def verdicts(
    known: Mapping[str, Scores], reference: str, direction: str, limits: tuple[float, float] | None = None
) -> dict[str, ScoreVerdict]:
    """Compute verdicts from scores alone, without fronts.

    Args:
        known: label -> scores over the seeds.
        reference: label of the reference; it may be missing.
        direction: "max" or "min", which of the two is better.
        limits: smallest and largest value of the metric; None if unbounded.

    Returns:
        label -> verdict.
    """
    sign = -1 if direction == "min" else 1
    best = max(known, key=lambda label: sign * known[label].values.mean(), default="")  # the first of ties
    base = known.get(reference)
    others = {label: s for label, s in known.items() if base and label != reference}
    apart = _moderated({label: intervals.difference(s, base) for label, s in others.items() if base})
    to_best = _moderated({label: intervals.difference(s, known[best]) for label, s in known.items() if label != best})
    means = _moderated({label: intervals.mean(s) for label, s in known.items()})
    ratios = {label: intervals.ratio(s, base) for label, s in others.items() if base}
    relative = _moderated({label: r for label, r in ratios.items() if r})
    decided = decisions.decide(known, {label: s.seeds for label, s in known.items()}, reference, direction, 0.0).rows
    holm = dict(zip(apart, intervals.holm([d.p for d in apart.values()]), strict=True))
    results = {}
    for label, mine in known.items():
        results[label] = ScoreVerdict(
            mean=means[label],
            interval=_within(means[label], limits),
            to_best=to_best.get(label),
            tied=_tied(to_best.get(label), len(known), decided[label].behind),
            difference=apart.get(label),
            p_holm=holm.get(label),
            relative=relative.get(label),
            better=intervals.wins(mine, base, sign) if label in apart and base else None,
        )
    return results


def _moderated(estimates: dict[str, Estimate]) -> dict[str, Estimate]:
    return dict(zip(estimates, moderated.moderate(list(estimates.values())), strict=True))


def _within(mean: Estimate, limits: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval of the mean, cut to the metric's range."""
    around = mean.interval()
    if around is None or limits is None:
        return around
    return max(limits[0], around[0]), min(limits[1], around[1])


def _tied(to_best: Estimate | None, configurations: int, is_behind: bool) -> bool | None:
    if to_best is None:
        return True
    if not to_best.is_of_runs:
        return None if to_best.half() is None else not is_behind
    half = to_best.half(1 - 2 * (1 - LEVEL) / (configurations - 1))  # of trained networks; the best's mean is above
    return None if half is None else abs(to_best.value) <= half
