"""Quality against cost: one labelled point per configuration, with error bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.times import BATCHES, Summary
from peftbench.report.figures import fronts
from peftbench.report.figures.placement import Box, Label, place
from peftbench.report.figures.style import MUTED, Look, figure, remark, settle
from peftbench.report.media.figure import literal, literals

MIB = 2**20
CAP = 5.0  # points across an error bar's end
STEP = 8.5  # points between the centres of markers that would hide each other


@dataclass(frozen=True)
class Point:
    """The position of a configuration in one panel, in data coordinates."""

    label: str
    x: float
    y: float
    half: float  # half of the cost's quartile distance; 0 if it has none
    sd: float  # of the score over the seeds; 0 for one seed
    merged: float | None  # cost with the method merged

    @property
    def across(self) -> tuple[float, ...]:
        """All horizontal positions that the axis must include."""
        return (self.x - self.half, self.x + self.half, self.x if self.merged is None else self.merged)


@dataclass(frozen=True)
class Axis:
    """A cost to plot quality against."""

    label: str  # with its unit
    value: Callable[[Entry], Summary | None]  # in that unit
    other: Callable[[Entry], Summary | None] | None = None  # a second, hollow marker: merged
    front: tuple[str, float] | None = None  # (key of `pareto.COSTS`, factor to this axis' unit)


def _parameters(e: Entry) -> Summary | None:
    count = e.parameter("trainable")
    return Summary(float(count), None) if count is not None else None


def _memory(e: Entry) -> Summary | None:
    return Summary(e.peak_bytes / MIB, None) if e.peak_bytes is not None else None


def _milliseconds(s: Summary | None) -> Summary | None:
    return Summary(s.median * 1e3, s.iqr * 1e3 if s.iqr is not None else None) if s else None


def _step(e: Entry) -> Summary | None:
    return _milliseconds(e.times.step) if e.times else None


def _latency(batch: str, kind: str) -> Callable[[Entry], Summary | None]:
    def value(e: Entry) -> Summary | None:
        at = e.times.latency.get(batch) if e.times else None
        return _milliseconds(getattr(at, kind)) if at else None

    return value


TRAINABLE = Axis(
    "trainable parameters (count, log axis, task head not counted)", _parameters, front=("parameters", 1.0)
)
FIGURES: Mapping[str, tuple[Axis, ...]] = {
    "quality-vs-trainable": (TRAINABLE,),
    "quality-vs-memory": (Axis("peak training memory (MiB)", _memory, front=("memory", 1 / MIB)),),
    "quality-vs-step-time": (
        Axis("time of a training step (ms, median; bars: quartiles)", _step, front=("step time", 1e3)),
    ),
    "quality-vs-latency": tuple(
        Axis(f"inference latency, batch {b} (ms)", _latency(b, "unmerged"), _latency(b, "merged")) for b in BATCHES
    ),
}


def draw(c: Comparison, axes: Sequence[Axis], looks: Mapping[str, Look]) -> Figure | None:
    """Draw the mean test score with its standard deviation against each cost; None if no cost is known."""
    points = [_points(c, axis) for axis in axes]
    if not any(points):
        return None
    drawn, panels = figure(c, len(axes), c.constant)
    legend = ""
    for panel, axis, shown in zip(panels, axes, points, strict=True):
        _scale(panel, axis, shown)
        _baseline(panel, c)
        if axis.front and fronts.draw(panel, c, *axis.front):
            legend = f"\n{fronts.LEGEND}"
    better = "lower is better" if c.direction == "min" else "higher is better"
    panels[0].set_ylabel(f"test {literal(c.metric)}, {better}\n(mean; bars: ± 1 sd over seeds)")
    if any(p.merged is not None for shown in points for p in shown):
        remark(panels[-1], "filled: as trained    hollow: merged")
    absent = [e.label for e in c.entries if e.mean is None]
    missing = f"\nno finished run: {', '.join(literals(absent))}" if absent else ""
    drawn.supxlabel(
        f"points that would hide each other are drawn side by side{legend}{missing}", fontsize=8.5, color=MUTED
    )
    settle(drawn)
    for panel, axis, shown in zip(panels, axes, points, strict=True):
        apart = _apart(panel, shown, 72 / drawn.dpi)
        _mark(panel, apart, looks)
        _name(drawn, panel, apart, fronts.shares(c, axis.front[0]) if axis.front else {})
    return drawn


def _points(c: Comparison, axis: Axis) -> list[Point]:
    """The configurations that have both a score and a cost."""
    points = []
    for e in c.entries:
        if e.mean is not None and (cost := axis.value(e)):
            merged = axis.other(e) if axis.other else None
            half = (cost.iqr or 0.0) / 2
            points.append(Point(e.label, cost.median, e.mean, half, e.sd or 0.0, merged.median if merged else None))
    return points


def _scale(panel: Axes, axis: Axis, shown: Sequence[Point]) -> None:
    """Set limits with room for the labels, and the axis' ticks."""
    panel.set_xlabel(axis.label)
    if not shown:
        return
    panel.update_datalim([(x, y) for p in shown for x in p.across for y in (p.y - p.sd, p.y + p.sd)])
    if axis is TRAINABLE:
        values = [p.x for p in shown]
        known = [v for v in values if v > 0]
        if len(known) == len(values):
            panel.set_xscale("log")
            panel.set_xlim(min(values) / 3, max(values) * 3)
        else:  # a method trains only the head
            linear = max(min(known, default=1.0) / 10, 1.0)
            panel.set_xscale("symlog", linthresh=linear)
            panel.set_xlabel(axis.label.replace("log axis", f"linear up to {linear:,.0f}, then log"))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(0.16, 0.16)
    panel.autoscale_view(scalex=axis is not TRAINABLE or panel.get_xscale() == "symlog")


