"""The tolerance for two computations of one score on any machine: a few units in the last place (ulp).

A score follows from predictions, which are compared bit for bit. Its last digits depend on the order of summation.
Older records hold scores from SciPy, whose BLAS kernel depends on the processor, or from sequential sums. Today each
sum is rounded once (`peftbench.tasks.metrics`), which gives the same digits on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from peftbench.tasks.metrics import METRICS

# Three times the most that was measured: of 2,055 committed test scores, an RMSE of 500 examples is 5 ulp from what its
# predictions give here, and a correlation 2.
SCORE_ULPS = 16

NOT_FROM_PREDICTIONS = ("perplexity",)  # of the answer's tokens; predictions hold the generated texts
FROM_PREDICTIONS = METRICS.keys() - set(NOT_FROM_PREDICTIONS)
PLACES = ("metrics.test.", "metrics.validation.", "curve.validation[")


def is_coarse(body: Mapping[str, Any]) -> bool:
    """Whether a record's network computes in 16 bits, of which bfloat16 keeps two or three digits."""
    return (body.get("spec", {}).get("backbone", {}).get("dtype") or "float32") != "float32"


def ulps(a: float, b: float) -> float:
    """Return the distance in units in the last place of the larger value, or of 1 if both are smaller.

    A score near 0 is a difference of terms of size 1, so its rounding error is that of 1.
    """
    return abs(a - b) / math.ulp(max(abs(a), abs(b), 1.0))


def is_same(a: Any, b: Any) -> bool:
    """Whether two scores are equal up to rounding. An undefined score (None) equals only another undefined one."""
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (a, b)):
        return a is b
    return ulps(a, b) <= SCORE_ULPS


def is_score(field: str) -> bool:
    """Whether a field of a record ("curve.validation[1].pearson") holds a score that follows from predictions."""
    if field == "metrics.majority":
        return True
    return field.startswith(PLACES) and field.rpartition(".")[2] in FROM_PREDICTIONS
