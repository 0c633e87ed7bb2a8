"""Choose the best of an experiment's tuning trials from their records, and tell whether it lies at an edge."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftbench.records.record import TrialRecord
from peftbench.records.retries import Retries

Bounds = Mapping[str, float]  # limits of a number under the names of JSON Schema, such as {"exclusiveMinimum": 0}
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
DIGITS = 6  # significant digits of a value that continues a list


def value_of(r: TrialRecord, key: str) -> Any:
    """Return the value of a drawn hyperparameter in a trial.

    Args:
        r: the trial.
        key: "lr" or the name of a hyperparameter.

    Returns:
        The value; for one left at the method's default, that of the recorded full list.
    """
    if key == "lr":
        return r.spec.train.lr
    hyper = r.spec.method.hyper
    return hyper[key] if key in hyper else (r.body.hyper or {}).get(key, "default")


def place(value: Any, values: Sequence[Any]) -> str | None:
    """Return whether a chosen value is at an end of its search range.

    Args:
        value: the chosen value.
        values: the values of the search space.

    Returns:
        "lower" or "upper"; None for a value within, or if the values are not numbers.
    """
    if not all(map(_is_number, [value, *values])) or len(set(values)) < 2:
        return None
    return "lower" if value <= min(values) else "upper" if value >= max(values) else None


def beyond(values: Sequence[Any], side: str, bounds: Bounds, count: int) -> list[Any]:
    """Continue a list of numbers at one end by its last ratio, or by its last difference if not all are positive.

    Args:
        values: two different numbers or more.
        side: "lower" or "upper".
        bounds: limits of the values.
        count: the greatest number of further values.

    Returns:
        The further values, from the nearest to the farthest. There are none where the list ends at a limit.

    >>> beyond([8, 16, 32], "lower", {"minimum": 3}, 2)
    [4]
    """
    inner, last = sorted(set(values), reverse=side == "lower")[-2:]
    are_whole, step, further = all(isinstance(v, int) for v in values), last - inner, list[Any]()
    ratio = last / inner if min(values) > 0 else None
    for _ in range(count):
        value = last + step if ratio is None else last * ratio
        value = round(value) if are_whole and math.isfinite(value) else float(f"{value:.{DIGITS}g}")
        if value == last or (ratio is not None and value <= 0) or not _is_within(value, bounds):
            break
        further.append(value)
        last = value
    return further


def edges(trials: Sequence[TrialRecord]) -> dict[str, str]:
    """Return which values of the best trial lie at an edge, so that a better one may lie beyond.

    A learning rate does if no trial had one beyond it; another number if it is the first or last of its listed values
    and a further one would be within the limits of the method. What is no number has no edge.

    Args:
        trials: the trials of one configuration on one task, by number; the last has the largest space.

    Returns:
        Hyperparameter -> "lower" or "upper". It is empty if all trials failed.
    """
    if not trials or score(one := trials[best(trials)]) is None:
        return {}
    found = {}
    for key, values in trials[-1].spec.space.items():
        tried = [value_of(r, key) for r in trials] if key == "lr" else values
        side = place(value_of(one, key), tried) if isinstance(tried, (list, tuple)) else None
        bounds = one.body.bounds.get(key, {})
        if side is not None and (key == "lr" or beyond(values, side, bounds, 1)):
            found[key] = side
    return dict(sorted(found.items(), key=lambda item: item[0] != "lr"))


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


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


def _is_within(value: float, bounds: Bounds) -> bool:
    return (
        math.isfinite(value)
        and bounds.get("minimum", -math.inf) <= value <= bounds.get("maximum", math.inf)
        and bounds.get("exclusiveMinimum", -math.inf) < value < bounds.get("exclusiveMaximum", math.inf)
    )