def _apart(panel: Axes, shown: Sequence[Point], unit: float) -> list[Point]:
    """Move points that would hide each other side by side; under a budget, sizes coincide by design."""
    places = {p.label: _at(panel, p.x, p.y, unit) for p in shown}
    clusters: list[list[Point]] = []
    for p in sorted(shown, key=lambda p: p.x):
        near = [g for g in clusters if any(_hides(places[p.label], places[o.label]) for o in g)]
        clusters = [g for g in clusters if g not in near] + [[*(o for g in near for o in g), p]]
    moved: dict[str, Point] = {}
    for cluster in clusters:
        middle = sum(places[p.label][0] for p in cluster) / len(cluster)
        for i, p in enumerate(cluster):
            target = middle + (i - (len(cluster) - 1) / 2) * STEP if len(cluster) > 1 else places[p.label][0]
            x, _ = panel.transData.inverted().transform((target / unit, 0))
            moved[p.label] = replace(p, x=float(x))
    return [moved[p.label] for p in shown]


def _hides(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return abs(a[0] - b[0]) < STEP - 1 and abs(a[1] - b[1]) < STEP - 1


def _mark(panel: Axes, shown: Sequence[Point], looks: Mapping[str, Look]) -> None:
    panel.autoscale(False)
    _bars(panel, shown, looks)
    for p in shown:
        colour, marker = looks[p.label]
        if p.merged is not None:
            panel.plot([p.x, p.merged], [p.y, p.y], "-", lw=0.9, color=colour, alpha=0.6, zorder=1)
            panel.plot(p.merged, p.y, marker, ms=7, mfc="white", mec=colour, mew=1.4, zorder=3)
    labels = [p.label for p in shown]
    frame = pd.DataFrame({"x": [p.x for p in shown], "y": [p.y for p in shown], "name": labels})
    colours, markers = {n: looks[n][0] for n in labels}, {n: looks[n][1] for n in labels}
    hue: dict[str, Any] = {"hue": "name", "style": "name", "palette": colours, "markers": markers, "legend": False}
    across, upright = panel.get_xlabel(), panel.get_ylabel()
    sns.scatterplot(frame, x="x", y="y", ax=panel, s=62, zorder=4, **hue)
    panel.set_xlabel(across)
    panel.set_ylabel(upright)


def _bars(panel: Axes, shown: Sequence[Point], looks: Mapping[str, Look]) -> None:
    """Draw error bars with their caps: all vertical ones as one object, all horizontal ones as another."""
    style: dict[str, Any] = {"alpha": 0.75, "zorder": 2}
    if upright := [p for p in shown if p.sd]:
        x, low, high = [p.x for p in upright], [p.y - p.sd for p in upright], [p.y + p.sd for p in upright]
        colours = [looks[p.label][0] for p in upright]
        panel.vlines(x, low, high, colors=colours, lw=1.1, **style)
        panel.scatter(x * 2, low + high, s=CAP**2, c=colours * 2, marker="_", linewidths=1.0, **style)
    if level := [p for p in shown if p.half]:
        y, left, right = [p.y for p in level], [p.x - p.half for p in level], [p.x + p.half for p in level]
        colours = [looks[p.label][0] for p in level]
        panel.hlines(y, left, right, colors=colours, lw=1.1, **style)
        panel.scatter(left + right, y * 2, s=CAP**2, c=colours * 2, marker="|", linewidths=1.0, **style)


def _baseline(panel: Axes, c: Comparison) -> None:
    """Draw the constant answer as a dotted line, unless it is so far that it would compress the points."""
    low, high = panel.get_ylim()
    if c.majority is not None and low - 0.15 * (high - low) <= c.majority <= high:
        panel.axhline(c.majority, ls=":", lw=1.3, color=MUTED, zorder=1)


def _name(drawn: Figure, panel: Axes, shown: Sequence[Point], shares: Mapping[str, str]) -> None:
    """Label each point with its configuration and its probability to be on the front."""
    names = literals((p.label for p in shown), 34)
    texts = [name + shares.get(p.label, "") for name, p in zip(names, shown, strict=True)]
    unit = 72 / drawn.dpi  # points a pixel
    obstacles = [box for p in shown for box in _occupied(panel, p, unit)]
    centres = [_at(panel, p.x, p.y, unit) for p in shown]
    window = panel.get_window_extent()
    frame = Box(window.x0 * unit, window.y0 * unit, window.x1 * unit, window.y1 * unit)
    sizes = []
    probe = panel.text(0, 0, "", fontsize=9)
    for text in texts:
        probe.set_text(text)
        extent = probe.get_window_extent(drawn.canvas.get_renderer())  # type: ignore[attr-defined]
        sizes.append((extent.width * unit + 3, extent.height * unit + 1))
    probe.remove()
    labels = place(centres, sizes, obstacles, frame)
    for p, text, label in zip(shown, texts, labels, strict=True):
        _write(panel, text, (p.x, p.y), label)
    far = [(centre, label) for centre, label in zip(centres, labels, strict=True) if label.leader]
    inches = [[(x / 72, y / 72) for x, y in _leader(*each)] for each in far]
    style: dict[str, Any] = {"transform": drawn.dpi_scale_trans, "clip_on": False, "zorder": 5}
    panel.add_collection(LineCollection(inches, linewidths=0.6, colors="#888888", **style), autolim=False)


def _write(panel: Axes, text: str, point: tuple[float, float], label: Label) -> None:
    kinds: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 9, "zorder": 5}
    panel.annotate(text, point, (label.dx, label.dy), **kinds).set_in_layout(False)


