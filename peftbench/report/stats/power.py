"""How many seeds or test examples it takes to see a difference of a given size, by the interval that will judge it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from peftbench.report.stats.intervals import LEVEL, Estimate

POWER = 0.8
MOST = 1000  # seeds that are looked at


@dataclass(frozen=True)
class VarianceComponents:
    """What a difference of two configurations varies by."""

    seed: float  # variance from one seed to another, with what the test examples do to one seed alone
    shared: float  # variance from the test examples that all seeds share
    examples: int  # 0: not known

    @classmethod
    def of(cls, pairs: Sequence[Estimate]) -> VarianceComponents:
        """The mean over pairs: of a few seeds, each alone says too little."""
        return cls(
            seed=sum(sum(v for v, _ in p.parts) * p.seeds for p in pairs) / len(pairs),
            shared=sum(p.shared for p in pairs) / len(pairs),
            examples=min(p.examples for p in pairs),
        )

    def seeds_for(self, size: float, power: float = POWER) -> int | None:
        """Seeds at which a true difference of `size` is seen with `power`; None: with no number of them."""
        return next((n for n in range(2, MOST + 1) if self._sees(n, size, power)), None)

    def examples_for(self, size: float, power: float = POWER) -> float:
        """Test examples at which many seeds see it."""
        from scipy.special import ndtri

        z = float(ndtri((1 + LEVEL) / 2) + ndtri(power))
        return self.examples * self.shared * z * z / (size * size)

    def _sees(self, seeds: int, size: float, power: float) -> bool:
        from scipy.special import ndtri, stdtrit

        t, z = float(stdtrit(seeds - 1, (1 + LEVEL) / 2)), float(ndtri((1 + LEVEL) / 2))
        half = math.sqrt(t * t * self.seed / seeds + z * z * self.shared)
        return size >= half + float(ndtri(power)) * math.sqrt(self.seed / seeds + self.shared)
