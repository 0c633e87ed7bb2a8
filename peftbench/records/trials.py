"""Choose the best of an experiment's tuning trials from their records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from peftbench.records.record import TrialRecord
from peftbench.records.retries import Retries


def place(key: str, value: Any, values: Sequence[Any]) -> str | None:
    """Return whether a chosen value is at an end of its search range.

    Args:
        key: the name of the hyperparameter.
        value: the chosen value.
        values: the values of the search space.

    Returns:
        "lower" or "upper"; None for a value within, or if the values are not numbers.
    """
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) or len(set(values)) < 2:
        return None
    return "lower" if value <= min(values) else "upper" if value >= max(values) else None


def score(r: TrialRecord) -> float | None:
    """Return a trial's validation score, with larger being better; None if it failed or the score is undefined."""
    if not r.is_finished or (value := r.metrics.validation.get(r.metrics.primary)) is None:
        return None
    return -value if r.metrics.direction == "min" else value


def best(trials: Sequence[TrialRecord]) -> int:
    """Return the index of the trial with the best score: the first of equal ones, and the first if all failed."""
    scores = [-math.inf if (s := score(r)) is None else s for r in trials]
    return scores.index(max(scores))


def settled(spec_ids: Iterable[str], retries: Retries) -> bool:
    """Whether every trial is complete. Failed trials count, and those that are given up; others will be repeated."""
    return all(map(retries.has_ended, spec_ids))
