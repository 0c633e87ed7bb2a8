"""Pareto fronts of quality against a cost, and the probability that a configuration is on the front.

A configuration is on the front if no other is at least as good and at most as costly, and better in one of the two. Its
probability is the share of random draws in which this holds. In a draw, three things vary:

- other seeds: every mean moves by Student's t with the seeds' variance;
- other test examples: all means move by a Gaussian multiplier on each example's influence, common to all;
- times: every step time moves by its variation over the rounds.

Parameters and peak memory are exact.
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
SHOWN = 40  # draws shown in a figure
Array = NDArray[np.float64]


def _parameters(e: Entry) -> tuple[float, float] | None:
    count = e.parameter("trainable")
    return None if count is None else (float(count), 0.0)


def _memory(e: Entry) -> tuple[float, float] | None:
    return None if e.peak_bytes is None else (float(e.peak_bytes), 0.0)


def _step(e: Entry) -> tuple[float, float] | None:
    """(seconds, standard error of that median over the rounds: 1.2533 sd / sqrt(n), as for normal times)."""
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
    """The probability of each configuration to be on each Pareto front.

    Args:
        c: the table.

    Returns:
        label -> cost (a key of `COSTS`) -> probability; None if the score's variance or the cost is not known.
    """
    result: dict[str, dict[str, float | None]] = {label: dict.fromkeys(COSTS) for label in scores.of(c)}
    for cost in COSTS:
        labels, quality, costs = draws(c, cost)
        if len(labels) > 1:
            shares = on_front(quality, costs).mean(0)
            for label, share in zip(labels, shares, strict=True):
                result[label][cost] = float(share)
    return result


def draws(c: Comparison, cost: str) -> tuple[list[str], Array, Array]:
    """Draw scores and costs of the configurations whose uncertainty is known.

    Args:
        c: the table.
        cost: a key of `COSTS`.

    Returns:
        (k labels, (DRAWS, k) quality where higher is better, (DRAWS, k) costs in the unit of the cost).
    """
    known = scores.of(c)
    entries = [e for e in c.entries if e.label in known and known[e.label].influences is not None and COSTS[cost](e)]
    labels = [e.label for e in entries]
    if not entries:
        return labels, np.zeros((DRAWS, 0)), np.zeros((DRAWS, 0))
    random = np.random.RandomState(0)  # the same stream in every version of numpy
    values, moved = _moved([known[label] for label in labels], random)
    spent = [COSTS[cost](e) or (0.0, 0.0) for e in entries]
    at, around = np.array(spent).T
    sign = -1 if c.direction == "min" else 1
    drawn = np.clip(values + moved, *RANGES.get(c.metric, (-math.inf, math.inf)))
    return labels, sign * drawn, at + around * random.standard_normal((DRAWS, len(entries)))


def _moved(of: Sequence[Scores], random: np.random.RandomState) -> tuple[Array, Array]:
    """(k,) mean scores, and (DRAWS, k) deviations from them by drawing seeds and examples."""
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
    """Whether each configuration is on the front in each draw.

    Args:
        quality: (draws, k); higher is better.
        costs: (draws, k); lower is better.

    Returns:
        (draws, k) booleans.
    """
    q, c = quality[:, :, None], costs[:, :, None]
    as_good, as_cheap = quality[:, None, :] >= q, costs[:, None, :] <= c
    better = (quality[:, None, :] > q) | (costs[:, None, :] < c)
    beaten: NDArray[np.bool_] = np.any(as_good & as_cheap & better, axis=2)
    return ~beaten
