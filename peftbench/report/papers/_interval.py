"""Intervals of a mean accuracy, or of a difference of two, over seeds and test examples; see `report.stats.intervals`.

The claims of a figure hold jointly at 95 %: each has an interval at level 1 - 0.05 / claims (Bonferroni). Where a
figure is read after some of its seeds, its error is spent over these looks (`report.stats.spending`), so that all of
them hold. One seed says nothing about other seeds, so its interval is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from peftbench.records.record import RunRecord
from peftbench.report.papers._records import NotRun, label, score
from peftbench.report.stats import intervals, power
from peftbench.report.stats.intervals import LEVEL, Estimate
from peftbench.report.stats.spending import Spending, nominal_levels


@dataclass(frozen=True)
class HalfWidth:
    """Half the width of an interval as it would be with another number of seeds, its middle and variances kept."""

    estimate: Estimate
    claims: int = 1
    looks: tuple[int, ...] = ()  # numbers of seeds at which it is read; () for once
    spending: Spending = "obrien_fleming"
    unit: float = 1.0  # what it is multiplied with, such as 100 for percentage points

    def __call__(self, seeds: int) -> float:
        half = power.with_seeds(self.estimate, seeds).half(self.level(seeds))
        assert half is not None  # there are several seeds
        return self.unit * half

    def level(self, seeds: int) -> float:
        """The level of the interval at the look that so many seeds have reached."""
        error = (1 - LEVEL) / self.claims
        if not self.looks:
            return 1 - error
        reached = sum(look <= seeds for look in self.looks)
        return 1 - 2 * nominal_levels(self.looks, error / 2, self.spending)[max(reached, 1) - 1]


class Interval(NamedTuple):
    """A value with the ends of its interval, all in one unit."""

    value: float
    low: float
    high: float
    half_at: HalfWidth | None = None  # None with one seed, or where seeds are not what is uncertain


def mean(runs: Sequence[RunRecord], claims: int = 1) -> Interval:
    """Mean accuracy of a configuration over its seeds and test examples.

    Args:
        runs: one run per seed, with predictions.
        claims: number of claims that hold jointly.

    Raises:
        ValueError: if the metric is not accuracy, or the predictions do not reproduce it.
    """
    return of(_right(_by_seed(runs)), claims)


def difference(
    runs: Sequence[RunRecord], reference: Sequence[RunRecord], claims: int = 1, looks: Sequence[int] = ()
) -> Interval:
    """Mean accuracy of `runs` minus that of `reference`, over their common seeds and the same examples.

    Args:
        runs, reference: one run per seed, with predictions.
        claims: number of claims that hold jointly.
        looks: numbers of seeds at which the claims are read, the last the most that run; none for once.

    Raises:
        NotRun: without a common seed.
        ValueError: if the metric is not accuracy, or the predictions do not reproduce it.
    """
    mine, other = _by_seed(runs), _by_seed(reference)
    seeds = sorted(mine.keys() & other.keys())
    if not seeds:
        raise NotRun(f"{label(runs[0])} and {label(reference[0])} have no seed in common")
    a, b = (_right({s: by_seed[s] for s in seeds}) for by_seed in (mine, other))
    return of(a - b, claims, looks)


def of(x: np.ndarray, claims: int = 1, looks: Sequence[int] = ()) -> Interval:
    """The mean with its interval.

    Args:
        x: (S, n) over seeds and test examples.
        claims: number of claims that hold jointly.
        looks: numbers of seeds at which the claims are read; none for once.
    """
    return around(intervals.of_examples(x), claims, looks)


def around(e: Estimate, claims: int = 1, looks: Sequence[int] = (), spending: Spending = "obrien_fleming") -> Interval:
    """An estimate with its interval; infinite with one seed."""
    if e.is_of_runs:
        return Interval(e.value, -math.inf, math.inf)
    half_at = HalfWidth(e, claims, tuple(looks), spending)
    half = half_at(e.seeds)
    return Interval(e.value, e.value - half, e.value + half, half_at)


def _by_seed(runs: Sequence[RunRecord]) -> dict[int, RunRecord]:
    return {r.spec.seed: r for r in runs}


def _right(by_seed: dict[int, RunRecord]) -> np.ndarray:
    """(S, n): 1 where the prediction is correct; examples are sorted by id."""
    rows = []
    for r in by_seed.values():
        predictions = r.predictions
        if r.metrics.primary != "accuracy" or predictions is None:
            raise ValueError(f"{r.path.name}: intervals here are of accuracies with predictions")
        order = np.argsort(predictions.ids, kind="stable")
        right = np.asarray(predictions.values) == np.asarray(predictions.labels)
        if abs(right.mean() - score(r)) > 1e-6:
            raise ValueError(f"{r.path.name}: its predictions have accuracy {right.mean()}, its metrics {score(r)}")
        rows.append(right[order].astype(float))
    if len({len(row) for row in rows}) > 1:
        raise ValueError("runs on test splits of different sizes cannot be paired")
    return np.stack(rows)
