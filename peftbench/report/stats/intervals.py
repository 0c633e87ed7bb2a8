"""Intervals and p-values from a few seeds and many test examples.

The score of seed s on the test set is m + a_s + b + e_s. The seed contributes `a`, the test examples contribute `b` to
all seeds alike and `e` to this seed alone. The mean over S seeds has the variance

    V1 + V2,   V1 = (var(a) + var(e)) / S: the sample variance of the seeds / S, with S - 1 degrees of freedom,
               V2 = var(b): the mean covariance of two seeds over the examples.

These are the mean squares of Obuchowski and Rockette (Commun. Stat. Simul. 24, 1995), with seeds for their readers and
examples for their cases. The half width of the interval is

    h^2 = t(S - 1)^2 V1 + t(n - 1)^2 V2,   at least t(n - 1)^2 x the variance over examples for these seeds.

The interval keeps its level for any shares of V1 and V2, and for any number of such parts. The tail of a squared normal
is convex, so the probability of exceeding h is at most the weighted mean of the parts' levels (Hajek, Math.
Operationsforsch. 1962; Mickey and Brown, Ann. Math. Stat. 37, 1966). Intervals with matched degrees of freedom (Welch;
Hillis, Stat. Med. 26, 2007) are too short at two or three seeds, and so is the bootstrap. docs/statistics.md has the
measured error rates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from peftbench.records.ranges import LEAST

LEVEL = 0.95
ROUNDING = 1e-12  # of what is subtracted: scores that differ by less are equal, and the rest is floating-point noise
RANGES = {"accuracy": (0.0, 1.0), "f1": (0.0, 1.0), "f1_macro": (0.0, 1.0), "mcc": (-1.0, 1.0), "pearson": (-1.0, 1.0),
          "spearman": (-1.0, 1.0), "bleu": (0.0, 100.0), "rougeL": (0.0, 100.0)}  # fmt: skip
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The scores of one configuration over its S seeds, and the influence of its n test examples.

    Attributes:
        seeds: S seeds, ascending.
        values: (S,) scores in the metric's unit.
        influences: (S, n) jackknife influences (`stats.influence`); None if the predictions are not available.
        grain: smallest change of a score by one example, in the metric's unit; 0 if continuous.
    """

    seeds: tuple[int, ...]
    values: Array
    influences: Array | None
    grain: float = 0.0

    def at(self, seeds: Sequence[int]) -> Scores:
        """Select `seeds`, which must all be among its own, in this order."""
        if (given := tuple(seeds)) == self.seeds:
            return self
        rows = [self.seeds.index(s) for s in given]
        return Scores(given, self.values[rows], None if self.influences is None else self.influences[rows],
                      self.grain)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean, difference or ratio, with the components of its variance.

    Attributes:
        value: the estimate, in the metric's unit (a ratio has none).
        seeds: number of seeds; of a difference, that of the side with fewer.
        parts: (V1, degrees of freedom) of each side; empty with one seed.
        shared: V2, the variance over test examples that all seeds share.
        floor: variance over test examples for these seeds; the interval is never narrower.
        examples: number of test examples; 0 if their influences are not known.
    """

    value: float
    seeds: int
    parts: tuple[tuple[float, float], ...] = ()
    shared: float = 0.0
    floor: float = 0.0
    examples: int = 0

    @property
    def is_known(self) -> bool:
        """Whether its uncertainty can be estimated."""
        return self.examples > 0 or any(v > 0 for v, _ in self.parts)

    @property
    def is_of_runs(self) -> bool:
        """Whether it holds for the trained networks alone: one seed says nothing about other seeds."""
        return not self.parts

    @property
    def se(self) -> float:
        """Standard error."""
        return math.sqrt(max(sum(v for v, _ in self.parts) + self.shared, self.floor))

    def half(self, level: float = LEVEL) -> float | None:
        """Half width of the interval.

        Args:
            level: confidence level, 0 to 1.

        Returns:
            The half width in the unit of `value`; None if the uncertainty is not known.
        """
        return self._half((1 - level) / 2) if self.is_known else None

    def _half(self, tail: float) -> float:
        square = sum(_t2(df, tail) * v for v, df in self.parts if v > 0)
        if self.examples:
            t2 = _t2(self.examples - 1, tail)
            square = max(square + (t2 * self.shared if self.shared > 0 else 0.0), t2 * self.floor)
        return math.sqrt(square)

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """(low, high) at this confidence level; None if the uncertainty is not known."""
        half = self.half(level)
        return None if half is None else (self.value - half, self.value + half)

    def negative(self) -> Estimate:
        """The same difference, seen from the other side."""
        return replace(self, value=-self.value)

    @property
    def p(self) -> float | None:
        """Two-sided p-value of 0: one minus the level at which the interval just reaches 0; None if not known."""
        if not self.is_known:
            return None
        low, high = -60.0, 0.0  # log10 of p, found by bisection
        for _ in range(45):
            middle = (low + high) / 2
            reaches = self._half(10**middle / 2) >= abs(self.value)
            low, high = (middle, high) if reaches else (low, middle)
        return float(10**high)


@lru_cache(maxsize=4096)
def _t2(df: float, tail: float) -> float:
    """Squared quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, tail)) ** 2


