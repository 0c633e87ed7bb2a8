"""Pareto fronts, quality against a cost, and how sure it is who stands on them.

A configuration is on the front if no other is at least as good and at most as costly, and better in one of the two. Its
probability is the share of draws in which it is: in a draw every mean moves by what other seeds (Student's t with the
seeds' own variance) and other test examples (the same ones for all: a Gaussian multiplier on each example's influence)
would have made of it, and every time by its spread over the rounds. Parameters and peak memory are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from peftbench.report.data import scores
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.stats.intervals import RANGES, Scores

DRAWS = 1000
SHOWN = 40  # of them in a figure
Array = NDArray[np.float64]


def _parameters(e: Entry) -> tuple[float, float] | None:
    count = e.parameter("trainable")
    return None if count is None else (float(count), 0.0)


def _memory(e: Entry) -> tuple[float, float] | None:
    return None if e.peak_bytes is None else (float(e.peak_bytes), 0.0)


def _step(e: Entry) -> tuple[float, float] | None:
    """Seconds, and the standard error of that median over the rounds (1.2533 sd / sqrt(n) for normal times)."""
    step = e.times.step if e.times else None
    if step is None:
        return None
    spread = (step.iqr or 0.0) / 1.349
    return step.median, 1.2533 * spread / math.sqrt(step.n or 1)


COSTS: Mapping[str, Callable[[Entry], tuple[float, float] | None]] = {
    "parameters": _parameters,
    "memory": _memory,
    "step time": _step,
}


def probabilities(c: Comparison) -> dict[str, dict[str, float | None]]:
    """By label and cost, the probability to be on the front; None where its score's variance or its cost is unknown."""
    result: dict[str, dict[str, float | None]] = {label: dict.fromkeys(COSTS) for label in scores.of(c)}
    for cost in COSTS:
        labels, quality, costs = draws(c, cost)
        if len(labels) > 1:
            shares = on_front(quality, costs).mean(0)
            for label, share in zip(labels, shares, strict=True):
                result[label][cost] = float(share)
    return result


def draws(c: Comparison, cost: str) -> tuple[list[str], Array, Array]:
    """(labels, quality (draws, k) where more is better, costs (draws, k)) of those whose uncertainty is known."""
    known = scores.of(c)
    entries = [e for e in c.entries if e.label in known and known[e.label].influences is not None and COSTS[cost](e)]
    labels = [e.label for e in entries]
    if not entries:
        return labels, np.zeros((DRAWS, 0)), np.zeros((DRAWS, 0))
    random = np.random.RandomState(0)  # its streams are the same in every version of numpy
    values, moved = _moved([known[label] for label in labels], random)
    spent = [COSTS[cost](e) or (0.0, 0.0) for e in entries]
    at, around = np.array(spent).T
    sign = -1 if c.direction == "min" else 1
    drawn = np.clip(values + moved, *RANGES.get(c.metric, (-math.inf, math.inf)))
    return labels, sign * drawn, at + around * random.standard_normal((DRAWS, len(entries)))


def _moved(of: Sequence[Scores], random: np.random.RandomState) -> tuple[Array, Array]:
    """The means, and what draws of seeds and examples add to them."""
    means = np.array([s.values.mean() for s in of])
    influences = np.array([s.influences.mean(0) for s in of if s.influences is not None])  # (k, n)
    n = influences.shape[1]
    moved = random.standard_normal((DRAWS, n)) @ influences.T / math.sqrt(n * (n - 1))
    for i, s in enumerate(of):
        seeds = len(s.seeds)
        if seeds > 1:
            moved[:, i] += random.standard_t(seeds - 1, DRAWS) * s.values.std(ddof=1) / math.sqrt(seeds)
    return means, moved


def on_front(quality: Array, costs: Array) -> NDArray[np.bool_]:
    """(draws, k) whether no other is as good and as cheap and better in one of the two."""
    q, c = quality[:, :, None], costs[:, :, None]
    as_good, as_cheap = quality[:, None, :] >= q, costs[:, None, :] <= c
    better = (quality[:, None, :] > q) | (costs[:, None, :] < c)
    beaten: NDArray[np.bool_] = np.any(as_good & as_cheap & better, axis=2)
    return ~beaten
