"""The largest batch, or the longest texts, whose step fits into a given memory.

Memory grows with either in pieces of straight lines, so that one or two estimates tell about where the limit is
reached. The answer rests on estimates of itself and of the next value alone: guesses only choose which values are
estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from peftbench.errors import UserError
from peftbench.estimate.step_estimate import Setting, StepEstimate
from peftbench.plan import memory_size

AXES = ("batch", "seq")
LARGEST = 1 << 20
HELD = ("weights", "adapter", "head", "gradients", "optimizer")  # what a longer text or a larger batch adds nothing to
START = 8  # of one text or token, what is constant hides what grows
STRAIGHT = 6  # guesses by lines before every second one halves: a line through the ends of a curve may creep


@dataclass(frozen=True)
class Fit:
    """What fits into a memory limit.

    Attributes:
        limit_bytes: The limit.
        axis: "batch" or "seq".
        largest: Largest value of the axis that fits; 0 for none.
        fits: Estimate at that value; None for none.
        next_larger: Estimate at the next value; None if the network takes nothing larger.
    """

    limit_bytes: int
    axis: str
    largest: int
    fits: StepEstimate | None
    next_larger: StepEstimate | None


def parsed_size(text: str) -> int:
    """Return the bytes of "24GB" (10^9) or "24GiB" (2^30).

    Raises:
        UserError: The text is not a size.
    """
    try:
        return memory_size.parsed_size(text)
    except UserError as error:
        raise UserError(f"--fit: {error}") from error


def fit(limit: int, axis: str, setting: Setting, estimate_at: Callable[[Setting], StepEstimate]) -> Fit:
    """Find the largest value of an axis whose step fits into a memory limit.

    A larger batch or length must never take less memory.

    Args:
        limit: Bytes.
        axis: "batch" or "seq".
        setting: How the step runs, apart from the axis.
        estimate_at: Estimates the step of a setting; called once per value.

    Raises:
        UserError: The step of the smallest value cannot be estimated.
    """
    known: dict[int, StepEstimate | None] = {}

    def at(value: int) -> StepEstimate | None:
        if value not in known:
            try:
                at_value = replace(setting, batch=value) if axis == "batch" else replace(setting, seq=value)
                known[value] = estimate_at(at_value)
            except UserError:
                if value == 1:
                    raise
                known[value] = None  # more positions than the network has
        return known[value]

    def peak(value: int) -> int | None:
        estimate = at(value)
        return None if estimate is None else estimate.peak_bytes

    def held(value: int) -> int:
        estimate = at(value)
        return 0 if estimate is None else sum(estimate.at_peak[kind] for kind in HELD)

    low, high = largest(limit, peak, max(getattr(setting, axis), START), held)
    return Fit(limit, axis, low, at(low) if low else None, at(high))


def largest(
    limit: int,
    needed: Callable[[int], int | None],
    start: int = 1,
    held: Callable[[int], int] = lambda value: 0,
    last: int = 2 * LARGEST - 1,
) -> tuple[int, int]:
    """Return the largest value that needs no more than a limit, and the next one.

    Args:
        limit: Bytes.
        needed: Bytes of a value, which never fall with it; None beyond what the network takes. Called once per value.
        start: The first value to try.
        held: Bytes of a value that do not grow with it, for the second guess.
        last: No value is larger.

    Returns:
        (0, 1) if not even 1 is within the limit.
    """
    low, high, turns = 0, last + 1, 0
    known: dict[int, int] = {}
    guess = min(start, last)
    while high - low > 1:
        found = needed(guess)
        if found is not None:
            known[guess] = found
        if found is not None and found <= limit:
            low = guess
        else:
            high = guess
        if len(known) == 1 and not turns and found is not None:
            base = min(held(guess), found - 1)
            met = guess * (limit - base) // (found - base) + 1  # not all that is taken to grow does
        else:
            met = _met(low, high, known, limit, halve=turns > STRAIGHT and turns % 2 == 0)
        guess = min(max(met, low + 1), high - 1)
        turns += 1
    return low, high


def _met(low: int, high: int, known: Mapping[int, int], limit: int, halve: bool) -> int:
    """Return where a line through the two nearest known needs meets the limit; the middle where it does not help."""
    unbounded = high >= LARGEST and high not in known
    near = sorted(known, key=lambda value: abs(known[value] - limit))[:2]
    beyond = high not in known and not unbounded  # the network takes no more, so that no line says where it ends
    slope = (known[near[1]] - known[near[0]]) / (near[1] - near[0]) if len(near) == 2 else 0
    if halve or beyond or slope <= 0:
        return 2 * low if unbounded and low else (low + high) // 2
    return near[0] + math.floor((limit - known[near[0]]) / slope)