def mean(of: Scores) -> Estimate:
    """The mean score over the seeds."""
    return _estimate(of.values, of.influences, of.grain)


def of_examples(x: Array) -> Estimate:
    """The mean over seeds and test examples of a value that each pair has.

    Args:
        x: (S, n), for example 1 where a prediction is correct, or the difference of two configurations there.
    """
    values = x.mean(1)
    return replace(_estimate(values, x - values[:, None], 0.0), value=float(x.mean()))


def difference(a: Scores, b: Scores, times: float = 1.0) -> Estimate:
    """Estimate a - times x b, paired by seed and example if the seeds allow it, else by example alone.

    Equal seeds share the data order, the head's initialization and dropout, so most of their variance cancels.

    Args:
        a, b: scores of two configurations on the same n test examples.
        times: factor of b.
    """
    if common := paired(a.seeds, b.seeds):
        a, b = a.at(common), b.at(common)
        moved = None if a.influences is None or b.influences is None else a.influences - times * b.influences
        sizes = np.abs([a.values, times * b.values])
        return _estimate(a.values - times * b.values, moved, max(a.grain, b.grain), float(sizes.max()))
    return _unpaired(a, b, times)


def paired(a: Collection[int], b: Collection[int]) -> list[int]:
    """The common seeds, ascending, if at least two or all seeds of one side; else empty, as they cannot be paired."""
    common = sorted(set(a) & set(b))
    return common if len(common) >= min(2, len(a), len(b)) else []


def ratio(a: Scores, b: Scores) -> Estimate | None:
    """Estimate mean(a) / mean(b) by the delta method, paired as in `difference`; None unless mean(b) is positive."""
    if common := paired(a.seeds, b.seeds):
        a, b = a.at(common), b.at(common)
    below = float(b.values.mean())
    if below < LEAST:
        return None
    value = float(a.values.mean()) / below
    d = difference(a, b, value)
    parts = tuple((v / below**2, df) for v, df in d.parts)
    return Estimate(value, d.seeds, parts, d.shared / below**2, d.floor / below**2, d.examples)


def inverse(of: Estimate) -> Estimate | None:
    """The inverse of a ratio, by the delta method; None unless the ratio is positive."""
    if of.value < LEAST:
        return None
    by = of.value**-4
    parts = tuple((v * by, df) for v, df in of.parts)
    return Estimate(1 / of.value, of.seeds, parts, of.shared * by, of.floor * by, of.examples)


def average(of: Sequence[Estimate]) -> Estimate | None:
    """The mean of independent estimates, such as ratios on given tasks; None for none, or if one is not known."""
    k = len(of)
    if not k or not all(e.is_known for e in of):
        return None
    parts = tuple((v / k**2, df) for e in of for v, df in e.parts)
    fixed = 0.0 if all(e.parts for e in of) else sum(e.floor for e in of if not e.parts) / k**2
    return Estimate(
        value=sum(e.value for e in of) / k,
        seeds=min(e.seeds for e in of),
        parts=parts,
        shared=sum(e.shared for e in of) / k**2 + fixed,
        floor=sum(e.floor for e in of) / k**2,
        examples=min((e.examples for e in of if e.examples), default=0),
    )


