"""The confusion matrix of a table's best configuration, or of the reference if the task was not learned."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from peftbench.report.data import classes, data_text
from peftbench.report.data.comparison import Comparison
from peftbench.report.figures import style
from peftbench.report.media.figure import literal, literals

MOST = 30  # classes; more cannot be read
NUMBERED = 15  # classes; with more, the numbers do not fit into the cells
LEAST = (7.6, 4.4)  # inches
ROW, DIGIT, MARGIN = 0.24, 0.1, 0.8  # inches: of a class, of a digit in a cell, of the axes' names


def draw(c: Comparison) -> Figure | None:
    """Draw the matrix; None without names of the classes, or with too many classes.

    A cell has the number of test rows over all seeds; its colour is their share of the row's class.
    """
    shown = classes.shown(c)
    if not shown or c.data is None or len(c.data.classes) > MOST:
        return None
    label = shown[-1]
    names = literals(data_text.names(c.data.classes, longest=None).values(), data_text.NAME_WIDTH)
    counts = np.array(classes.matrices(c)[label])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawn = Figure(layout="constrained")
    panel = drawn.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    panel.grid(visible=False)
    places = range(len(names))
    panel.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    panel.set_yticks(places, names)
    panel.set_xlabel("predicted class")
    panel.set_ylabel("class")
    for i, j in np.ndindex(counts.shape) if len(names) <= NUMBERED else ():
        if counts[i, j]:
            panel.text(
                j, i, f"{counts[i, j]:,}", ha="center", va="center", color="white" if shares[i, j] > 0.6 else "black"
            )
    drawn.set_size_inches(*_size(drawn, panel, counts))
    style.head(drawn, *style.headings(c, f"{literal(label)}, test rows over all seeds"))
    style.settle(drawn)
    return drawn


def _size(drawn: Figure, panel: Axes, counts: np.ndarray) -> tuple[float, float]:
    """Width and height in inches: cells in which numbers fit and that are as high as a name, and names at their left.

    The names below are turned by 45 degrees.
    """
    renderer, classes = FigureCanvasAgg(drawn).get_renderer(), len(counts)
    name = max(text.get_window_extent(renderer).width for text in panel.get_yticklabels()) / drawn.dpi
    digits = len(f"{counts.max():,}") if classes <= NUMBERED else 0
    wide, high = classes * max(ROW, DIGIT * (digits + 1)), classes * ROW
    return max(LEAST[0], name + wide + MARGIN), max(LEAST[1], name / 2**0.5 + high + MARGIN)
