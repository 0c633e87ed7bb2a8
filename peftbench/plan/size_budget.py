"""Solve a method's size knob for a budget of trainable parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peftbench.errors import UserError

HIGHEST = 1 << 20  # knobs are ranks, widths and lengths: no network has more


@dataclass(frozen=True)
class Solved:
    """The knob's value nearest to the budget.

    ``deviation`` is achieved / target - 1; ``matched`` says whether it lies within the tolerance. ``neighbours`` are
    the sizes around the target as (value, parameters): the largest at or below it and the smallest above it, where
    they exist.
    """

    value: int
    achieved: int
    deviation: float
    matched: bool
    neighbours: tuple[tuple[int, int], ...]


def solve(
    count: Callable[[int], int], target: int, tolerance: float, low: int = 1, high: int = HIGHEST, strict: bool = False
) -> Solved:
    """The integer in [low, high] whose `count`, which must not fall, is nearest to `target`; of two the smaller.

    With `strict`, raises UserError naming the sizes around the target where the nearest is not within `tolerance`. Also
    raises it where the count falls with the knob, as no budget can then be solved.

    >>> solve(lambda rank: 1000 * rank, 7400, 0.1).value
    7
    """
    if high < low:
        raise ValueError(f"no sizes between {low} and {high}")
    below, above = _bracket(count, target, low, high)
    neighbours = tuple((v, count(v)) for v in (below, above) if v is not None)
    value, achieved = min(neighbours, key=lambda n: (abs(n[1] - target), n[0]))
    deviation = achieved / target - 1
    matched = abs(achieved - target) <= tolerance * target
    if strict and not matched:
        sizes = " and ".join(f"{n:,} parameters (at {v})" for v, n in neighbours)
        raise UserError(
            f"no size is within {tolerance:.1%} of {target:,} trainable parameters; the nearest are {sizes}. Change "
            "trainable_params or tolerance, or set strict: false to run the nearest, marked with its deviation"
        )
    return Solved(value, achieved, deviation, matched, neighbours)


def _bracket(count: Callable[[int], int], target: int, low: int, high: int) -> tuple[int | None, int | None]:
    """The largest value with a count of at most `target`, and the next, each None outside [low, high]."""
    if count(low) > target:
        return None, low
    below, step = low, 1
    while True:  # doubling steps first: a count far above the target may be slow or refused by the method
        above = min(below + step, high)
        if above == below:
            return below, None
        reached = count(above)
        if reached < count(below):
            fall = f"from {count(below):,} at {below} to {reached:,} at {above}"
            raise UserError(f"the parameters fall {fall}: a budget needs a size knob with which they grow")
        if reached > target:
            break
        below, step = above, step * 2
    while above - below > 1:
        middle = (below + above) // 2
        if count(middle) <= target:
            below = middle
        else:
            above = middle
    return below, above
