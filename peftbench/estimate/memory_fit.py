"""The largest batch, or the longest texts, whose step fits into a given memory, by bisection over estimates."""

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

    def fits(value: int) -> bool:
        estimate = at(value)
        return estimate is not None and estimate.peak_bytes <= limit

    low, high = 0, 1
    while high <= LARGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Fit(limit, axis, low, at(low) if low else None, at(high))
