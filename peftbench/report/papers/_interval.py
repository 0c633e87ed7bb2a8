"""The interval of a mean score, or of a difference of two, over seeds and test examples.

Bootstrap over both: each draw takes as many seeds as there are, with replacement, and as many examples; two
configurations get the same draw, so their difference is paired by seed and example. Several claims of one figure hold
together at 95 %: each has its interval at 1 - 0.05 / claims (Bonferroni). The draws come from a fixed seed: the same
records give the same digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...record import Record
from ._records import NotRun, label, score

DRAWS, SEED, LEVEL = 4000, 0, 0.95


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def mean(runs: Sequence[Record], claims: int = 1) -> Interval:
    """Mean accuracy of one configuration over its seeds."""
    return _bootstrap(_correct(_by_seed(runs)), claims)


def difference(runs: Sequence[Record], reference: Sequence[Record], claims: int = 1) -> Interval:
    """Mean accuracy of `runs` less that of `reference`, over the seeds that both have, on the same examples."""
    mine, other = _by_seed(runs), _by_seed(reference)
    seeds = sorted(mine.keys() & other.keys())
    if not seeds:
        raise NotRun(f"{label(runs[0])} and {label(reference[0])} have no seed in common")
    a, b = (_correct({s: of[s] for s in seeds}) for of in (mine, other))
    return _bootstrap(a - b, claims)


def _by_seed(runs: Sequence[Record]) -> dict[int, Record]:
    return {r.spec["seed"]: r for r in runs}


def _correct(by_seed: dict[int, Record]) -> np.ndarray:
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


def _bootstrap(values: np.ndarray, claims: int) -> Interval:
    """(seeds, examples) to the mean, and the percentile interval of its bootstrap over both."""
    seeds, examples = values.shape
    draw = np.random.default_rng(SEED)
    weights = draw.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds  # (draws, seeds)
    counts = draw.multinomial(examples, np.full(examples, 1 / examples), DRAWS) / examples  # (draws, examples)
    means = np.einsum("ds,se,de->d", weights, values, counts, optimize=True)
    tail = (1 - LEVEL) / claims / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))
