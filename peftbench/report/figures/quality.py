"""Quality against cost: one point per configuration at its values, with the table's intervals.

No mark is ever moved: under a budget sizes coincide by design, and what lies together is drawn together. The reference,
the front and the extremes stand out and have a label at their point; all others are translucent, and the key beside the
axes names everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter, NullLocator

from peftbench.report.data import verdicts
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.times import BATCHES, Summary
from peftbench.report.figures import fronts, point_labels, style
from peftbench.report.figures.point_labels import Point
from peftbench.report.figures.style import MUTED, Look, figure, remark, settle
from peftbench.report.media.figure import literal, literals

MIB = 2**20
CAP = 5.0  # points across an error bar's end
FAINT = 0.5  # opacity of a mark without a label
GREY = "#b5b5b5"  # of its bars
LONGEST = 0.75  # of the means' range: what bars may take beyond it, above and below
ROWS = 24  # of one column of the key; more would not fit the height of the figure
SHRINK = 0.5  # inches by which the axes are narrower than without a key


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
    """Draw the mean test score with its 95 % interval against each cost; None if no cost is known."""
    points = [_points(c, axis) for axis in axes]
    if not any(points):
        return None
    drawn, panels = figure(c, len(axes), c.constant)
    for panel, axis, shown in zip(panels, axes, points, strict=True):
        _scale(panel, axis, shown)
        _baseline(panel, c)
    with_front = [fronts.draw(p, c, *axis.front) for p, axis in zip(panels, axes, strict=True) if axis.front]
    named = [point_labels.chosen(shown, c.reference, c.direction) for shown in points]
    standing_out = {label for some in named for label in some}
    for panel, shown in zip(panels, points, strict=True):
        _mark(panel, shown, standing_out, looks)
    _key(drawn, panels[-1], _ranked(c, points), fronts.shares(c, axes[0].front[0]) if axes[0].front else {},
         {label: _look(looks[label], label in standing_out) for label in looks})  # fmt: skip
    better = "lower is better" if c.direction == "min" else "higher is better"
    panels[0].set_ylabel(f"test {literal(c.metric)}, {better}\n(mean; bars: 95 % interval)")
    if any(p.merged is not None for shown in points for p in shown):
        remark(panels[-1], "filled: as trained    hollow: merged")
    bottom, top = panels[0].get_ylim()
    is_cut = any(p.low < bottom or p.high > top for shown in points for p in shown)
    drawn.supxlabel("\n".join(_below(c, any(with_front), is_cut)), fontsize=8.5, color=MUTED)
    settle(drawn)
    for panel, shown, some in zip(panels, points, named, strict=True):
        point_labels.write(drawn, panel, shown, some)
    return drawn


def _below(c: Comparison, has_front: bool, is_cut: bool) -> list[str]:
    lines = ["labelled: the reference, the front and the extremes, where there is room"]
    lines[0] += "; bars without an end leave the axes" if is_cut else ""
    lines += [fronts.LEGEND] if has_front else []
    absent = [e.label for e in c.entries if e.mean is None]
    return [*lines, f"no finished run: {', '.join(literals(absent))}"] if absent else lines


def _points(c: Comparison, axis: Axis) -> list[Point]:
    """The configurations that have both a score and a cost."""
    points = []
    for e in c.entries:
        if e.mean is not None and (cost := axis.value(e)):
            merged = axis.other(e) if axis.other else None
            verdict = verdicts.of(c).get(e.label)
            around = (verdict.interval if verdict else None) or (e.mean, e.mean)
            half = (cost.iqr or 0.0) / 2
            points.append(Point(e.label, cost.median, e.mean, half, *around, merged.median if merged else None))
    return points


def _scale(panel: Axes, axis: Axis, shown: Sequence[Point]) -> None:
    """Set limits with room for the labels, and the axis' ticks."""
    panel.set_xlabel(axis.label)
    if not shown:
        return
    panel.update_datalim([(x, y) for p in shown for x in p.across for y in _height(shown)])
    if axis is TRAINABLE:
        values = [p.x for p in shown]
        known = [v for v in values if v > 0]
        if len(known) == len(values):
            panel.set_xscale("log")
            panel.set_xlim(min(values) / 3, max(values) * 3)
        else:  # a method trains only the head
            _from_zero(panel, axis, known)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(0.16, 0.16)
    panel.autoscale_view(scalex=axis is not TRAINABLE or panel.get_xscale() == "symlog")


def _height(shown: Sequence[Point]) -> tuple[float, float]:
    """The scores that the axis must include: all means, and intervals as far as they leave the means readable."""
    low, high = min(p.y for p in shown), max(p.y for p in shown)
    room = LONGEST * max(high - low, median(p.high - p.low for p in shown))
    return max(min(p.low for p in shown), low - room), min(max(p.high for p in shown), high + room)


