"""The largest batch, or the longest texts, whose step fits into a given memory.

Memory grows with either in pieces of straight lines, so that two estimates tell about where the limit is reached. The
answer rests on estimates of itself and of the next value alone: guesses only choose which values are estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from peftbench.errors import UserError
from peftbench.estimate.step_estimate import Setting, StepEstimate
from peftbench.plan import memory_size

AXES = ("batch", "seq")
LARGEST = 1 << 20


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

    low, high = largest(limit, peak)
    return Fit(limit, axis, low, at(low) if low else None, at(high))


def largest(limit: int, peak: Callable[[int], int | None]) -> tuple[int, int]:
    """Return the largest value whose peak is within a limit, and the next one.

    Args:
        limit: Bytes.
        peak: Peak of a value, which never falls with it; None beyond what the network takes.

    Returns:
        (0, 1) if not even 1 is within the limit.
    """
    low, high = 0, 2 * LARGEST
    below: list[tuple[int, int]] = []  # (value, bytes) within the limit, ascending
    above: tuple[int, int] | None = None  # the smallest beyond it
    guess = 1
    while high - low > 1:
        width, met = high - low, above is not None
        found = peak(guess)
        if found is not None and found <= limit:
            low = guess
            below.append((guess, found))
        else:
            high, above = guess, None if found is None else (guess, found)
        if low == 0:
            return 0, 1
        slow = met and 2 * (high - low) > width  # a line through the ends of a curve may creep
        guess = (low + high) // 2 if slow else _guess(limit, low, high, below, above)
    return low, high


def _guess(limit: int, low: int, high: int, below: list[tuple[int, int]], above: tuple[int, int] | None) -> int:
    """Return the next value to estimate between `low` and `high`: where a line through two peaks meets the limit."""
    unbounded = high == 2 * LARGEST
    ends = [*below[-1:], above] if above is not None else below[-2:]
    if len(ends) < 2 or ends[0][1] == ends[1][1] or (above is None and not unbounded):
        return min(2 * low, high - 1) if unbounded else (low + high) // 2
    (x, y), (right, top) = ends
    return min(max(x + (limit - y) * (right - x) // (top - y), low + 1), high - 1)
