"""The style of all figures: colours, markers, fonts, titles, and the conversion of a figure to bytes.

Figures are drawn without pyplot and without changing global settings. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.style
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from peftbench.report.data.comparison import Comparison, length
from peftbench.report.data.notes import NOT_LEARNED
from peftbench.report.data.tunings import Tuning

# Okabe and Ito's colours, the yellow darkened to be seen on white
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")  # 11 and 8 are coprime: 88 looks before one repeats
MUTED = "#666666"
DPI = 160  # of the PNG
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "peftbench",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "text.color": "#222222",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}

Look = tuple[str, str]  # colour, marker


def looks(comparisons: Sequence[Comparison]) -> dict[str, Look]:
    """A colour and a marker for every label of an experiment's comparisons, in the order of its tables."""
    return of_labels(e.label for c in comparisons for e in c.entries)


def of_labels(labels: Iterable[str]) -> dict[str, Look]:
    """A colour and a marker for each label, by its position."""
    labels = dict.fromkeys(labels)
    return {label: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the style within the block, independent of the user's settings."""
    with ExitStack() as stack:
        stack.enter_context(mpl.style.context("default"))
        stack.enter_context(sns.axes_style("whitegrid"))
        stack.enter_context(sns.plotting_context("notebook", font_scale=0.85))
        stack.enter_context(mpl.rc_context(STYLE))
        yield


def files(name: str, drawn: Figure) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the settled figure as PNG and SVG.

    `savefig` would lay out and draw the figure a second time.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    drawn.dpi = DPI
    FigureCanvasAgg(drawn).print_png(png, metadata={"Software": "peftbench"})
    FigureCanvasSVG(drawn).print_svg(svg, metadata={"Date": None, "Creator": "peftbench"})
    yield f"{name}.png", png.getvalue()
    yield f"{name}.svg", svg.getvalue()


def figure(c: Comparison | Tuning, panels: int, subtitle: str) -> tuple[Figure, list[Axes]]:
    """An empty figure of `panels` side by side with a common vertical axis, titled by the task."""
    drawn = Figure(figsize=(7.6 if panels == 1 else 11.0, 4.9), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = list(drawn.subplots(1, panels, sharey=True, squeeze=False)[0])
    title = c.title + (f", {NOT_LEARNED}" if c.learned is False else "")
    for panel in axes:  # a fixed height: else every drawing measures all tick labels
        panel.set_title("", y=1.0)
    axes[0].set_title("\n".join(textwrap.wrap(title, 70)), loc="left", fontsize=12, fontweight="bold", pad=22, y=1.0)
    setting = f"{c.experiment}: {c.backbone}, {length(c.budget)} of {c.budget.batch_size} examples"
    _above(axes[0], f"{setting}; {subtitle}" if subtitle else setting, 0.0, "left")
    return drawn, axes


def settle(drawn: Figure) -> None:
    """Lay out the figure and fix the layout, so that data coordinates keep their position."""
    if (engine := drawn.get_layout_engine()) is not None:
        engine.execute(drawn)
    drawn.set_layout_engine("none")


def remark(panel: Axes, text: str) -> None:
    """A line above the panel's right end that explains its markers."""
    _above(panel, text, 1.0, "right")


def _above(panel: Axes, text: str, x: float, ha: str) -> None:
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": ha, "va": "bottom"}
    panel.annotate(text, (x, 1.0), (0, 7), fontsize=8.5, color=MUTED, **place).set_in_layout(False)
