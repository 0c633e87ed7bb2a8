"""Stacked bars of the parts of peak memory, one per method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from peftbench.report.figures import style
from peftbench.report.media.figure import literal, literals


def draw(
    name: str, rows: Sequence[Mapping[str, Any]], kinds: Sequence[str], title: str, below: str
) -> Iterator[tuple[str, bytes]]:
    """Draw the bars.

    Args:
        name: file name without extension.
        rows: per method, "method" and the bytes of every kind.
        kinds: the parts, in the order of the stack.
        title: title of the figure.
        below: line under the axis.

    Returns:
        (file name, content) as PNG and SVG.
    """
    names = [row["method"] for row in rows]
    with style.drawing([*names, title, below]):
        figure = Figure(figsize=(8.6, 1.6 + 0.3 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        left = [0.0] * len(rows)
        for kind, colour in zip(kinds, style.COLOURS, strict=False):
            widths = [row[kind] / 2**30 for row in rows]
            panel.barh(range(len(rows)), widths, left=left, color=colour, label=kind, height=0.72, linewidth=0)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        panel.set_yticks(range(len(rows)), shown := literals(names))
        style.make_room(panel, shown)
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        panel.set_xlabel(f"GiB at the peak\n{literal(below)}", fontsize=8.5)
        panel.set_title(literal(title), loc="left", fontsize=12, fontweight="bold")
        panel.legend(frameon=False, fontsize=8.5, loc="lower right")
        style.settle(figure)
        yield from style.files(name, figure)
