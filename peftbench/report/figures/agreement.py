"""Predicted against measured sizes on logarithmic axes, with bands of equal relative error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from peftbench.report.figures import style
from peftbench.report.media.figure import literal

TICKS = (1, 2, 4, 8, 16, 32, 64, 128)  # GiB


@dataclass(frozen=True)
class Dot:
    """A point of the figure.

    Attributes:
        label: Its group in the legend.
        measured: Bytes.
        predicted: Bytes.
        bound: Whether the measurement only bounds the prediction from above: drawn hollow.
    """

    label: str
    measured: float
    predicted: float
    bound: bool = False


def draw(name: str, dots: Sequence[Dot], title: str, bands: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """Draw the dots.

    Args:
        name: File name without extension.
        dots: What is drawn; at least one.
        title: Title of the figure.
        bands: Relative errors in percent that are shaded, from the narrowest.

    Returns:
        (file name, content) as PNG and SVG.
    """
    looks = style.of_labels(dot.label for dot in dots)
    with style.drawing([*looks, title]):
        figure = Figure(figsize=(9.6, 6.4), layout="constrained")
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        sizes = [size / 2**30 for dot in dots for size in (dot.measured, dot.predicted)]
        low, high = min(sizes) / 1.15, max(sizes) * 1.15
        for band, shade in zip(reversed(bands), ("#eeeeee", "#d5d5d5"), strict=False):
            below, above = ([(1 + sign * band / 100) * end for end in (low, high)] for sign in (-1, 1))
            panel.fill_between((low, high), below, above, color=shade, linewidth=0, zorder=0)
        panel.plot((low, high), (low, high), color=style.MUTED, linewidth=0.9, zorder=1)
        handles = {label: _dots(panel, dots, label, look) for label, look in looks.items()}
        for axis, scale in ((panel.xaxis, panel.set_xscale), (panel.yaxis, panel.set_yscale)):
            scale("log")
            axis.set_ticks([tick for tick in TICKS if low <= tick <= high])
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
        panel.set(xlim=(low, high), ylim=(low, high), ylabel="predicted, GiB")
        shades = " and ".join(f"±{band} %" for band in bands)
        panel.set_xlabel(f"measured, GiB\nshaded: {shades}; hollow: the measurement is an upper bound", fontsize=8.5)
        panel.set_title(literal(title), loc="left", fontsize=12, fontweight="bold")
        style.legend(panel, handles, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        style.settle(figure)
        yield from style.files(name, figure)


def _dots(panel: Any, dots: Sequence[Dot], label: str, look: style.Look) -> Any:
    colour, marker = look
    own = [dot for dot in dots if dot.label == label]
    return panel.scatter(
        [dot.measured / 2**30 for dot in own],
        [dot.predicted / 2**30 for dot in own],
        s=30,
        marker=marker,
        facecolors=["none" if dot.bound else colour for dot in own],
        edgecolors=colour,
        linewidths=0.9,
        zorder=3,
    )
