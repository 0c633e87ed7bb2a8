"""The values of tuning trials.

All configurations have the same number of trials. Trial i uses point i of one scrambled Halton sequence with a fixed
seed. The point is scaled to the configuration's search space: learning rates on a log scale, another hyperparameter to
one of its values. More trials continue the sequence, so that the earlier ones need not run again.

Where the best value lies at an edge, `widened` says how far the space grows there, and which values are tried.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from peftbench.errors import UserError, shown
from peftbench.plan import limits
from peftbench.records import trials
from peftbench.records.trials import Bounds

Space = Mapping[str, tuple[Any, ...]]  # "lr": the least and the greatest rate; another: its possible values
SEED = 0  # of the scrambled sequence
DIMENSIONS = 2  # the learning rate and one more hyperparameter
DIGITS = 3  # significant digits of a drawn learning rate
GROWTH = 4.0  # by which an extension multiplies the greatest learning rate, or divides the least
FEWEST = 2  # further trials for a value at an edge; with many first trials, a quarter of them


def declared_space(search_space: Mapping[str, Sequence[Any]], fixed: Collection[str]) -> Space:
    """Return the space that a method declares: its learning rates and at most one more hyperparameter.

    Args:
        search_space: the method's declaration.
        fixed: hyperparameters that are not tuned, because the file or the budget decides them.
    """
    others = [key for key in search_space if key != "lr" and key not in fixed]
    return {"lr": _range(search_space["lr"]), **{key: tuple(search_space[key]) for key in others[: DIMENSIONS - 1]}}


def checked_space(space: Any, rate_is_given: bool, fixed: Collection[str], solved: str | None) -> Space:
    """Check the search space of a method as a file writes it.

    Args:
        space: the value of `search_space` in the file.
        rate_is_given: whether the file fixes the learning rate.
        fixed: the hyperparameters that the file fixes.
        solved: the hyperparameter that the budget of size decides, if any.

    Raises:
        UserError: the space is not valid.
    """
    example = "{lr: [1e-4, 1e-2], alpha: [8, 16]}"
    if not isinstance(space, dict) or not space or not all(isinstance(v, list) and len(v) > 1 for v in space.values()):
        raise UserError(f"given {shown(space)}; valid: two or more values for each hyperparameter, such as {example}")
    if len(space) > DIMENSIONS:
        raise UserError(f"given {', '.join(space)}; a space has lr and at most one hyperparameter more")
    if ("lr" in space) == rate_is_given:
        fault = "lr is given as a value and as a space; remove one" if rate_is_given else "lr is always tuned; add lr"
        raise UserError(f"{fault}, as in {example}")
    for key in space:
        if key in fixed:
            raise UserError(f"{key} is given as a value and as a space; remove one")
        if key == solved:
            raise UserError(f"{key} is decided by the budget of trainable_params; remove it here")
    rates = space.get("lr", [1.0])
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v <= limits.RATE for v in rates):
        raise UserError(f"lr: given {shown(rates)}; a learning rate is a number above 0 and at most {limits.RATE:,}")
    if "lr" in space and min(rates) == max(rates):
        raise UserError(f"lr: given {rates}; the least and the greatest rate must differ")
    return {key: _range(values) if key == "lr" else tuple(values) for key, values in space.items()}


def draw(space: Space, trial: int) -> dict[str, Any]:
    """Draw the values of a trial, counted from 0.

    >>> sorted(draw({"lr": (1e-4, 1e-2), "alpha": (8, 16, 32)}, 0).items())
    [('alpha', 16), ('lr', 0.0026)]
    """
    point = dict(zip(sorted(space, key=lambda key: key != "lr"), _points(trial + 1)[trial], strict=False))
    return {key: _scaled(key, values, point[key]) for key, values in space.items()}


def further_trials(first: int) -> int:
    """Return how many trials an extension adds for each value at an edge.

    Args:
        first: the number of first trials.
    """
    return max(FEWEST, first // 4)


def widened(
    key: str, values: Sequence[Any], side: str, bounds: Bounds, count: int
) -> tuple[tuple[Any, ...], list[Any]]:
    """Extend the values of one hyperparameter on one side.

    The range of a learning rate grows by `GROWTH`. A list of numbers goes on by its last ratio.

    Args:
        key: the name of the hyperparameter.
        values: its values in the space.
        side: "lower" or "upper".
        bounds: the limits of its values.
        count: the number of further trials.

    Returns:
        The values in the extended space, and those to try, from the nearest to the farthest. There are none where
        nothing valid lies beyond.

    >>> widened("lr", (1e-3, 1e-2), "upper", {}, 2)
    ((0.001, 0.04), [0.0141, 0.0283])
    """
    if key != "lr":
        new = trials.beyond(values, side, bounds, count)
        return (*reversed(new), *values) if side == "lower" else (*values, *new), new
    low, high = values
    end = low / GROWTH if side == "lower" else min(high * GROWTH, float(limits.RATE))
    start, wide = (low, (end, high)) if side == "lower" else (high, (low, end))
    new = [_rounded(start * (end / start) ** ((i + 0.5) / count)) for i in range(count)]
    return (wide, new) if min(start, end) > 0 and start != end else ((low, high), [])


@cache
def _points(count: int) -> list[list[float]]:
    """The first points of the sequence, (count, 2), the same for all configurations."""
    import numpy as np
    from scipy.stats import qmc

    points: list[list[float]] = (
        qmc.Halton(DIMENSIONS, scramble=True, rng=np.random.default_rng(SEED)).random(count).tolist()
    )
    return points


def _scaled(key: str, values: Sequence[Any], coordinate: float) -> Any:
    """Map a coordinate in [0, 1) to a value."""
    if key != "lr":
        return values[min(int(coordinate * len(values)), len(values) - 1)]
    low, high = values
    return _rounded(low * (high / low) ** coordinate)


def _rounded(rate: float) -> float:
    return float(f"{rate:.{DIGITS}g}")


def _range(rates: Sequence[float]) -> tuple[float, float]:
    return float(min(rates)), float(max(rates))
