"""Labels of the points that matter in a figure of quality against a cost: written beside them where they fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from peftbench.report.figures.placement import Box, Label, fitting
from peftbench.report.media.figure import literals

MARK = 5.0  # points from a mark's centre to its edge
SIZE = 9  # of the text, points
CLEAR: dict[str, Any] = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5}  # behind the text, for lines below it


@dataclass(frozen=True)
class Point:
    """The position of a configuration in one panel, in data coordinates.

    Attributes:
        label: of the configuration.
        x: the cost.
        y: the mean score.
        half: half of the cost's quartile distance; 0 if it has none.
        low, high: 95 % interval of the score; both are `y` if it is not known.
        merged: cost with the method merged; None if that was not measured.
    """

    label: str
    x: float
    y: float
    half: float
    low: float
    high: float
    merged: float | None

    @property
    def across(self) -> tuple[float, ...]:
        """All horizontal positions that the axis must include."""
        return (self.x - self.half, self.x + self.half, self.x if self.merged is None else self.merged)


def chosen(shown: Sequence[Point], reference: str, direction: str) -> list[str]:
    """The labels that matter, the most important first: the reference, the best, the front, the worst, the dearest.

    Args:
        shown: the points of one panel.
        reference: label of the reference; it may be missing.
        direction: "max" or "min", which of the two scores is better.
    """
    sign = -1 if direction == "min" else 1
    ranked = sorted(shown, key=lambda p: (-sign * p.y, p.x))
    front, cheapest = [], math.inf
    for p in ranked:  # from the best: whoever is cheaper than all better ones
        if p.x < cheapest:
            front.append(p)
            cheapest = p.x
    extremes = [ranked[-1], max(ranked, key=lambda p: p.x)] if ranked else []
    first = [p for p in shown if p.label == reference]
    return list(dict.fromkeys(p.label for p in (*first, *front, *extremes)))


def write(drawn: Figure, panel: Axes, shown: Sequence[Point], wanted: Sequence[str]) -> None:
    """Write labels beside their points, without those that would cover a mark, another label or its line.

    Args:
        drawn: the figure, whose layout is fixed.
        panel: the axes of the points.
        shown: all points of the panel.
        wanted: the labels, the most important first.
    """
    unit = 72 / drawn.dpi  # points a pixel
    by_label = {p.label: p for p in shown}
    points = [by_label[label] for label in wanted]
    texts = literals(wanted, 34)
    window = panel.get_window_extent()
    frame = Box(window.x0 * unit, window.y0 * unit, window.x1 * unit, window.y1 * unit)
    centres = [_at(panel, p.x, p.y, unit) for p in points]
    marks = [box for p in shown for box in _marks(panel, p, unit)]
    bars = [box for p in shown for box in _bars(panel, p, unit)]
    for i, label in fitting(centres, _sizes(drawn, panel, texts, unit), marks, bars, frame).items():
        _write(panel, texts[i], points[i], label)
        if label.leader:
            _line(drawn, panel, centres[i], label)


def _sizes(drawn: Figure, panel: Axes, texts: Sequence[str], unit: float) -> list[tuple[float, float]]:
    """(width, height) of each text, in points, with a little space around it."""
    probe, sizes = panel.text(0, 0, "", fontsize=SIZE), []
    for text in texts:
        probe.set_text(text)
        extent = probe.get_window_extent(drawn.canvas.get_renderer())  # type: ignore[attr-defined]
        sizes.append((extent.width * unit + 3, extent.height * unit + 1))
    probe.remove()
    return sizes


def _write(panel: Axes, text: str, p: Point, label: Label) -> None:
    kinds: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": SIZE}
    panel.annotate(text, (p.x, p.y), (label.dx, label.dy), zorder=8, bbox=CLEAR, **kinds).set_in_layout(False)


def _line(drawn: Figure, panel: Axes, point: tuple[float, float], label: Label) -> None:
    inches = [(x / 72, y / 72) for x, y in leader(point, label)]
    style: dict[str, Any] = {"transform": drawn.dpi_scale_trans, "clip_on": False, "zorder": 7}
    panel.add_collection(LineCollection([inches], linewidths=0.6, colors="#555555", **style), autolim=False)


def leader(point: tuple[float, float], label: Label) -> list[tuple[float, float]]:
    """The leader line, in points: from the edge of the marker to the edge of the label."""
    width, height = label.box.right - label.box.left, label.box.top - label.box.bottom
    across = (width / 2 + 1) / abs(label.dx) if label.dx else math.inf
    upright = (height / 2 + 1) / abs(label.dy) if label.dy else math.inf
    ends = (4 / math.hypot(label.dx, label.dy), 1 - min(across, upright))  # shares of the way to the centre
    return [(point[0] + end * label.dx, point[1] + end * label.dy) for end in ends]


def _marks(panel: Axes, p: Point, unit: float) -> list[Box]:
    """The space of a point's markers."""
    places = [_at(panel, x, p.y, unit) for x in (p.x, p.merged) if x is not None]
    return [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in places]


def _bars(panel: Axes, p: Point, unit: float) -> list[Box]:
    """The space of a point's error bars, and of the line to its merged mark."""
    x, y = _at(panel, p.x, p.y, unit)
    low, high = (_at(panel, p.x, end, unit)[1] for end in (p.low, p.high))
    left, right = (_at(panel, p.x + sign * p.half, p.y, unit)[0] for sign in (-1, 1))
    boxes = [Box(x - 3, low, x + 3, high), Box(left, y - 3, right, y + 3)]
    if p.merged is not None:
        other = _at(panel, p.merged, p.y, unit)[0]
        boxes.append(Box(min(x, other), y - 1, max(x, other), y + 1))
    return boxes


def _at(panel: Axes, x: float, y: float, unit: float) -> tuple[float, float]:
    """Data coordinates in points of the figure."""
    px, py = panel.transData.transform((x, y))
    return float(px) * unit, float(py) * unit
