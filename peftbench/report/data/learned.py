"""Whether a task was learned: does the reference beat the best constant answer by more than its interval?

That answer is the majority class, or for numbers the mean of the training labels.
"""

from __future__ import annotations

import math
import statistics

from peftbench.records.bodies import Predictions
from peftbench.report.data import scores
from peftbench.report.data.comparison import Entry
from peftbench.report.stats import influence, intervals
from peftbench.report.stats.intervals import LEVEL, wilson

Z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)  # standard errors on each side of an interval
PROPORTIONS = ("accuracy", "f1")  # proportions: their sampling error is at most about binomial
CORRELATIONS = ("mcc", "matthews", "pearson", "spearman")
# Fisher's z applies: Matthews' is Pearson's r of two binary variables


def learned(base: Entry, majority: float | None, direction: str, metric: str) -> bool | None:
    """Whether the reference beats the best constant answer by more than its interval.

    With three or more seeds this is the interval of its table, over seeds and test examples. With fewer seeds that
    interval decides nothing (12.7 standard errors at two seeds). Every seed must then win by more than the sampling
    error of its own test examples: binomial for proportions, Fisher's z for correlations, the jackknife for errors.

    Args:
        base: the reference's entry.
        majority: score of the constant predictor.
        direction: "max" or "min", which of the two is better.
        metric: name of the metric.

    Returns:
        None if there is no majority score, no finished run, or no interval for the metric.
    """
    if majority is None or base.mean is None:
        return None
    sign = -1 if direction == "min" else 1
    if base.n >= 3:
        half = intervals.mean(scores.known(base)).half() or 0.0  # None if all seeds agree and examples are unknown
        return sign * (base.mean - majority) > half
    worst = min(base.runs, key=lambda r: sign * base.scores.get(r.spec.seed, sign * math.inf))
    score, values = base.scores[worst.spec.seed], worst.predictions
    if direction == "min":
        if score >= majority:
            return False
        error = _half_of_error(metric, score, values)
        return None if error is None else score + error < majority
    low = _lower_bound(metric, score, len(values.labels) if values else 0)
    return None if low is None else low > majority


def _half_of_error(metric: str, score: float, predictions: Predictions | None) -> float | None:
    """Half the interval of an error over its test examples alone, by the jackknife; None if it cannot be computed."""
    if predictions is None:
        return None
    effect = influence.influences(metric, predictions.values, predictions.labels, score)
    if effect is None:
        return None
    n = len(effect)
    return Z * math.sqrt(math.fsum(e * e for e in effect.tolist()) / (n * (n - 1)))


def _lower_bound(metric: str, score: float, examples: int) -> float | None:
    """Lower end of a score's interval over its test examples alone; None without a formula for the metric."""
    name = metric.lower()
    if name in PROPORTIONS and examples > 0 and 0 <= score <= 1:
        return wilson(score, examples)[0]
    if any(c in name for c in CORRELATIONS) and examples > 3 and abs(score) < 1:
        return math.tanh(math.atanh(score) - Z / math.sqrt(examples - 3))
    return None
