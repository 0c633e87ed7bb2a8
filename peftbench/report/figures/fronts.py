"""Pareto fronts in a figure of quality against a cost: the front of the means, and fronts of random draws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from peftbench.report.data import pareto, verdicts
from peftbench.report.data.comparison import Comparison

LEGEND = f"line: Pareto front; grey: {pareto.SHOWN} others by chance; in brackets: how often a method is on it"
LEAST = 0.05  # smallest probability that is written


def draw(panel: Axes, c: Comparison, cost: str, unit: float) -> bool:
    """Draw the fronts behind the points, within the panel's limits; False if there are none."""
    labels, quality, costs = pareto.draws(c, cost)
    if len(labels) < 2:
        return False
    sign = -1 if c.direction == "min" else 1
    right = panel.get_xlim()[1]
    low, high = panel.get_ylim()
    worst = (high if sign < 0 else low) * sign - abs(high - low)
    stairs = [_stairs(q, x * unit, right, worst) for q, x in zip(quality[: pareto.SHOWN], costs, strict=False)]
    by_chance = [np.column_stack([x, sign * q]) for x, q in stairs]
    panel.add_collection(
        LineCollection(by_chance, linewidths=1.0, colors="#999999", alpha=0.12, zorder=0), autolim=False
    )
    at = {e.label: e for e in c.entries}
    means = np.array([sign * (at[label].mean or 0.0) for label in labels])
    known = np.array([(pareto.COSTS[cost](at[label]) or (0.0, 0.0))[0] for label in labels])
    x, q = _stairs(means, known * unit, right, worst)
    line = [np.column_stack([x, sign * q])]
    panel.add_collection(LineCollection(line, linewidths=1.1, colors="#555555", zorder=0.5), autolim=False)
    return True


def shares(c: Comparison, cost: str) -> Mapping[str, str]:
    """label -> text of its probability to be on the front, for labels above `LEAST`."""
    known = {label: (v.on_front or {}).get(cost) for label, v in verdicts.of(c).items()}
    return {label: f" ({share * 100:.0f} %)" for label, share in known.items() if share is not None and share >= LEAST}


def _stairs(
    quality: NDArray[np.float64], costs: NDArray[np.float64], right: float, worst: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(x, y) of the best quality at each cost: up from below at the cheapest, then to the right edge."""
    order = np.lexsort((-quality, costs))
    x, best = costs[order], np.maximum.accumulate(quality[order])
    across = np.concatenate([np.repeat(x, 2), [max(right, float(x[-1]))]])
    return across, np.concatenate([[worst], np.repeat(best, 2)])
