"""What one table can say: every configuration's interval, its difference to the reference, and who ties with the best.

p-values of differences to the reference are adjusted by Holm over the table's other configurations. Tied with the best
is every configuration whose difference to the best mean is within its interval at level 1 - 5 % / (configurations - 1):
the one that is truly best is among them with at least 95 % (Bonferroni; Hsu, Multiple Comparisons, 1996, chapter 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from peftbench.report.data import pareto
from peftbench.report.stats import influence, intervals
from peftbench.report.stats.intervals import LEVEL, RANGES, Estimate, Scores

if TYPE_CHECKING:
    from peftbench.report.data.comparison import Comparison, Entry


@dataclass(frozen=True)
class Verdict:
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


def of(c: Comparison) -> dict[str, Verdict]:
    """By label, the verdict on every configuration that has a score."""
    found = verdicts(c.scores, c.reference, c.direction, RANGES.get(c.metric))
    fronts = pareto.probabilities(c) if found else {}
    return {label: replace(v, on_front=fronts[label]) for label, v in found.items()}


def verdicts(
    scores: Mapping[str, Scores], reference: str, direction: str, limits: tuple[float, float] | None = None
) -> dict[str, Verdict]:
    """By label, what seeds and examples say; `limits` are the values that the metric can have."""
    sign = -1 if direction == "min" else 1
    best = max(scores, key=lambda label: sign * scores[label].values.mean(), default="")  # the first of equals
    base = scores.get(reference)
    apart = {label: intervals.difference(s, base) for label, s in scores.items() if base and label != reference}
    holm = dict(zip(apart, intervals.holm([d.p for d in apart.values()]), strict=True))
    found = {}
    for label, mine in scores.items():
        mean = intervals.mean(mine)
        to_best = None if label == best else intervals.difference(mine, scores[best])
        found[label] = Verdict(
            mean=mean,
            interval=_within(mean, limits),
            to_best=to_best,
            tied=_tied(to_best, len(scores)),
            difference=apart.get(label),
            p_holm=holm.get(label),
            relative=intervals.ratio(mine, base) if label in apart and base else None,
            better=intervals.wins(mine, base, sign) if label in apart and base else None,
        )
    return found


def scores(c: Comparison) -> dict[str, Scores]:
    """By label, what is known of the runs of every configuration that has a score; predictions are read here."""
    scored = [e for e in c.entries if e.n]
    return {e.label: known(e, _labels(scored[0])) for e in scored}


def known(e: Entry, labels: list | None = None) -> Scores:
    """What is known of one configuration's runs; examples count where all have `labels`, or the first run's."""
    labels = labels or _labels(e)
    runs = {r.spec["seed"]: r for r in e.runs if r.is_finished}
    seeds, moved = tuple(sorted(e.scores)), list[np.ndarray]()
    for seed in seeds:
        told = runs[seed].predictions or {"values": [], "labels": []}
        effect = (
            influence.influences(e.metric, told["values"], labels, e.scores[seed]) if told["labels"] == labels else None
        )
        moved += [] if effect is None else [effect]
    whole = np.array(moved) if len(moved) == len(seeds) else None
    grain = influence.grain(e.metric, whole.shape[1]) if whole is not None else 0.0
    return Scores(seeds, np.array([e.scores[s] for s in seeds]), whole, grain)


def _labels(e: Entry) -> list:
    """The test labels as the first of its runs that has some was given them."""
    told = (r.predictions for r in sorted(e.runs, key=lambda r: int(r.spec["seed"])) if r.is_finished)
    return next((p["labels"] for p in told if p and p["labels"]), [])


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