def _estimate(values: Array, influences: Array | None, grain: float, size: float | None = None) -> Estimate:
    S = len(values)
    parts = ((_variance(values, size) / S, S - 1),) if S > 1 else ()
    if influences is None:
        return Estimate(float(values.mean()), S, parts)
    shared, floor = _covariances(influences)
    return Estimate(float(values.mean()), S, parts, max(0.0, shared), floor + grain**2, influences.shape[1])


def _variance(values: Array, size: float | None = None) -> float:
    """The sample variance; exactly 0 where values differ by rounding alone, as 1e-33 would pass for a known spread.

    Args:
        values: S > 1 values.
        size: the largest number that they were computed from; default: the largest of them.
    """
    size = float(np.abs(values).max()) if size is None else size
    return 0.0 if float(np.ptp(values)) <= ROUNDING * size else float(values.var(ddof=1))


def _covariances(influences: Array) -> tuple[float, float]:
    """(mean covariance of two seeds over the examples, variance of the mean over seeds)."""
    S, n = influences.shape
    whole = float((influences.sum(0) ** 2).sum()) / (n * (n - 1))
    own = float((influences**2).sum()) / (n * (n - 1))
    return (whole - own) / (S * (S - 1)) if S > 1 else 0.0, whole / S**2


def _unpaired(a: Scores, b: Scores, times: float) -> Estimate:
    value, seeds = float(a.values.mean() - times * b.values.mean()), min(len(a.seeds), len(b.seeds))
    sides = [_estimate(s.values * c, None if s.influences is None else s.influences * c, 0.0)
             for s, c in ((a, 1.0), (b, times))]  # fmt: skip
    parts = tuple(part for side in sides for part in side.parts) if seeds > 1 else ()
    if a.influences is None or b.influences is None:
        return Estimate(value, seeds, parts)
    n = a.influences.shape[1]
    both = a.influences.mean(0) - times * b.influences.mean(0)
    cross = float((a.influences.mean(0) * times * b.influences.mean(0)).sum()) / (n * (n - 1))
    shared = sum(_covariances(s.influences * c)[0] for s, c in ((a, 1.0), (b, times)) if s.influences is not None)
    floor = float((both**2).sum()) / (n * (n - 1)) + max(a.grain, b.grain) ** 2
    return Estimate(value, seeds, parts, max(0.0, shared - 2 * cross) if parts else 0.0, floor, n)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for multiple comparisons by Holm's step-down method (Scand. J. Stat. 6, 1979).

    Args:
        p: p-values; None where one is not known.

    Returns:
        The adjusted p-values in the given order; None where `p` has None.
    """
    known = sorted((v, i) for i, v in enumerate(p) if v is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for place, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * value))
        adjusted[i] = largest
    return adjusted


def wilson(share: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a proportion (J. Am. Stat. Assoc. 22, 1927).

    Args:
        share: observed proportion, 0 to 1.
        n: number of observations.
        level: confidence level, 0 to 1.

    Returns:
        (low, high), both within 0 to 1.
    """
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    centre, width = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - width) / (1 + z * z / n)), min(1.0, (centre + width) / (1 + z * z / n))


def wins(a: Scores, b: Scores, sign: int = 1) -> tuple[float, float, float]:
    """P(A > B) of Bouthillier et al. (arXiv 2103.03098, section 4): how often a run of A beats a run of B.

    Runs are paired by seed if possible; else every run of A meets every run of B. A tie counts as half a win.

    Args:
        a, b: scores of the two configurations.
        sign: 1 if higher scores are better, -1 if lower.

    Returns:
        (share, low, high): the share and its Wilson interval over the seeds of the side with fewer.
    """
    if common := paired(a.seeds, b.seeds):
        gaps = sign * (a.at(common).values - b.at(common).values)
        n = len(common)
    else:
        gaps, n = sign * (a.values[:, None] - b.values[None, :]).ravel(), min(len(a.seeds), len(b.seeds))
    share = float(((gaps > 0) + 0.5 * (gaps == 0)).mean())
    return share, *wilson(share, n)
