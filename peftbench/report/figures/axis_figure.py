"""The figure of a curve: the score of every method along an axis, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from peftbench.report.data.axis_curves import OF_TASKS, AxisCurve, Line
from peftbench.report.data.comparison import length
from peftbench.report.figures import names, style
from peftbench.report.figures.style import COLOURS, MARKERS, MUTED, Look
from peftbench.report.media.figure import literal, literals

WIDEST, NARROWEST = 7.0, 2.5  # points across a bar's ends: they differ by line, as all bars stand at their value
ROWS = 20  # of one legend column; more would not fit the height of the figure
CHARACTER = 0.016  # of the axis' width, that a character of a label takes


def drawn(curve: AxisCurve, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figure; nothing for fewer than two values with a score."""
    if sum(any(line.verdict(x) for line in curve.lines) for x in curve.values) > 1:
        with style.drawing(names.shown(curve)):
            yield from style.files(curve.slug, _figure(curve, looks))


def _figure(curve: AxisCurve, looks: Mapping[str, Look]) -> Figure:
    columns = math.ceil(len(curve.lines) / ROWS)
    figure = Figure(figsize=(7.6 + 2.4 * (columns - 1), 4.9), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    panel.set_xscale("log")
    panel.grid(visible=False, axis="x")
    handles: dict[str, Any] = {}
    last = {line.label: _last(curve, line) for line in curve.lines}
    better = sorted(curve.lines, key=lambda line: last[line.label], reverse=curve.direction != "min")
    for i, line in enumerate(curve.lines):
        look = _look(line, looks, i)
        cap = WIDEST - (WIDEST - NARROWEST) * i / max(1, len(curve.lines) - 1)
        handles[line.label] = _marks(panel, curve, line, look, cap) if line.varies else _band(panel, curve, line, look)
    _constant(panel, curve)
    _ticks(panel, curve)
    panel.set_xlabel(f"{literal(curve.unit)} ({'count, ' if curve.axis in OF_TASKS else ''}log axis)")
    (metric,) = literals([curve.metric])
    panel.set_ylabel(f"{metric} on the test split ({'lower' if curve.direction == 'min' else 'higher'} is better)")
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "ncols": columns}
    style.legend(panel, {line.label: handles[line.label] for line in better}, **place)
    (title,), (experiment, backbone) = literals([curve.title], 200), literals([curve.experiment, curve.backbone])
    seeds = sorted({e.n for line in curve.lines for x in curve.values if (e := line.entry(x)) and e.n})
    counted = f"{seeds[0]} to {seeds[-1]} seeds" if seeds[0] != seeds[-1] else f"{seeds[0]} seed{'s'[: seeds[0] - 1]}"
    examples = f"{curve.budget.batch_size} examples"
    steps = f"steps of {examples}" if curve.axis == "steps" else f"{length(curve.budget)} of {examples}"
    style.head(figure, title, f"{experiment}: {backbone}, {steps}, {counted}; bars and bands: 95 % intervals")
    style.settle(figure)
    return figure


def _look(line: Line, looks: Mapping[str, Look], i: int) -> Look:
    """The look that the method has in the other figures; that of its first row, where the axis is its setting."""
    labels = [line.label, *(label for _, label in line.places.values())]
    return next((looks[label] for label in labels if label in looks), (COLOURS[i % 8], MARKERS[i % 11]))


def _last(curve: AxisCurve, line: Line) -> float:
    """The mean at the greatest value that has one; the legend follows it."""
    known = [v.mean.value for x in curve.values if (v := line.verdict(x))]
    return known[-1] if known else math.inf if curve.direction == "min" else -math.inf


def points(curve: AxisCurve, line: Line) -> list[tuple[int, float, float, float]]:
    """What is drawn of a line: (value, mean, low end, high end of the interval), in the order of the values."""
    known = [(x, v.mean.value, v.interval) for x in curve.values if (v := line.verdict(x))]
    return [(x, mean, *(around or (mean, mean))) for x, mean, around in known]


def _width(curve: AxisCurve) -> float:
    values = list(curve.values)
    return values[-1] / values[0]


def _marks(panel: Axes, curve: AxisCurve, line: Line, look: Look, cap: float) -> Any:
    """A line through the means at their values, and a bar for each interval with ends `cap` points wide."""
    colour, marker = look
    known = points(curve, line)
    x, mean = [p[0] for p in known], [p[1] for p in known]
    bars = [[max(0.0, p[1] - p[2]) for p in known], [max(0.0, p[3] - p[1]) for p in known]]
    panel.errorbar(x, mean, bars, fmt="none", ecolor=colour, elinewidth=1.1, capsize=cap, capthick=1.1, alpha=0.75)
    (handle,) = panel.plot(
        x, mean, color=colour, lw=1.5, marker=marker, ms=6, mew=1.2, mfc="none", mec=colour, zorder=3, label=line.label
    )
    return handle


def _band(panel: Axes, curve: AxisCurve, line: Line, look: Look) -> Any:
    """A horizontal line and its interval, for a method without the axis' setting."""
    known = points(curve, line)
    (handle,) = panel.plot([], [], "--", color=look[0], lw=1.5)
    for _, mean, low, high in known[:1]:
        panel.axhspan(low, high, color=look[0], alpha=0.08, lw=0)
        panel.axhline(mean, color=look[0], lw=1.5, ls="--")
    return handle


def _constant(panel: Axes, curve: AxisCurve) -> None:
    """A dotted line at the score of the constant answer, if it lies within the drawn range or near it."""
    constant = next((c.majority for c in reversed(curve.tables) if c.majority is not None), None)
    low, high = panel.get_ylim()
    if constant is not None and low - 0.25 * (high - low) <= constant <= high + 0.25 * (high - low):
        panel.axhline(constant, color=MUTED, lw=1.0, ls=":")
        panel.annotate("constant answer", (1.0, constant), (0, 3), xycoords=("axes fraction", "data"),
                       textcoords="offset points", ha="right", va="bottom", fontsize=8.5, color=MUTED)  # fmt: skip


def _ticks(panel: Axes, curve: AxisCurve) -> None:
    """A tick at every tested value, labelled where there is room, the greatest always."""
    values = list(curve.values)
    edge = _width(curve) ** 0.06
    panel.set_xlim(values[0] / edge, values[-1] * edge)
    panel.set_xticks(values, _labels(curve.values))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())


def _labels(values: Mapping[int, str]) -> Sequence[str]:
    """What stands at each value; nothing where it would touch the label on its right."""
    span, left, shown = math.log(max(values) / min(values)), math.inf, list[str]()
    for number, word in sorted(values.items(), reverse=True):
        lines = word.replace(" (", "\n(")  # all, and below it how many
        at, half = math.log(number) / span, max(map(len, lines.split("\n"))) * CHARACTER / 2
        fits = at + half <= left
        shown.append(lines if fits else "")
        left = at - half if fits else left
    return shown[::-1]
