"""Drawing functions that several figures share, in the style of all figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullFormatter, ScalarFormatter

from peftbench.report.figures.style import COLOURS, MARKERS, MUTED
from peftbench.report.papers._interval import Interval

OPEN: dict[str, Any] = {"mfc": "none", "mew": 1.2}  # marks that lie on each other: every one stays visible


def line(panel: Axes, xs: Sequence[float], ys: Sequence[Interval], label: str, number: int, **changes: Any) -> None:
    """Draw means with their intervals as a line; `number` selects colour and marker."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    middle = [y.value for y in ys]
    around = [[y.value - y.low for y in ys], [y.high - y.value for y in ys]]
    look: dict[str, Any] = {"color": colour, "marker": marker, "ms": 5.5, "lw": 1.3, "capsize": 2.5, "elinewidth": 0.9}
    panel.errorbar(xs, middle, yerr=around, label=label, **{**look, **changes})


def log_axis(panel: Axes, ticks: Sequence[float] = (), counts: bool = False) -> None:
    """A logarithmic horizontal axis with the given ticks, or with counts such as 10k."""
    panel.set_xscale("log")
    panel.xaxis.set_minor_formatter(NullFormatter())
    if ticks:
        panel.set_xticks(list(ticks), [f"{t:g}" for t in ticks])
        panel.xaxis.set_minor_locator(_none())
    elif counts:
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        panel.xaxis.set_major_formatter(ScalarFormatter())


def majority(panel: Axes, value: float | None) -> None:
    """Draw the majority class as a dotted line, unless it is so far that it would compress the points."""
    low, high = panel.get_ylim()
    if value is not None and low - 0.15 * (high - low) <= value <= high:
        panel.axhline(value, ls=":", lw=1.3, color=MUTED, zorder=1)


def _none() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
