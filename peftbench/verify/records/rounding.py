"""How far apart two computations of one score may be on any machine: a few units in the last place.

A score follows from predictions, which are compared bit for bit. Its own last digits say in which order its sums were
taken: records hold scores from SciPy, whose BLAS kernel depends on the processor, and from sums taken one by one. Today
each sum is rounded once (`peftbench.tasks.metrics`), the same everywhere.
"""

from __future__ import annotations

import math
from typing import Any

from peftbench.tasks.metrics import METRICS

# Three times the most that was measured: of 2,055 committed test scores, an RMSE of 500 examples is 5 ulp from what its
# predictions give here, and a correlation 2.
SCORE_ULPS = 16

NOT_FROM_PREDICTIONS = ("perplexity",)  # of the answer's tokens; predictions hold the generated texts
FROM_PREDICTIONS = METRICS.keys() - set(NOT_FROM_PREDICTIONS)
PLACES = ("metrics.test.", "metrics.validation.", "curve.validation[")


def ulps(a: float, b: float) -> float:
    """The distance in units in the last place of the larger, or of 1: terms of size 1 cancel in a score near 0."""
    return abs(a - b) / math.ulp(max(abs(a), abs(b), 1.0))


def is_same(a: Any, b: Any) -> bool:
    """Whether two scores are equal but for rounding; one that does not exist equals another such one alone."""
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (a, b)):
        return a is b
    return ulps(a, b) <= SCORE_ULPS


def is_score(field: str) -> bool:
    """Whether a field of a record ("curve.validation[1].pearson") holds a score that follows from predictions."""
    if field == "metrics.majority":
        return True
    return field.startswith(PLACES) and field.rpartition(".")[2] in FROM_PREDICTIONS
