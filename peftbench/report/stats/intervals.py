"""From a few seeds and many test examples to intervals and p-values whose level holds.

A score of seed s on the test set is m + a_s + b + e_s: `a` the seed's luck, `b` what the test examples add to every
seed alike, `e` what they add to this one. The mean over S seeds varies by

    V1 + V2,   V1 = (var(a) + var(e)) / S, estimated by the seeds' sample variance / S with S - 1 degrees of freedom,
               V2 = var(b), estimated by the mean covariance over the examples between two seeds.

These are the mean squares of Obuchowski and Rockette (Commun. Stat. Simul. 24, 1995), who compare tests read by few
readers on many cases: readers are seeds here, cases examples. The interval's half is

    h^2 = t(S - 1)^2 V1 + t(n - 1)^2 V2,   and never below t(n - 1)^2 x the variance over examples, these seeds fixed.

Its level holds whatever the shares of V1 and V2, for any number of such parts: the tail of a squared normal is convex,
so P(h is exceeded) is at most the weighted mean of the parts' own levels (Hajek, Math. Operationsforsch. 1962; Mickey
and Brown, Ann. Math. Stat. 37, 1966). Degrees of freedom matched to the estimates (Welch; Hillis, Stat. Med. 26, 2007)
are shorter, and at two or three seeds too short; so is any bootstrap over so few. docs/statistics.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RANGES = {"accuracy": (0.0, 1.0), "f1": (0.0, 1.0), "f1_macro": (0.0, 1.0), "mcc": (-1.0, 1.0), "pearson": (-1.0, 1.0),
          "spearman": (-1.0, 1.0), "bleu": (0.0, 100.0), "rougeL": (0.0, 100.0)}  # fmt: skip
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The scores of one configuration over its seeds, and what each test example does to each of them."""

    seeds: tuple[int, ...]
    values: Array  # (S,)
    influences: Array | None  # (S, n); None where the examples are not known
    grain: float = 0.0  # the least step of a score of n examples

    def at(self, seeds: Sequence[int]) -> Scores:
        """These seeds alone, in this order."""
        rows = [self.seeds.index(s) for s in seeds]
        return Scores(tuple(seeds), self.values[rows], None if self.influences is None else self.influences[rows],
                      self.grain)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean, a difference or a ratio, with the parts of its variance."""

    value: float
    seeds: int  # of the side that has fewer
    parts: tuple[tuple[float, int], ...] = ()  # (V1, its degrees of freedom) of each side; none with one seed
    shared: float = 0.0  # V2
    floor: float = 0.0  # variance over the examples, these seeds fixed
    examples: int = 0  # 0: not known

    @property
    def is_known(self) -> bool:
        """Whether anything is known of its uncertainty."""
        return self.examples > 0 or any(v > 0 for v, _ in self.parts)

    @property
    def is_of_runs(self) -> bool:
        """With one seed it says something of these trained networks on new examples, nothing of new seeds."""
        return not self.parts

    @property
    def se(self) -> float:
        return math.sqrt(max(sum(v for v, _ in self.parts) + self.shared, self.floor))

    def half(self, level: float = LEVEL) -> float | None:
        """Half of the interval's width; None where nothing is known."""
        return self._half((1 - level) / 2) if self.is_known else None

    def _half(self, tail: float) -> float:
        square = sum(_t2(df, tail) * v for v, df in self.parts if v > 0)
        if self.examples:
            t2 = _t2(self.examples - 1, tail)
            square = max(square + (t2 * self.shared if self.shared > 0 else 0.0), t2 * self.floor)
        return math.sqrt(square)

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        half = self.half(level)
        return None if half is None else (self.value - half, self.value + half)

    @property
    def p(self) -> float | None:
        """Two-sided p-value of the value 0: 1 - the level at which the interval just reaches it."""
        if not self.is_known:
            return None
        low, high = -60.0, 0.0  # log10 of it
        for _ in range(45):
            middle = (low + high) / 2
            reaches = self._half(10**middle / 2) >= abs(self.value)
            low, high = (middle, high) if reaches else (low, middle)
        return float(10**high)


