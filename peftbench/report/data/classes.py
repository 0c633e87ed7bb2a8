"""Scores of each class, and what is taken for what, counted in the predictions of a table's runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftbench.report.data import verdicts
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.weak_cache import weak_cache

Matrix = list[list[int]]  # (classes, classes): test rows of a class (row) that were taken for a class (column)


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class, over all seeds of a configuration.

    Attributes:
        name: the class's name.
        support: test rows of the class, for each seed.
        precision: share of the rows taken for the class that are of it; None if there are none.
        recall: share of the rows of the class that were taken for it; None if there are none.
        f1: their harmonic mean; None if the class neither occurs nor was predicted.
    """

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


@weak_cache
def matrices(c: Comparison) -> Mapping[str, Matrix]:
    """The confusion matrix of each configuration, summed over its finished seeds.

    Args:
        c: the table. Predictions are read once per comparison.

    Returns:
        label -> matrix; empty if the records do not name the classes, or the task has none.
    """
    names = c.data.classes if c.data else []
    found = {e.label: _matrix(e, len(names)) for e in c.entries if names and e.n}
    return {label: matrix for label, matrix in found.items() if matrix is not None}


def scores(c: Comparison, label: str) -> list[ClassScore]:
    """The scores of each class of one configuration, in the order of the classes; empty without a matrix."""
    matrix = matrices(c).get(label)
    if matrix is None or c.data is None:
        return []
    seeds = sum(r.is_finished for e in c.entries if e.label == label for r in e.runs)
    return [_score(name, i, matrix, seeds) for i, name in enumerate(c.data.classes)]


def shown(c: Comparison) -> list[str]:
    """The configurations that readable tables show: the reference and the best, where they have a matrix."""
    best = [] if c.learned is False else [label for label, v in verdicts.of(c).items() if v.is_best]
    return [label for label in dict.fromkeys([c.reference, *best]) if label in matrices(c)]


def _score(name: str, i: int, matrix: Matrix, seeds: int) -> ClassScore:
    hits, true, predicted = matrix[i][i], sum(matrix[i]), sum(row[i] for row in matrix)
    both = true + predicted
    return ClassScore(
        name=name,
        support=true // seeds,
        precision=hits / predicted if predicted else None,
        recall=hits / true if true else None,
        f1=2 * hits / both if both else None,
    )


def _matrix(e: Entry, classes: int) -> Matrix | None:
    matrix = [[0] * classes for _ in range(classes)]
    for r in e.runs:
        p = r.predictions if r.is_finished else None
        for label, value in zip(p.labels, p.values, strict=True) if p else ():
            if not (isinstance(label, int) and isinstance(value, int) and max(label, value) < classes):
                return None
            matrix[label][value] += 1
    return matrix
