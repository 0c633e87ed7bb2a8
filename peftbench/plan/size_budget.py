"""Solve a method's size knob for a budget of trainable parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peftbench.errors import UserError
from peftbench.plan.limits import SIZE_KNOB


@dataclass(frozen=True)
class Solved:
    """The value of the size knob that comes nearest to the budget.

    Attributes:
        value: the value of the knob.
        achieved: the trainable parameters at that value.
        deviation: achieved / target - 1.
        matched: whether the deviation is within the tolerance.
        neighbours: the sizes next to the target as (value, parameters): the largest at or below it and the smallest
            above it, if they exist.
    """

    value: int
    achieved: int
    deviation: float
    matched: bool
    neighbours: tuple[tuple[int, int], ...]


def solve(
    count: Callable[[int], int],
    target: int,
    tolerance: float,
    low: int = 1,
    high: int = SIZE_KNOB,
    strict: bool = False,
) -> Solved:
    """Find the value of the size knob whose number of parameters is nearest to the target.

    Of two values at the same distance, the smaller one is the result.

    Args:
        count: trainable parameters at a value of the knob; must not fall as the value grows.
        target: the budget in trainable parameters.
        tolerance: the largest relative deviation that counts as matched.
        low: the least value of the knob.
        high: the greatest value of the knob.
        strict: whether a deviation beyond the tolerance is an error.

    Raises:
        UserError: with `strict`, no size is within the tolerance; or the count falls as the knob grows.
        ValueError: `high` is below `low`.

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
    """Return the largest value whose count is at most `target`, and the next value; None for one outside the range."""
    if count(low) > target:
        return None, low
    below, step = low, 1
    while True:  # start with small steps: a method may refuse a size far above the target, or count it slowly
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
