"""The interval of a mean accuracy, or of a difference of two, over seeds and test examples.

Few seeds and many examples: the two parts of the variance are estimated apart, after Obuchowski and Rockette (Commun.
Stat. Simul. 24, 1995), who compare tests read by few readers on many cases. With x (seeds S, examples n) the rightness
of a prediction, or the difference of two configurations' on the same seed and example,

    V1 = var of the seeds' means / S, of S - 1 degrees of freedom;  V2 = mean covariance over examples of two seeds / n;
    half^2 = t(S - 1)^2 V1 + t(n - 1)^2 V2, and at least t(n - 1)^2 x the variance over examples with the seeds fixed.

A bootstrap over three seeds would be too short. The claims of one figure hold together at 95 %: each has its interval
at 1 - 0.05 / claims (Bonferroni). One seed says nothing of others: its interval has no ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from peftbench.records.record import Record
from peftbench.report.papers._records import NotRun, label, score

LEVEL = 0.95


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def mean(runs: Sequence[Record], claims: int = 1) -> Interval:
    """Mean accuracy of one configuration over its seeds."""
    return of(_right(_by_seed(runs)), claims)


def difference(runs: Sequence[Record], reference: Sequence[Record], claims: int = 1) -> Interval:
    """Mean accuracy of `runs` less that of `reference`, over the seeds that both have, on the same examples."""
    mine, other = _by_seed(runs), _by_seed(reference)
    seeds = sorted(mine.keys() & other.keys())
    if not seeds:
        raise NotRun(f"{label(runs[0])} and {label(reference[0])} have no seed in common")
    a, b = (_right({s: by_seed[s] for s in seeds}) for by_seed in (mine, other))
    return of(a - b, claims)


def of(x: np.ndarray, claims: int = 1) -> Interval:
    """The mean of x (seeds, examples) with its interval."""
    from scipy.special import stdtrit

    seeds, examples = x.shape
    value = float(x.mean())
    if seeds < 2:
        return Interval(value, -math.inf, math.inf)
    tail = (1 - LEVEL) / claims / 2
    by_seed, by_example = (float(stdtrit(n - 1, 1 - tail)) ** 2 for n in (seeds, examples))
    covariance = np.cov(x) / examples  # (seeds, seeds)
    shared = max(0.0, (covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1)))
    square = by_seed * x.mean(1).var(ddof=1) / seeds + by_example * shared
    half = math.sqrt(max(square, by_example * max(0.0, covariance.mean())))
    return Interval(value, value - half, value + half)


def _by_seed(runs: Sequence[Record]) -> dict[int, Record]:
    return {r.spec["seed"]: r for r in runs}


def _right(by_seed: dict[int, Record]) -> np.ndarray:
    """(seeds, examples): 1 where the prediction is right; the examples in the order of their ids."""
    rows = []
    for r in by_seed.values():
        if r.body["metrics"]["primary"] != "accuracy" or r.predictions is None:
            raise ValueError(f"{r.path.name}: intervals here are of accuracies with predictions")
        order = np.argsort(r.predictions["ids"], kind="stable")
        right = np.asarray(r.predictions["values"]) == np.asarray(r.predictions["labels"])
        if abs(right.mean() - score(r)) > 1e-6:
            raise ValueError(f"{r.path.name}: its predictions have accuracy {right.mean()}, its metrics {score(r)}")
        rows.append(right[order].astype(float))
    if len({len(row) for row in rows}) > 1:
        raise ValueError("runs on test splits of different sizes cannot be paired")
    return np.stack(rows)
