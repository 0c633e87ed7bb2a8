"""How many seeds or test examples it takes to detect a difference of a given size, by the intervals of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftbench.records.ranges import LEAST
from peftbench.report.stats.intervals import LEVEL, Estimate

POWER = 0.8
MOST = 1000  # largest number of seeds tried


@dataclass(frozen=True)
class VarianceComponents:
    """The variance components of a difference of two configurations, in the metric's unit squared.

    Attributes:
        seed: variance between seeds, including the part of the test examples that differs by seed.
        shared: variance over the test examples that all seeds share.
        examples: number of test examples; 0 if not known.
        prior: degrees of freedom that other rows of the table lend to the variance between seeds.
    """

    seed: float
    shared: float
    examples: int
    prior: float = 0.0

    @classmethod
    def of(cls, pairs: Sequence[Estimate]) -> VarianceComponents:
        """Average the components over several differences, as a few seeds estimate each one poorly.

        Args:
            pairs: differences with at least two seeds each; not empty.
        """
        return cls(
            seed=sum(sum(v for v, _ in p.parts) * p.seeds for p in pairs) / len(pairs),
            shared=sum(p.shared for p in pairs) / len(pairs),
            examples=min(p.examples for p in pairs),
            prior=max(0.0, sum(min(df for _, df in p.parts) - (p.seeds - 1) for p in pairs) / len(pairs)),
        )

    def seeds_for(self, size: float, power: float = POWER) -> int | None:
        """The number of seeds that detects a true difference.

        Args:
            size: the difference, in the metric's unit.
            power: probability of detecting it, 0 to 1.

        Returns:
            The number of seeds; None if more than `MOST` would be needed.
        """
        return next((n for n in range(2, MOST + 1) if self._sees(n, size, power)), None)

    def examples_for(self, size: float, power: float = POWER) -> float:
        """The number of test examples that detects a difference of `size` with many seeds; infinite for none."""
        from scipy.special import ndtri

        if size < LEAST:
            return math.inf

        z = float(ndtri((1 + LEVEL) / 2) + ndtri(power))
        return self.examples * self.shared * z * z / (size * size)

    def _sees(self, seeds: int, size: float, power: float) -> bool:
        from scipy.special import ndtri, stdtrit

        t, z = float(stdtrit(seeds - 1 + self.prior, (1 + LEVEL) / 2)), float(ndtri((1 + LEVEL) / 2))
        half = math.sqrt(t * t * self.seed / seeds + z * z * self.shared)
        return size >= half + float(ndtri(power)) * math.sqrt(self.seed / seeds + self.shared)


def with_seeds(now: Estimate, seeds: int) -> Estimate:
    """The estimate as it would be with this many seeds, if its value and the variances stayed; several seeds now."""
    share = now.seeds / seeds
    parts = tuple((v * share, df + seeds - now.seeds) for v, df in now.parts)
    floor = now.shared + max(0.0, now.floor - now.shared) * share
    return replace(now, seeds=seeds, parts=parts, floor=floor)


def chance_above(now: Estimate, bound: float, seeds: int, level: float) -> float:
    """The chance that with more seeds an estimate is surely above a bound, given what is known now.

    The new seeds are drawn around a mean of which the seeds so far are all that is known; the variances stay.

    Args:
        now: the estimate with the seeds so far.
        bound: what it must exceed.
        seeds: number of seeds in the end.
        level: of the one-sided test in the end.

    Returns:
        A probability, 0 to 1.
    """
    from scipy.special import ndtr

    share = min(1.0, now.seeds / seeds)
    half = with_seeds(now, max(now.seeds, seeds)).half(1 - 2 * level)
    if half is None:
        return 0.0
    moves = math.sqrt(sum(v for v, _ in now.parts) * (1 - share))
    ahead = now.value - bound - half
    return float(ndtr(ahead / moves)) if moves > 0 else float(ahead > 0)
