"""The ranges of numbers and texts in records: types that are checked on reading, and published in the JSON Schema.

What a score may be stands in SCORES, by metric.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

from msgspec import Meta

MOST = 1e39  # of a float: beyond twice the largest that networks compute with, and its square is finite
LEAST = 1 / MOST  # of a float that something is divided by; what is smaller counts as 0 there
LARGEST = 2**63 - 1  # what tables, figures and other readers hold
SEEDS = 10_000  # of a row
LOOKS = 40  # at the seeds so far; the error that each may spend takes time to compute
LEAST_MARGIN = 1e-12  # of a difference that does not matter; its square is far from 0

Whole = Annotated[int, Meta(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Meta(ge=0, le=LARGEST)]
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
Real = Annotated[float, Meta(ge=-MOST, le=MOST)]
NotNegative = Annotated[float, Meta(ge=0, le=MOST)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(max_length=1_000)]  # a label, a task, a model: readable in a table or a message


class Range(NamedTuple):
    """What a score may be.

    Attributes:
        direction: "max" where more is better, else "min".
        low: the least value.
        high: the greatest value.
    """

    direction: str
    low: float
    high: float


SCORES: dict[str, Range] = {
    "accuracy": Range("max", 0, 1),
    "f1": Range("max", 0, 1),
    "f1_macro": Range("max", 0, 1),
    "mcc": Range("max", -1, 1),
    "pearson": Range("max", -1, 1),
    "spearman": Range("max", -1, 1),
    "mae": Range("min", 0, math.inf),
    "rmse": Range("min", 0, math.inf),
    "bleu": Range("max", 0, 100),
    "rougeL": Range("max", 0, 100),
    "perplexity": Range("min", 1, math.inf),
}
ROUNDING = 1e-9  # by which a score may leave its range


def beyond(metric: str, score: float | None) -> bool:
    """Whether a score is outside the range of its metric; False for an undefined score and an unknown metric."""
    if score is None or metric not in SCORES:
        return False
    known = SCORES[metric]
    return not known.low - ROUNDING <= score <= known.high * (1 + ROUNDING)
