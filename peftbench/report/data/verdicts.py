"""What one table can say: every configuration's interval, its difference to the reference, and who ties with the best.

p-values of differences to the reference are adjusted by Holm over the table's other configurations. Tied with the best
is every configuration whose difference to the best mean is within its interval at level 1 - 5 % / (configurations - 1):
the one that is truly best is among them with at least 95 % (Bonferroni; Hsu, Multiple Comparisons, 1996, chapter 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from peftbench.report.data import pareto, scores
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.weak_cache import weak_cache
from peftbench.report.stats import intervals
from peftbench.report.stats.intervals import LEVEL, RANGES, Estimate, Scores


@dataclass(frozen=True)
class ScoreVerdict:
    """What can be said of one configuration; None where nothing is known."""

    mean: Estimate
    interval: tuple[float, float] | None  # of the mean, within the metric's range
    to_best: Estimate | None = None  # None for the best itself
    tied: bool | None = None  # the best, or not told apart from it; None where that cannot be said
    difference: Estimate | None = None  # to the reference; None for itself
    p_holm: float | None = None  # of that difference
    relative: Estimate | None = None  # mean / the reference's mean
    better: tuple[float, float, float] | None = None  # P(a run of it beats one of the reference), its interval
    on_front: Mapping[str, float | None] | None = None  # cost -> probability to be on the Pareto front

    @property
    def is_best(self) -> bool:
        return self.tied is True and self.to_best is None


@weak_cache
def of(c: Comparison) -> Mapping[str, ScoreVerdict]:
    """By label, the verdict on every configuration that has a score; computed once a comparison."""
    results = verdicts(scores.of(c), c.reference, c.direction, RANGES.get(c.metric))
    fronts = pareto.probabilities(c) if results else {}
    return {label: replace(v, on_front=fronts[label]) for label, v in results.items()}


def verdicts(
    known: Mapping[str, Scores], reference: str, direction: str, limits: tuple[float, float] | None = None
) -> dict[str, ScoreVerdict]:
    """By label, what seeds and examples say; `limits` are the values that the metric can have."""
    sign = -1 if direction == "min" else 1
    best = max(known, key=lambda label: sign * known[label].values.mean(), default="")  # the first of equals
    base = known.get(reference)
    apart = {label: intervals.difference(s, base) for label, s in known.items() if base and label != reference}
    holm = dict(zip(apart, intervals.holm([d.p for d in apart.values()]), strict=True))
    results = {}
    for label, mine in known.items():
        mean = intervals.mean(mine)
        to_best = None if label == best else intervals.difference(mine, known[best])
        results[label] = ScoreVerdict(
            mean=mean,
            interval=_within(mean, limits),
            to_best=to_best,
            tied=_tied(to_best, len(known)),
            difference=apart.get(label),
            p_holm=holm.get(label),
            relative=intervals.ratio(mine, base) if label in apart and base else None,
            better=intervals.wins(mine, base, sign) if label in apart and base else None,
        )
    return results


def _within(mean: Estimate, limits: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval without values that the metric cannot have."""
    around = mean.interval()
    if around is None or limits is None:
        return around
    return max(limits[0], around[0]), min(limits[1], around[1])


def _tied(to_best: Estimate | None, configurations: int) -> bool | None:
    if to_best is None:
        return True
    half = to_best.half(1 - (1 - LEVEL) / (configurations - 1))
    return None if half is None else abs(to_best.value) <= half