def _leader(point: tuple[float, float], label: Label) -> list[tuple[float, float]]:
    """The leader line, in points: from the edge of the marker to the edge of the label."""
    width, height = label.box.right - label.box.left, label.box.top - label.box.bottom
    across = (width / 2 + 1) / abs(label.dx) if label.dx else math.inf
    upright = (height / 2 + 1) / abs(label.dy) if label.dy else math.inf
    ends = (4 / math.hypot(label.dx, label.dy), 1 - min(across, upright))  # shares of the way to the centre
    return [(point[0] + end * label.dx, point[1] + end * label.dy) for end in ends]


def _occupied(panel: Axes, p: Point, unit: float) -> list[Box]:
    """The space of a point's markers and error bars."""
    x, y = _at(panel, p.x, p.y, unit)
    low, high = (_at(panel, p.x, p.y + sign * p.sd, unit)[1] for sign in (-1, 1))
    left, right = (_at(panel, p.x + sign * p.half, p.y, unit)[0] for sign in (-1, 1))
    boxes = [Box(x - 5, y - 5, x + 5, y + 5), Box(x - 3, low, x + 3, high), Box(left, y - 3, right, y + 3)]
    if p.merged is not None:
        other = _at(panel, p.merged, p.y, unit)[0]
        boxes += [Box(other - 5, y - 5, other + 5, y + 5), Box(min(x, other), y - 1, max(x, other), y + 1)]
    return boxes


def _at(panel: Axes, x: float, y: float, unit: float) -> tuple[float, float]:
    """Data coordinates in points of the figure."""
    px, py = panel.transData.transform((x, y))
    return float(px) * unit, float(py) * unit
