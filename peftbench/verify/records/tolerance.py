"""The tolerance for two runs of one spec on different machines, devices, library versions or thread counts.

Such runs sum in another order. Before the first update they differ by rounding alone. Each update amplifies it, and
after some tens of steps single predictions near the decision boundary flip. So the first loss must agree closely, the
curve on average, and most predictions; counts must agree exactly. The bounds are well above the measured differences
(docs/reproducing.md), and below the effect of any changed setting.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from peftbench.verify.records import probe_tolerance, rounding
from peftbench.verify.records.differences import FieldDifference

FIRST_LOSS = 1e-3  # relative
COARSE_FIRST_LOSS = 5e-3  # with weights in 16 bits
CURVE = 0.05  # mean distance of the losses, divided by their mean
PREDICTIONS = 0.90  # share of equal ones; for numbers, 1 - mean distance / standard deviation of the labels
TEXTS = 0.80  # of generated texts: how much of the words of one stands in the other, in order
SCORE = 0.1  # of a validation score: relative, or absolute if it is below 1
BYTES = 0.02  # share of the memory peak, because other kernels need other temporaries


@dataclass(frozen=True)
class ToleranceResult:
    """The differences with `within` set, and a sentence with the measured distances."""

    differences: list[FieldDifference]
    message: str


def apply_tolerance(
    recorded: Mapping[str, Any], repeated: Mapping[str, Any], found: Sequence[FieldDifference]
) -> ToleranceResult:
    """Mark the differences that another machine or version explains.

    Args:
        recorded: the record's body with its predictions.
        repeated: the body of the repeat, from another machine or with other versions.
        found: all differences between the two bodies.

    Returns:
        The same differences with `within` set for those that the tolerance covers.
    """
    first, curve = _losses(recorded["curve"]["loss"], repeated["curve"]["loss"])
    alike = _similarity(recorded["predictions"], repeated["predictions"])
    peak = float((recorded.get("memory") or {}).get("peak_bytes") or 1)
    moved = recorded["env"].get("device") != repeated["env"].get("device")
    first_at_most = COARSE_FIRST_LOSS if rounding.is_coarse(recorded) else FIRST_LOSS
    losses = first <= first_at_most and curve <= CURVE
    chosen = recorded.get("checkpoint_step") == repeated.get("checkpoint_step")
    least = TEXTS if _are_texts(recorded["predictions"]) else PREDICTIONS
    predictions = alike >= least or (losses and not chosen)  # of another step's weights, validated as well
    covers: dict[str, Callable[[FieldDifference], bool]] = {
        "curve.loss": lambda d: losses,
        "curve.validation": lambda d: _near(d, SCORE, floor=1.0),
        "checkpoint_step": lambda d: True,  # the best of several nearly equal ones
        "predictions.values": lambda d: predictions,
        "samples": lambda d: predictions,
        "metrics.test.perplexity": lambda d: _near(d, SCORE, floor=1.0),  # does not follow from the predictions
        "metrics.test": lambda d: predictions and alike < 1,  # follows from them
        "metrics.validation": lambda d: _near(d, SCORE, floor=1.0),
        "probes": lambda d: probe_tolerance.covers(recorded, repeated, d.field),
        "memory.batch": lambda d: False,  # the data's shape
        "memory": lambda d: moved or isinstance(d.recorded, str) or _near(d, BYTES, floor=peak),
    }

    def within(d: FieldDifference) -> bool:
        return d.within or next((cover(d) for place, cover in covers.items() if d.field.startswith(place)), False)

    message = (
        f"first loss {first:.1e} apart (at most {first_at_most:.0e}), losses {curve:.1e} on average (at most {CURVE}), "
        f"predictions {alike:.3f} alike (at least {least})"
    )
    message += "" if chosen else "; another of nearly equal checkpoints was tested"
    return ToleranceResult([replace(d, within=within(d)) for d in found], message)


def _losses(a: Sequence[float | None], b: Sequence[float | None]) -> tuple[float, float]:
    """Return the relative distance of the first losses, and the mean distance / mean loss; inf if not comparable."""
    if len(a) != len(b) or not a:
        return math.inf, math.inf
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(pairs) < len(a):
        return math.inf, math.inf
    scale = statistics.fmean(abs(x) for x, _ in pairs)
    apart = statistics.fmean(abs(x - y) for x, y in pairs)
    first = abs(pairs[0][0] - pairs[0][1]) / max(abs(pairs[0][0]), 1e-12)
    return first, apart / max(scale, 1e-12)


def _similarity(a: Mapping[str, Sequence[Any]] | None, b: Mapping[str, Sequence[Any]] | None) -> float:
    """Return how similar two sets of predictions are: 1 if all are equal or both are missing (tuning trials).

    The result is -inf if the labels or the number of predictions differ.
    """
    if a is None or b is None:
        return 1.0 if a is b else -math.inf
    if len(a["values"]) != len(b["values"]) or a["labels"] != b["labels"] or not a["values"]:
        return -math.inf
    if _are_texts(a):
        return statistics.fmean(_same_words(x, y) for x, y in zip(a["values"], b["values"], strict=True))
    if not any(isinstance(v, float) for v in (*a["values"], *b["values"])):
        return statistics.fmean(x == y for x, y in zip(a["values"], b["values"], strict=True))
    if None in (*a["values"], *b["values"]):
        return -math.inf
    apart = statistics.fmean(abs(x - y) for x, y in zip(a["values"], b["values"], strict=True))
    return 1 - apart / max(statistics.pstdev(a["labels"]), 1e-12)


def _are_texts(predictions: Mapping[str, Sequence[Any]] | None) -> bool:
    """Whether predictions are generated texts: one token that rounding turns changes all that follow it."""
    return any(isinstance(v, str) and " " in v for v in (predictions or {}).get("values", ()))


def _same_words(a: Any, b: Any) -> float:
    if not isinstance(a, str) or not isinstance(b, str) or a == b:
        return float(a == b)
    return SequenceMatcher(None, a.split(), b.split(), autojunk=False).ratio()


def _near(d: FieldDifference, relative: float, floor: float) -> bool:
    numbers = [v for v in (d.recorded, d.repeated) if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < 2:
        return False
    a, b = numbers
    return abs(a - b) <= relative * max(abs(a), abs(b), floor)