def _from_zero(panel: Axes, axis: Axis, known: Sequence[float]) -> None:
    """A logarithmic axis that has a zero, with ticks at zero and at powers of ten that do not touch it."""
    linear = 10.0 ** max(math.floor(math.log10(min(known, default=10.0))) - 1, 0)
    panel.set_xscale("symlog", linthresh=linear, linscale=0.4)
    panel.set_xlabel(axis.label.replace("log axis", f"linear up to {linear:,.0f}, then log"))
    decades = range(round(math.log10(linear)), math.ceil(math.log10(max(known, default=10.0))) + 1)
    panel.xaxis.set_major_locator(FixedLocator([0.0, *(10.0**i for i in decades)]))
    panel.xaxis.set_minor_locator(NullLocator())


def _mark(panel: Axes, shown: Sequence[Point], named: set[str], looks: Mapping[str, Look]) -> None:
    """Draw each point at its values: those without a label first, so that they hide none that has one."""
    panel.autoscale(False)
    faint, clear = ([p for p in shown if (p.label in named) == is_named] for is_named in (False, True))
    for level, points in enumerate((faint, clear)):
        base = 2 + 2 * level
        _bars(panel, points, [looks[p.label][0] if level else GREY for p in points], base)
        for p in points:
            colour, marker = looks[p.label]
            if p.merged is not None:
                panel.plot([p.x, p.merged], [p.y, p.y], "-", lw=0.9, color=colour, alpha=0.2 + 0.4 * level, zorder=base)
                hollow: dict[str, Any] = {"mfc": "white" if level else "none", "mec": colour, "mew": 1.3}
                panel.plot([p.merged], [p.y], marker, ms=7, alpha=1 if level else FAINT, zorder=base + 1, **hollow)
            panel.plot([p.x], [p.y], label=p.label, zorder=base + 1.5, **_look(looks[p.label], bool(level)))


def _look(look: Look, is_named: bool) -> dict[str, Any]:
    colour, marker = look
    face = {"alpha": 1.0, "mec": "w", "mew": 0.75} if is_named else {"alpha": FAINT, "mec": "none"}
    return {"color": colour, "marker": marker, "ls": "none", "ms": 8, **face}


def _bars(panel: Axes, shown: Sequence[Point], colours: Sequence[str], zorder: float) -> None:
    """Draw error bars with their caps: all vertical ones as one object, all horizontal ones as another."""
    style: dict[str, Any] = {"alpha": 0.75, "zorder": zorder}
    pairs = list(zip(shown, colours, strict=True))
    if upright := [(p, colour) for p, colour in pairs if p.high > p.low]:
        x, low, high = [p.x for p, _ in upright], [p.low for p, _ in upright], [p.high for p, _ in upright]
        ends = [colour for _, colour in upright]
        panel.vlines(x, low, high, colors=ends, lw=1.1, **style)
        panel.scatter(x * 2, low + high, s=CAP**2, c=ends * 2, marker="_", linewidths=1.0, **style)
    if level := [(p, colour) for p, colour in pairs if p.half]:
        y, left, right = [p.y for p, _ in level], [p.x - p.half for p, _ in level], [p.x + p.half for p, _ in level]
        ends = [colour for _, colour in level]
        panel.hlines(y, left, right, colors=ends, lw=1.1, **style)
        panel.scatter(left + right, y * 2, s=CAP**2, c=ends * 2, marker="|", linewidths=1.0, **style)


def _baseline(panel: Axes, c: Comparison) -> None:
    """Draw the constant answer as a dotted line, unless it is so far that it would compress the points."""
    low, high = panel.get_ylim()
    if c.majority is not None and low - 0.15 * (high - low) <= c.majority <= high:
        panel.axhline(c.majority, ls=":", lw=1.3, color=MUTED, zorder=1)


def _ranked(c: Comparison, points: Sequence[Sequence[Point]]) -> list[str]:
    """The labels of all points, the best first."""
    scores = {p.label: p.y for shown in points for p in shown}
    return sorted(scores, key=lambda label: scores[label], reverse=c.direction != "min")


def _key(
    drawn: Figure, panel: Axes, labels: Sequence[str], shares: Mapping[str, str], kinds: Mapping[str, dict[str, Any]]
) -> None:
    """Name every mark beside the axes, with its probability to be on the front."""
    handles = {label: Line2D([], [], **kinds[label]) for label in labels}
    columns = math.ceil(len(labels) / ROWS)
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "ncols": columns}
    key = style.legend(panel, handles, shares, **place).get_window_extent(FigureCanvasAgg(drawn).get_renderer())
    drawn.set_size_inches(drawn.get_figwidth() + key.width / drawn.dpi - SHRINK, drawn.get_figheight())
