"""Two figures of tuning: the expected best of k trials, and score by learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from peftbench.records.trials import value_of
from peftbench.report.data.tunings import ConfigurationTrials, Tuning, expected_best, score, scores
from peftbench.report.figures import names, style
from peftbench.report.figures.style import MUTED, Look
from peftbench.report.media.figure import literal


def drawn(t: Tuning, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figures that the trials have data for."""
    looks = style.of_labels([*looks, *(row.label for row in t.rows)])
    with style.drawing([*names.shown(t), *looks]):
        if any(scores(t, row) for row in t.rows):
            yield from style.files(f"{t.slug}--expected-best", _expected(t, looks))
            if any("lr" in row.space for row in t.rows):
                yield from style.files(f"{t.slug}--rates", _rates(t, looks))


def _expected(t: Tuning, looks: Mapping[str, Look]) -> Figure:
    figure, (panel,) = style.figure(t, 1, "mean over all subsets of the trials (unbiased)")
    lines = {}
    for row in t.rows:
        if (known := scores(t, row)) is not None:
            best = expected_best(known, t.direction)
            lines[row.label] = _plot(panel, range(1, len(best) + 1), best, row, looks)
    panel.set_xlabel("trials (count)")
    panel.set_ylabel(f"expected best {literal(t.metric)} on validation")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _settled(figure, panel, lines)


def _rates(t: Tuning, looks: Mapping[str, Look]) -> Figure:
    figure, (panel,) = style.figure(t, 1, "each point is a trial, the ring is the chosen one")
    failed, lines = 0, {}
    for row in (row for row in t.rows if "lr" in row.space):
        points = sorted((value_of(r, "lr"), s) for r in row.trials if (s := score(r)) is not None)
        if points:
            lines[row.label] = _plot(panel, [lr for lr, _ in points], [s for _, s in points], row, looks)
            ring: Any = ([value_of(row.best, "lr")], [score(row.best)])
            panel.plot(*ring, "o", ms=14, mfc="none", mec=looks[row.label][0], mew=1.4)
        for r in (r for r in row.trials if score(r) is None):
            where: Any = panel.get_xaxis_transform()  # at the foot of the axes, whatever their scale
            panel.plot([value_of(r, "lr")], [0.02], "x", ms=8, mew=2, color=looks[row.label][0], transform=where)
            failed += 1
    panel.set_xscale("log")
    panel.set_xlabel("learning rate (log axis)")
    panel.set_ylabel(f"{literal(t.metric)} on validation")
    if failed:
        figure.supxlabel("×, at the foot: a trial that failed", fontsize=8.5, color=MUTED)
    return _settled(figure, panel, lines)


def _plot(panel: Axes, x: Any, y: Any, row: ConfigurationTrials, looks: Mapping[str, Look]) -> Line2D:
    colour, marker = looks[row.label]
    return panel.plot(x, y, color=colour, marker=marker, lw=1.4, ms=7, mew=0.75, mec="w")[0]


def _settled(figure: Figure, panel: Axes, lines: Mapping[str, Line2D]) -> Figure:
    style.legend(panel, lines, loc="center left", bbox_to_anchor=(1.01, 0.5))
    style.settle(figure)
    return figure
