"""All figures of a report, as PNG and SVG, and as PDF where that is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.latencies import Latencies
from peftbench.report.figures import axis_figure as by_axis
from peftbench.report.figures import confusion, curves, names, quality, style, summary_figure
from peftbench.report.figures import latency_figure as by_shape
from peftbench.report.figures import rank_figure as by_rank
from peftbench.report.figures import tuning_figures as by_trial
from peftbench.report.figures.style import Look, looks

__all__ = ["average_figures", "axis_figure", "figures", "latency_figure", "looks", "rank_figure", "tuning_figures"]

tuning_figures = by_trial.drawn
axis_figure = by_axis.drawn


def figures(c: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of every figure that `c` has data for; `looks` gives a label one look in all figures."""
    yield from summary_figure.of_task(c, looks)
    with style.drawing(names.shown(c)):
        for name, axes in quality.FIGURES.items():
            if (drawn := quality.draw(c, axes, looks)) is not None:
                yield from style.files(f"{c.slug}--{name}", drawn)
        if (drawn := curves.draw(c, looks)) is not None:
            yield from style.files(f"{c.slug}--loss", drawn)
        if (drawn := confusion.draw(c)) is not None:
            yield from style.files(f"{c.slug}--confusion", drawn)


def latency_figure(p: Latencies, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figure of a pass's latencies, if the experiment names lengths."""
    known = style.of_labels([*looks, *p.labels])  # labels keep the look they have in other figures
    with style.drawing(names.shown(p)):
        yield from by_shape.drawn(p, known)


def average_figures(a: Average, slug: str, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figure of the table over tasks, and of its critical-difference diagram."""
    yield from summary_figure.of_average(a, slug, looks)
    yield from rank_figure(a, slug, looks)


def rank_figure(a: Average, slug: str, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the critical-difference diagram, if there are enough tasks."""
    yield from by_rank.drawn(a, slug, looks)
