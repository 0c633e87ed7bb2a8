"""The confusion matrix of a table's best configuration, or of the reference if the task was not learned."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from peftbench.report.data import classes
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.data_text import name_of
from peftbench.report.figures import style
from peftbench.report.media.figure import literal

MOST = 30  # classes; more cannot be read
NUMBERED = 15  # classes; with more, the numbers do not fit into the cells


def draw(c: Comparison) -> Figure | None:
    """Draw the matrix; None without names of the classes, or with too many classes.

    A cell has the number of test rows over all seeds; its colour is their share of the row's class.
    """
    shown = classes.shown(c)
    if not shown or c.data is None or len(c.data.classes) > MOST:
        return None
    label, names = shown[-1], [literal(name_of(n)) for n in c.data.classes]
    counts = np.array(classes.matrices(c)[label])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawn, (panel,) = style.figure(c, 1, f"{literal(label)}, test rows over all seeds")
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
    style.settle(drawn)
    return drawn
