"""How far apart two runs of one spec may be where another machine, device, version or number of threads ran them.

Sums are then taken in another order. Before the first update that is rounding alone; each update feeds it back, and
after some tens of steps single predictions near the boundary flip. So the first loss must agree closely, the curve on
average, most predictions, and what is counted rather than summed in every digit. The bounds stand a good way above what
was measured (docs/reproducing.md), and below what any changed setting of a run does to it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftbench.verify.records.differences import Difference

FIRST_LOSS = 1e-3  # relative
CURVE = 0.05  # mean distance of the losses over their mean
PREDICTIONS = 0.90  # share that is equal; of numbers: 1 - their mean distance over the spread of the labels
SCORE = 0.1  # of a validation score, relative to it or, for scores below 1, absolute
BYTES = 0.02  # of the peak, which kernels of another kind reach with other temporaries


@dataclass(frozen=True)
class Judged:
    """The differences with those marked that the tolerance covers, and how far apart the two are, in words."""

    differences: list[Difference]
    said: str


def judge(recorded: Mapping[str, Any], repeated: Mapping[str, Any], found: Sequence[Difference]) -> Judged:
    """`found` are all the differences between the two bodies, which ran on different machines or versions."""
    first, curve = _losses(recorded["curve"]["loss"], repeated["curve"]["loss"])
    alike = _alike(recorded["predictions"], repeated["predictions"])
    peak = float((recorded.get("memory") or {}).get("peak_bytes") or 1)
    moved = recorded["env"].get("device") != repeated["env"].get("device")
    losses = first <= FIRST_LOSS and curve <= CURVE
    chosen = recorded.get("checkpoint_step") == repeated.get("checkpoint_step")
    predictions = alike >= PREDICTIONS or (losses and not chosen)  # of another step's weights, validated as well
    covers: dict[str, Callable[[Difference], bool]] = {
        "curve.loss": lambda d: losses,
        "curve.validation": lambda d: _near(d, SCORE, floor=1.0),
        "checkpoint_step": lambda d: True,  # the best of several nearly equal ones
        "predictions.values": lambda d: predictions,
        "samples": lambda d: predictions,
        "metrics.test.perplexity": lambda d: _near(d, SCORE, floor=1.0),  # does not follow from the predictions
        "metrics.test": lambda d: predictions and alike < 1,  # follows from them
        "metrics.validation": lambda d: _near(d, SCORE, floor=1.0),
        "memory.batch": lambda d: False,  # the data's shape
        "memory": lambda d: moved or isinstance(d.recorded, str) or _near(d, BYTES, floor=peak),
    }

    def within(d: Difference) -> bool:
        return d.within or next((cover(d) for place, cover in covers.items() if d.field.startswith(place)), False)

    said = (
        f"first loss {first:.1e} apart (at most {FIRST_LOSS:.0e}), losses {curve:.1e} on average (at most {CURVE}), "
        f"predictions {alike:.3f} alike (at least {PREDICTIONS})"
    )
    said += "" if chosen else "; another of nearly equal checkpoints was tested"
    return Judged([replace(d, within=within(d)) for d in found], said)


def _losses(a: Sequence[float | None], b: Sequence[float | None]) -> tuple[float, float]:
    """The first losses' relative distance, and the mean distance over the mean loss; infinite where not comparable."""
    if len(a) != len(b) or not a:
        return math.inf, math.inf
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(pairs) < len(a):
        return math.inf, math.inf
    scale = statistics.fmean(abs(x) for x, _ in pairs)
    apart = statistics.fmean(abs(x - y) for x, y in pairs)
    first = abs(pairs[0][0] - pairs[0][1]) / max(abs(pairs[0][0]), 1e-12)
    return first, apart / max(scale, 1e-12)


def _alike(a: Mapping[str, Sequence[Any]] | None, b: Mapping[str, Sequence[Any]] | None) -> float:
    """1 where all predictions are equal, as where tuning trials have none; 0 or less where nothing is.

    Labels must be the same.
    """
    if a is None or b is None:
        return 1.0 if a is b else -math.inf
    if len(a["values"]) != len(b["values"]) or a["labels"] != b["labels"] or not a["values"]:
        return -math.inf
    if not any(isinstance(v, float) for v in (*a["values"], *b["values"])):
        return statistics.fmean(x == y for x, y in zip(a["values"], b["values"], strict=True))
    if None in (*a["values"], *b["values"]):
        return -math.inf
    apart = statistics.fmean(abs(x - y) for x, y in zip(a["values"], b["values"], strict=True))
    return 1 - apart / max(statistics.pstdev(a["labels"]), 1e-12)


def _near(d: Difference, relative: float, floor: float) -> bool:
    numbers = [v for v in (d.recorded, d.repeated) if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < 2:
        return False
    a, b = numbers
    return abs(a - b) <= relative * max(abs(a), abs(b), floor)
