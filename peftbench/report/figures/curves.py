"""Training loss of every configuration by optimizer step: the mean over seeds, and each failed run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from peftbench.records.record import RunRecord
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.figures.style import MUTED, Look, figure, legend, settle

ROWS = 20  # of one legend column; more would not fit the height of the figure


def draw(c: Comparison, looks: Mapping[str, Look]) -> Figure | None:
    """Draw the smoothed loss, one line per configuration; None if no run has a curve."""
    steps = max((len(_loss(r)) for e in c.entries for r in e.runs), default=0)
    if not steps:
        return None
    window = max(1, steps // 10)
    smoothing = f"moving average over {window} steps" if window > 1 else "not smoothed"
    drawn, (panel,) = figure(c, 1, f"mean over seeds, {smoothing}")
    lines: dict[str, Line2D] = {}
    ends: dict[str, float] = {}
    for e in c.entries:
        if mean := _mean(e, window):
            lines[e.label] = _line(panel, e.label, mean, looks[e.label])
            ends[e.label] = mean[-1]
    failed = [r for e in c.entries for r in e.runs if not r.is_finished and _loss(r)]
    for e in c.entries:
        for r in (r for r in e.runs if r in failed):
            line = _failure(panel, smooth(_loss(r), window), looks[e.label])
            if e.label not in ends:
                lines.setdefault(f"{e.label} (failed)", line)
    panel.set_xlabel("optimiser steps (count)")
    panel.set_ylabel("training loss (mean of a batch)")
    panel.margins(x=0.02)
    _legend(drawn, panel, lines, ends)
    if failed:
        drawn.supxlabel("dashed, ending in ×: a run that failed", fontsize=8.5, color=MUTED)
    settle(drawn)
    return drawn


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Moving average: the mean of each value and up to `window` - 1 values before it."""
    return [statistics.fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def _loss(r: RunRecord) -> list[float]:
    """The losses before the first that is not finite; empty if the run never trained."""
    losses = r.body.curve.loss if r.body.curve else []
    end = next((i for i, value in enumerate(losses) if value is None), len(losses))
    return [value for value in losses[:end] if value is not None]


def _mean(e: Entry, window: int) -> list[float]:
    """The smoothed mean over the finished seeds; empty without a finished run."""
    losses = [loss for r in e.runs if r.is_finished and (loss := _loss(r))]
    length = min(map(len, losses), default=0)  # seeds may have stopped early: every mean is over all of them
    return smooth([statistics.fmean(at) for at in zip(*(loss[:length] for loss in losses), strict=True)], window)


def _line(panel: Axes, label: str, mean: Sequence[float], look: Look) -> Line2D:
    length, (colour, marker) = len(mean), look
    every = max(1, length // 8)
    start = min(sum(map(ord, label)) % every, length - 1)  # offsets the markers of different lines
    return panel.plot(
        range(1, length + 1), mean, color=colour, lw=1.7, marker=marker, ms=6, mew=0.75, mec="w",
        markevery=(start, every),
    )[0]  # fmt: skip


def _failure(panel: Axes, losses: Sequence[float], look: Look) -> Line2D:
    (line,) = panel.plot(range(1, len(losses) + 1), losses, "--", lw=1.0, color=look[0], alpha=0.8)
    panel.plot(len(losses), losses[-1], "x", ms=8, mew=2, color=look[0])
    return line


def _legend(drawn: Figure, panel: Axes, lines: Mapping[str, Line2D], ends: Mapping[str, float]) -> None:
    """Place the legend next to the axes, in the order of the last values; failed configurations come last."""
    names = sorted(lines, key=lambda label: -ends.get(label, -math.inf))
    if names:
        columns = math.ceil(len(names) / ROWS)
        drawn.set_size_inches(drawn.get_figwidth() + 2.4 * (columns - 1), drawn.get_figheight())
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "ncols": columns}
        legend(panel, {name: lines[name] for name in names}, **place)
