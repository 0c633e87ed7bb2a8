"""The critical-difference diagram (Demsar 2006, figure 1): mean ranks on a line, bars join groups within CD."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from peftbench.report.data.average import Average
from peftbench.report.figures import names, style
from peftbench.report.figures.style import MUTED, Look
from peftbench.report.media.figure import literals
from peftbench.report.media.plain import natural
from peftbench.report.stats.ranks import Ranking

LINE, BAR = 0.5, 0.22  # inches: between labels below the axis, between bars


def drawn(a: Average, slug: str, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the diagram; nothing for too few tasks."""
    if a.ranking is None or a.ranking.too_few_tasks:
        return
    with style.drawing(names.shown(a)):
        yield from style.files(f"{slug}--ranks", _figure(a, a.ranking, looks))


def _figure(a: Average, r: Ranking, looks: Mapping[str, Look]) -> Figure:
    half = math.ceil(len(r.labels) / 2)
    groups = r.groups
    below = BAR * (len(groups) + 1)
    height = 1.5 + below + LINE * 0.5 * half
    figure = Figure(figsize=(7.6, height))
    FigureCanvasAgg(figure)
    panel = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    panel.set_axis_off()
    panel.set_xlim(0, 7.6)
    panel.set_ylim(-height, 0)
    (experiment,) = literals([a.experiment])
    title = f"{experiment}: mean ranks over {r.tasks} tasks"
    friedman = f"Friedman's test: {r.p_shown}" + ("" if r.differ else ", no difference is sure")
    panel.text(0.2, -0.3, title, fontsize=12, fontweight="bold", va="center")
    panel.text(0.2, -0.55, f"{friedman}; bars join what cannot be told apart at 95 % (Nemenyi)", fontsize=8.5,
               color=MUTED, va="center")  # fmt: skip
    _axis(panel, r)
    _bars(panel, r, groups)
    _labels(panel, r, below, looks)
    return figure


TOP = -1.15  # of the axis, inches


def _x(r: Ranking, rank: float) -> float:
    """Horizontal position of a rank; the best is on the left."""
    return 2.0 + 3.6 * (rank - 1) / (len(r.labels) - 1)


def _axis(panel: Axes, r: Ranking) -> None:
    k = len(r.labels)
    panel.plot([_x(r, 1), _x(r, k)], [TOP, TOP], "-", lw=1.0, color="#444444")
    for rank in range(1, k + 1, math.ceil(k / 12)):
        panel.plot([_x(r, rank)] * 2, [TOP, TOP + 0.06], "-", lw=1.0, color="#444444")
        panel.text(_x(r, rank), TOP + 0.1, str(rank), ha="center", va="bottom", fontsize=8.5)
    wide = _x(r, 1 + r.critical) - _x(r, 1)
    panel.plot([7.3 - wide, 7.3], [-0.85, -0.85], "-|", lw=1.2, color=MUTED)
    panel.text(7.3 - wide / 2, -0.8, f"critical difference {r.critical:.2f}", ha="center" if wide > 1 else "right",
               va="bottom", fontsize=8.5, color=MUTED)  # fmt: skip


def _bars(panel: Axes, r: Ranking, groups: list[tuple[str, ...]]) -> None:
    at = dict(zip(r.labels, r.mean_ranks, strict=True))
    for i, group in enumerate(groups):
        ends = [_x(r, at[group[0]]) - 0.04, _x(r, at[group[-1]]) + 0.04]
        y = TOP - BAR * (i + 1)
        panel.plot(ends, [y, y], "-", lw=3.5, color="#333333", solid_capstyle="round", zorder=4)


def _labels(panel: Axes, r: Ranking, below: float, looks: Mapping[str, Look]) -> None:
    """The better half on the left, the other on the right, each with a line from its rank."""
    order = sorted(zip(r.mean_ranks, r.labels, strict=True), key=lambda at: (at[0], natural(at[1])))
    half = math.ceil(len(order) / 2)
    short = dict(zip(r.labels, literals(r.labels, 24), strict=True))
    style_of: dict[str, Any] = {"fontsize": 9, "va": "center"}
    for i, (rank, label) in enumerate(order):
        left = i < half
        row = i if left else len(order) - 1 - i
        y = TOP - below - LINE * 0.5 * (row + 0.5)
        x, edge = _x(r, rank), 1.75 if left else 5.85
        colour, marker = looks.get(label, ("#000000", "o"))
        panel.plot([x, x, edge], [TOP, y, y], "-", lw=0.9, color="#888888", zorder=1)
        panel.plot(x, TOP, marker, ms=5, color=colour, zorder=5)
        text = short[label]
        panel.text(edge + (-0.06 if left else 0.06), y, f"{text} {rank:.2f}" if left else f"{rank:.2f} {text}",
                   ha="right" if left else "left", **style_of)  # fmt: skip
