"""Ranks over tasks: Friedman's test and Nemenyi's critical difference (Demsar, JMLR 7, 2006, section 3.2.2).

    chi2 = 12 N / (k (k + 1)) (sum_j R_j^2 - k (k + 1)^2 / 4)     k configurations, N tasks, mean ranks R_j
    CD = q sqrt(k (k + 1) / (6 N))                                 q: Studentized range of k, infinite df, / sqrt(2)

chi2 is corrected for ties. Its p-value comes from permutations within the tasks, as the chi-squared approximation needs
more than ten tasks. Two configurations differ if their mean ranks lie at least CD apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peftbench.report.media.plain import natural
from peftbench.report.stats.intervals import LEVEL

PERMUTATIONS = 9_999
FEWEST = 3  # tasks for a diagram


@dataclass(frozen=True)
class Ranking:
    """Configurations ranked over tasks: 1 is best, ties share the mean of their ranks.

    Attributes:
        labels: k configurations.
        tasks: number of tasks.
        mean_ranks: mean rank of each configuration, in the order of `labels`.
        chi2: Friedman's statistic, corrected for ties.
        p: its permutation p-value.
        critical: Nemenyi's critical difference of two mean ranks.
    """

    labels: tuple[str, ...]
    tasks: int
    mean_ranks: tuple[float, ...]
    chi2: float
    p: float
    critical: float

    @property
    def differ(self) -> bool:
        """Whether Friedman's test finds any difference; without one, no pair is compared."""
        return self.p < 1 - LEVEL

    @property
    def too_few_tasks(self) -> bool:
        """Whether even always first and always last could not be distinguished."""
        return self.tasks < FEWEST or self.critical >= len(self.labels) - 1

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The largest groups within one critical difference, best first; groups of one are omitted."""
        order = [self.labels.index(label) for label in self._order]
        if not self.differ:
            return [tuple(self.labels[j] for j in order)]
        spans: list[tuple[int, int]] = []
        for i in range(len(order)):
            reach = [j for j in range(i, len(order)) if self._gap(order[i], order[j]) <= self.critical]
            if len(reach) > 1 and (not spans or reach[-1] > spans[-1][1]):
                spans.append((i, reach[-1]))
        return [tuple(self.labels[j] for j in order[i : last + 1]) for i, last in spans]

    @property
    def behind(self) -> tuple[str, ...]:
        """The configurations that are worse than the first, by mean rank."""
        rank = dict(zip(self.labels, self.mean_ranks, strict=True))
        least = min(self.mean_ranks)
        return tuple(label for label in self._order if self.differ and rank[label] - least > self.critical)

    @property
    def _order(self) -> list[str]:
        rank = dict(zip(self.labels, self.mean_ranks, strict=True))
        return sorted(self.labels, key=lambda label: (rank[label], natural(label)))

    def _gap(self, i: int, j: int) -> float:
        return self.mean_ranks[j] - self.mean_ranks[i]

    @property
    def p_shown(self) -> str:
        """The p-value as it is printed: `p = 0.031`, or `p < 0.001`."""
        return "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"

    @property
    def sentence(self) -> str:
        """The result of the tests in one sentence, or why there is none."""
        k = len(self.labels)
        if self.too_few_tasks:
            need = max(FEWEST, math.floor(self.critical**2 * self.tasks / (k - 1) ** 2) + 1)
            return (
                f"Ranks: {self.tasks} task{'' if self.tasks == 1 else 's'} are too few to tell any two of {k} "
                f"configurations apart, even first from last everywhere (Nemenyi's test needs {need}): no "
                "critical-difference diagram is drawn."
            )
        test = f"Friedman's test over {self.tasks} tasks, {self.p_shown}"
        if not self.differ:
            return f"Ranks: no difference between the {k} configurations is sure ({test})."
        first, behind = self._order[0], self.behind
        worse = f"worse than {first} are {', '.join(behind)}" if behind else f"none is sure to be behind {first}"
        return f"Ranks: {test}; mean ranks {self.critical:.2f} apart differ (Nemenyi): {worse}."


def of(labels: Sequence[str], scores: NDArray[np.float64]) -> Ranking | None:
    """Rank configurations over tasks.

    Args:
        labels: k configurations.
        scores: (tasks, k); higher is better.

    Returns:
        The ranking; None for fewer than two configurations or no task.
    """
    from scipy.stats import rankdata, studentized_range

    tasks, k = scores.shape
    if k < 2 or tasks == 0:
        return None
    ranks = rankdata(-scores, axis=1)
    chi2 = _friedman(ranks.sum(0), ranks)
    q = float(studentized_range.ppf(LEVEL, k, math.inf)) / math.sqrt(2)
    critical = q * math.sqrt(k * (k + 1) / (6 * tasks))
    means = tuple(float(r) for r in ranks.mean(0))
    return Ranking(tuple(labels), tasks, means, chi2, _permuted(ranks, chi2), critical)


def _friedman(sums: NDArray[np.float64], ranks: NDArray[np.float64]) -> float:
    """Friedman's statistic, corrected for ties: variation between configurations over that within tasks."""
    tasks, k = ranks.shape
    within = float(((ranks - (k + 1) / 2) ** 2).sum()) / (tasks * (k - 1))
    between = float(((sums / tasks - (k + 1) / 2) ** 2).sum()) * tasks
    return between / within if within > 0 else 0.0


def _permuted(ranks: NDArray[np.float64], chi2: float) -> float:
    """The p-value: the share of permutations within the tasks whose statistic is at least `chi2`."""
    random = np.random.RandomState(0)
    tasks, k = ranks.shape
    sums = np.zeros((PERMUTATIONS, k))
    for row in ranks:
        sums += row[np.argsort(random.random_sample((PERMUTATIONS, k)), axis=1)]
    within = float(((ranks - (k + 1) / 2) ** 2).sum()) / (tasks * (k - 1))
    if within == 0:
        return 1.0
    between = ((sums / tasks - (k + 1) / 2) ** 2).sum(1) * tasks / within
    return float(1 + (between >= chi2 - 1e-9).sum()) / (PERMUTATIONS + 1)
