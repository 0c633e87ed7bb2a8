"""Tuning trials: what is drawn for them, and which one wins. Pure: no torch, and scipy only where something is drawn.

Every configuration has as many trials. Trial i of each is drawn at the same point of the unit square (a scrambled
Halton sequence from a fixed seed), scaled to the configuration's own space: learning rates by their logarithm, another
hyperparameter to one of its values. More trials continue the sequence, so that the first ones need not run again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from peftbench.errors import UserError

Space = Mapping[str, tuple[Any, ...]]  # "lr": its least and greatest rate; another: the values that it may take
SEED = 0  # of the scrambling
MOST = 2  # dimensions: the rate and one more
DIGITS = 3  # of a drawn rate


def declared(search_space: Mapping[str, Sequence[Any]], taken: Collection[str]) -> Space:
    """The space of a method's own: its rates, and the first other hyperparameter that is not `taken`."""
    others = [key for key in search_space if key != "lr" and key not in taken]
    return {"lr": _ends(search_space["lr"]), **{key: tuple(search_space[key]) for key in others[: MOST - 1]}}


def checked(asked: Any, rate_is_given: bool, given: Collection[str], solved: str | None) -> Space:
    """The space as a file writes it; raises UserError saying what is wrong with it.

    `given` are the hyperparameters that the file fixes, `solved` the one that a budget decides.
    """
    example = "{lr: [1e-4, 1e-2], alpha: [8, 16]}"
    if not isinstance(asked, dict) or not asked or not all(isinstance(v, list) and len(v) > 1 for v in asked.values()):
        raise UserError(f"given {asked!r}; valid: two or more values for each hyperparameter, such as {example}")
    if len(asked) > MOST:
        raise UserError(f"given {', '.join(asked)}; a space has lr and at most one hyperparameter more")
    if ("lr" in asked) == rate_is_given:
        said = "lr is given as a value and as a space; remove one" if rate_is_given else "lr is always tuned; add lr"
        raise UserError(f"{said}, as in {example}")
    for key in asked:
        if key in given:
            raise UserError(f"{key} is given as a value and as a space; remove one")
        if key == solved:
            raise UserError(f"{key} is decided by the budget of trainable_params; remove it here")
    rates = asked.get("lr", [1.0])
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < math.inf for v in rates):
        raise UserError(f"lr: given {rates}; a learning rate is a number above 0")
    if "lr" in asked and min(rates) == max(rates):
        raise UserError(f"lr: given {rates}; the least and the greatest rate must differ")
    return {key: _ends(values) if key == "lr" else tuple(values) for key, values in asked.items()}


def drawn(space: Space, trial: int) -> dict[str, Any]:
    """The values of a trial, by name.

    >>> sorted(drawn({"lr": (1e-4, 1e-2), "alpha": (8, 16, 32)}, 0).items())
    [('alpha', 16), ('lr', 0.0026)]
    """
    point = dict(zip(sorted(space, key=lambda key: key != "lr"), _points(trial + 1)[trial], strict=False))
    return {key: _scaled(key, values, point[key]) for key, values in space.items()}


@cache
def _points(count: int) -> list[list[float]]:
    """The first points of the sequence, (count, 2), the same for every configuration."""
    import numpy as np
    from scipy.stats import qmc

    points: list[list[float]] = qmc.Halton(MOST, scramble=True, rng=np.random.default_rng(SEED)).random(count).tolist()
    return points


def _scaled(key: str, values: Sequence[Any], unit: float) -> Any:
    if key != "lr":
        return values[min(int(unit * len(values)), len(values) - 1)]
    low, high = values
    return float(f"{low * (high / low) ** unit:.{DIGITS}g}")


def _ends(rates: Sequence[float]) -> tuple[float, float]:
    return float(min(rates)), float(max(rates))
