"""The style of all figures: colours, markers, fonts, titles, and the conversion of a figure to bytes.

Figures are drawn without pyplot and without changing global settings. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib as mpl
import matplotlib.style
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from peftbench.report.data.comparison import Comparison, length
from peftbench.report.data.notes import NOT_LEARNED
from peftbench.report.data.tunings import Tuning
from peftbench.report.media import terminal
from peftbench.report.media.figure import fonts_for, literals

# Okabe and Ito's colours, the yellow darkened to be seen on white
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")  # 11 and 8 are coprime: 88 looks before one repeats
MUTED = "#666666"
DPI = 160  # of the PNG
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "peftbench",
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

WIDE = 30  # characters of a name in a legend or beside an axis from which on the margin is wider

Look = tuple[str, str]  # colour, marker
_pdf: ContextVar[bool] = ContextVar("_pdf", default=False)


def looks(comparisons: Iterable[Comparison]) -> dict[str, Look]:
    """A colour and a marker for every label of an experiment's comparisons, in the order of its tables."""
    return of_labels(e.label for c in comparisons for e in c.entries)


def of_labels(labels: Iterable[str]) -> dict[str, Look]:
    """A colour and a marker for each label, by its position."""
    labels = dict.fromkeys(labels)
    return {label: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}


@contextmanager
def drawing(texts: Iterable[str] = ()) -> Iterator[None]:
    """Apply the style within the block, independent of the user's settings, with fonts that the texts need."""
    with ExitStack() as stack:
        stack.enter_context(mpl.style.context("default"))
        stack.enter_context(sns.axes_style("whitegrid"))
        stack.enter_context(sns.plotting_context("notebook", font_scale=0.85))
        stack.enter_context(mpl.rc_context(STYLE))
        stack.enter_context(fonts_for(texts))
        yield


@contextmanager
def also_pdf(wanted: bool) -> Iterator[None]:
    """Make a PDF of each figure within the block, too, if it is wanted."""
    token = _pdf.set(wanted)
    try:
        yield
    finally:
        _pdf.reset(token)


def files(name: str, drawn: Figure) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the settled figure as PNG and SVG, and as PDF within `also_pdf`.

    `savefig` would lay out and draw the figure a second time.
    """
    svg = io.BytesIO()
    drawn.dpi = DPI
    yield f"{name}.png", _png(drawn)
    FigureCanvasSVG(drawn).print_svg(svg, metadata={"Date": None, "Creator": "peftbench"})
    yield f"{name}.svg", svg.getvalue()
    if _pdf.get():
        pdf = io.BytesIO()
        FigureCanvasPdf(drawn).print_pdf(pdf, metadata={"CreationDate": None, "Creator": "peftbench"})
        yield f"{name}.pdf", pdf.getvalue()


def _png(drawn: Figure) -> bytes:
    """The figure with at most 256 colours, a third of the bytes of one with all colours of its smoothed edges."""
    canvas, png = FigureCanvasAgg(drawn), io.BytesIO()
    canvas.draw()
    pixels = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    text = PngInfo()
    text.add_text("Software", "peftbench")
    few = pixels.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(png, "PNG", pnginfo=text, dpi=(DPI, DPI))
    return png.getvalue()


def figure(c: Comparison | Tuning, panels: int, subtitle: str) -> tuple[Figure, list[Axes]]:
    """An empty figure of `panels` side by side with a common vertical axis, titled by the task."""
    drawn = Figure(figsize=(7.6 if panels == 1 else 11.0, 4.9), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = list(drawn.subplots(1, panels, sharey=True, squeeze=False)[0])
    for panel in axes:  # a fixed height: else every drawing measures all tick labels
        panel.set_title("", y=1.0)
    title, setting = headings(c, subtitle)
    title = "\n".join(terminal.wrapped(title, 70))
    axes[0].set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22, y=1.0)
    _above(axes[0], setting, 0.0, "left")
    return drawn, axes


def headings(c: Comparison | Tuning, subtitle: str) -> tuple[str, str]:
    """The title of a figure and the line below it, as long as they are."""
    (title,) = literals([c.title + (f", {NOT_LEARNED}" if c.learned is False else "")], 200)
    experiment, backbone = literals([c.experiment, c.backbone])
    setting = f"{experiment}: {backbone}, {length(c.budget)} of {c.budget.batch_size} examples"
    return title, f"{setting}; {subtitle}" if subtitle else setting


def head(drawn: Figure, title: str, subtitle: str) -> None:
    """Write title and subtitle at the figure's left edge, in lines that it has room for, and add their height to it."""
    top, edge = 0.08, 0.12  # inches
    texts: list[tuple[str, dict[str, Any]]] = [
        (title, {"fontsize": 12, "fontweight": "bold"}),
        (subtitle, {"fontsize": 8.5, "color": MUTED}),
    ]
    width, height = drawn.get_size_inches()
    renderer, room = FigureCanvasAgg(drawn).get_renderer(), 0.97 * (width - 2 * edge)  # 2 %: the PNG's resolution
    lines, heights = list[Text](), list[float]()
    for text, look in texts:
        line = drawn.text(0, 0, "", parse_math=False, ha="left", va="top", linespacing=1.3, **look)
        whole = text.replace(r"\$", "$")  # as it is written: this text has no mathematics
        for cells in range(max(2 * len(whole), 10), 9, -3):
            line.set_text("\n".join(terminal.wrapped(whole, cells)))
            box = line.get_window_extent(renderer)
            if box.width <= room * drawn.dpi:
                break
        lines.append(line)
        heights.append(box.height / drawn.dpi + top)
    tall = height + sum(heights) + top
    drawn.set_size_inches(width, tall)
    for i, line in enumerate(lines):
        line.set_position((edge / width, 1 - (top + sum(heights[:i])) / tall))
    if isinstance(engine := drawn.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(rect=(0, 0, 1, height / tall), w_pad=edge)


def settle(drawn: Figure) -> None:
    """Lay out the figure and fix the layout, so that data coordinates keep their position."""
    if (engine := drawn.get_layout_engine()) is not None:
        engine.execute(drawn)
    drawn.set_layout_engine("none")


def legend(panel: Axes, handles: Mapping[str, Any], notes: Mapping[str, str] | None = None, **place: Any) -> Legend:
    """A legend with every name as it was written; matplotlib would leave out those that start with an underscore.

    Args:
        panel: the axes.
        handles: name -> what is drawn of it.
        notes: name -> what is written behind it.
        place: where the legend stands.
    """
    drawn = panel.legend(list(handles.values()), ["name"] * len(handles), frameon=False, fontsize=9, **place)
    shown = literals(handles)
    for text, key, name in zip(drawn.get_texts(), handles, shown, strict=True):
        text.set_text(name + (notes or {}).get(key, ""))
    make_room(panel, shown)
    return drawn


def make_room(panel: Axes, names: Iterable[str]) -> None:
    """Widen the margin for long names: at the resolution of the PNG they are up to 2 % wider than in the layout."""
    engine = panel.figure.get_layout_engine() if isinstance(panel.figure, Figure) else None
    if isinstance(engine, ConstrainedLayoutEngine) and max(map(len, names), default=0) > WIDE:
        engine.set(w_pad=0.12)  # inches


def remark(panel: Axes, text: str) -> None:
    """A line above the panel's right end that explains its markers."""
    _above(panel, text, 1.0, "right")


def _above(panel: Axes, text: str, x: float, ha: str) -> None:
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": ha, "va": "bottom"}
    panel.annotate(text, (x, 1.0), (0, 7), fontsize=8.5, color=MUTED, **place).set_in_layout(False)
