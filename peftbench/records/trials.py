"""Which of an experiment's tuning trials wins, by its records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftbench.records import record
from peftbench.records.record import Record, TrialRecord


def place(key: str, value: Any, values: Sequence[Any]) -> str | None:
    """ "lower" or "upper" where a chosen value is the end of what was tried or could be; None within."""
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) or len(set(values)) < 2:
        return None
    return "lower" if value <= min(values) else "upper" if value >= max(values) else None


def score(r: TrialRecord) -> float | None:
    """A trial's score on the validation split, more is better; None where it failed or has none."""
    if not r.is_finished or (value := r.metrics.validation.get(r.metrics.primary)) is None:
        return None
    return -value if r.metrics.direction == "min" else value


def best(trials: Sequence[TrialRecord]) -> int:
    """The index of the trial with the best score; of equal ones, and where all have failed, the first."""
    scores = [-math.inf if (s := score(r)) is None else s for r in trials]
    return scores.index(max(scores))


def settled(spec_ids: Iterable[str], latest: Mapping[str, Record]) -> bool:
    """Whether every trial has been tried for good: failed ones count, killed and abandoned ones are to be repeated."""
    found = [latest.get(spec_id) for spec_id in spec_ids]
    return all(r is not None and r.status not in record.RETRIED for r in found)