def _t2(df: int, tail: float) -> float:
    """Squared quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, tail)) ** 2


def mean(of: Scores) -> Estimate:
    """The mean over the seeds."""
    return _estimate(of.values, of.influences, of.grain)


def of_examples(x: Array) -> Estimate:
    """The mean of what every seed has on every example.

    Args:
        x: (S, n), such as 1 where a prediction is right, or the difference of two configurations' there.
    """
    values = x.mean(1)
    return replace(_estimate(values, x - values[:, None], 0.0), value=float(x.mean()))


def difference(a: Scores, b: Scores, times: float = 1.0) -> Estimate:
    """a - times x b: by seed and example where the seeds are the same, else by example alone.

    Same seeds share the order of the data, the head's start and dropout, so their luck largely cancels out.
    """
    if common := paired(a.seeds, b.seeds):
        a, b = a.at(common), b.at(common)
        moved = None if a.influences is None or b.influences is None else a.influences - times * b.influences
        return _estimate(a.values - times * b.values, moved, max(a.grain, b.grain))
    return _unpaired(a, b, times)


def paired(a: Collection[int], b: Collection[int]) -> list[int]:
    """The seeds that both ran, where they are enough to pair by: two, or all that one side has."""
    common = sorted(set(a) & set(b))
    return common if len(common) >= min(2, len(a), len(b)) else []


def ratio(a: Scores, b: Scores) -> Estimate | None:
    """mean a / mean b by the delta method, over the seeds that `difference` pairs; None unless b's mean is positive."""
    if common := paired(a.seeds, b.seeds):
        a, b = a.at(common), b.at(common)
    below = float(b.values.mean())
    if below <= 0:
        return None
    value = float(a.values.mean()) / below
    d = difference(a, b, value)
    parts = tuple((v / below**2, df) for v, df in d.parts)
    return Estimate(value, d.seeds, parts, d.shared / below**2, d.floor / below**2, d.examples)


def inverse(of: Estimate) -> Estimate:
    """1 / a ratio, by the delta method."""
    by = of.value**-4
    parts = tuple((v * by, df) for v, df in of.parts)
    return Estimate(1 / of.value, of.seeds, parts, of.shared * by, of.floor * by, of.examples)


def average(of: Sequence[Estimate]) -> Estimate | None:
    """The mean of independent estimates (of tasks, taken as given); None where one is not known."""
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


def _estimate(values: Array, influences: Array | None, grain: float) -> Estimate:
    S = len(values)
    parts = ((float(values.var(ddof=1)) / S, S - 1),) if S > 1 else ()
    if influences is None:
        return Estimate(float(values.mean()), S, parts)
    shared, floor = _covariances(influences)
    return Estimate(float(values.mean()), S, parts, max(0.0, shared), floor + grain**2, influences.shape[1])


def _covariances(influences: Array) -> tuple[float, float]:
    """(mean covariance of two seeds over the examples, variance of the mean over the seeds)."""
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
    """Holm's step-down adjustment (Scand. J. Stat. 6, 1979) of the p-values that are known, in the given order."""
    known = sorted((v, i) for i, v in enumerate(p) if v is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for place, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * value))
        adjusted[i] = largest
    return adjusted


def wilson(share: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share of n (J. Am. Stat. Assoc. 22, 1927)."""
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    centre, width = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - width) / (1 + z * z / n)), min(1.0, (centre + width) / (1 + z * z / n))


def wins(a: Scores, b: Scores, sign: int = 1) -> tuple[float, float, float]:
    """P(A > B) of Bouthillier et al. (arXiv 2103.03098, section 4): how often a seed of A beats one of B; its interval.

    Pairs have the same seed where both ran it, else every seed meets every other; a tie is half a win. The interval is
    Wilson's over the seeds of the side with fewer.
    """
    if common := paired(a.seeds, b.seeds):
        gaps = sign * (a.at(common).values - b.at(common).values)
        n = len(common)
    else:
        gaps, n = sign * (a.values[:, None] - b.values[None, :]).ravel(), min(len(a.seeds), len(b.seeds))
    share = float(((gaps > 0) + 0.5 * (gaps == 0)).mean())
    return share, *wilson(share, n)
