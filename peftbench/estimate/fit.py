"""The largest batch, or the longest texts, whose step fits into a given memory: by bisection over estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from peftbench.errors import UserError
from peftbench.estimate.step import Estimate, Setting
from peftbench.plan import memory_size

AXES = ("batch", "seq")
LARGEST = 1 << 20


@dataclass(frozen=True)
class Fit:
    """What fits into `limit_bytes`: the largest value of the axis (0: none), and the estimates around the limit."""

    limit_bytes: int
    axis: str
    largest: int
    fits: Estimate | None
    next_larger: Estimate | None  # None where the network takes nothing larger


def parsed_size(text: str) -> int:
    """Bytes of "24GB" (10^9) or "24GiB" (2^30)."""
    try:
        return memory_size.parsed_size(text)
    except UserError as error:
        raise UserError(f"--fit: {error}") from error


def fit(limit: int, axis: str, setting: Setting, ask: Callable[[Setting], Estimate]) -> Fit:
    """Bisect the largest `axis` of which ``ask(setting)`` has a peak of at most `limit` bytes.

    Every estimate is asked for once. A larger batch or length never takes less, which the bisection relies on.
    """
    known: dict[int, Estimate | None] = {}

    def at(value: int) -> Estimate | None:
        if value not in known:
            try:
                known[value] = ask(replace(setting, batch=value) if axis == "batch" else replace(setting, seq=value))
            except UserError:
                if value == 1:
                    raise
                known[value] = None  # more positions than the network has
        return known[value]

    def fits(value: int) -> bool:
        found = at(value)
        return found is not None and found.peak_bytes <= limit

    low, high = 0, 1
    while high <= LARGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Fit(limit, axis, low, at(low) if low else None, at(high))
