"""The figure of the table over tasks: score with interval, and costs, relative to the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from peftbench.report.data.average import Average, Standing
from peftbench.report.figures import names, style
from peftbench.report.figures.style import MUTED, Look
from peftbench.report.media.figure import literals
from peftbench.report.media.terminal import wrapped

ROW = 0.27  # inches


def drawn(a: Average, slug: str, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figure; nothing for fewer than two configurations with an average."""
    rows = sorted((s for s in a.standings if s.relative is not None), key=_by_score)
    if len(rows) < 2:
        return
    with style.drawing(names.shown(a)):
        yield from style.files(f"{slug}--summary", _figure(a, rows, looks))


def _by_score(s: Standing) -> float:
    return -(s.relative or 0.0)


def _figure(a: Average, rows: list[Standing], looks: Mapping[str, Look]) -> Figure:
    figure = Figure(figsize=(10.0, 1.9 + ROW * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    score, cost = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for y, s in enumerate(rows):
        colour, marker = looks.get(s.label, ("#000000", "o"))
        _score(score, y, s, colour, marker)
        for value, shape in ((s.peak_ratio, "s"), (s.step_ratio, "o")):
            if value is not None:
                cost.plot(value, y, shape, color="#333333", mfc="white" if shape == "o" else "#333333", ms=5)
    for panel in (score, cost):
        panel.axvline(1, lw=1.0, color=MUTED, zorder=1)
        panel.set_title("", y=1.0)
    labels = literals(s.label for s in rows)
    score.set_yticks(range(len(rows)), labels)
    style.make_room(score, labels)
    score.invert_yaxis()
    cost.set_xlim(left=0)
    reference, experiment = literals([a.reference, a.experiment])
    score.set_xlabel(f"mean score over {len(a.tasks)} tasks / {reference}'s (bars: 95 % interval)")
    cost.set_xlabel(f"cost / {reference}'s")
    looks_of = {"peak memory of a step": ("s", "#333333"), "time of a step": ("o", "white")}
    handles = [cost.plot([], [], shape, color="#333333", mfc=fill, ms=5)[0] for shape, fill in looks_of.values()]
    cost.legend(
        handles, list(looks_of), frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncol=2
    )
    room = round(60 - 0.6 * max(map(len, labels)))  # characters until the legend
    title = wrapped(f"{experiment}: score and cost over {len(a.tasks)} tasks", room)
    score.set_title("\n".join(title), loc="left", fontsize=12, fontweight="bold", pad=10, y=1.0)
    style.settle(figure)
    return figure


def _score(panel: Axes, y: int, s: Standing, colour: str, marker: str) -> None:
    if s.relative_interval is not None:
        panel.plot(s.relative_interval, [y, y], "-", lw=1.4, color=colour)
    panel.plot([s.relative or 0.0], [y], marker, ms=6.5, color=colour)
