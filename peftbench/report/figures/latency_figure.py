"""The latency that adapters add to inference, in percent of the base network's, by batch size and length.

After table 1 of the LoRA paper (arXiv:2106.09685): unmerged adapters cost most where a pass has least work, merged LoRA
costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from peftbench.report.data.latencies import BASE, PHASES, Cell, Latencies, Timed
from peftbench.report.figures.style import MUTED, Look, files, legend, settle
from peftbench.report.media.figure import literal, literals
from peftbench.report.media.terminal import wrapped

PUBLISHED = (
    "The LoRA paper's table 1 (arXiv:2106.09685; one forward pass of GPT-2 medium on a Quadro RTX 8000, at batch × "
    "tokens 32 × 512, 16 × 256, 1 × 128): adapters of Lin et al. +2.2, +5.0, +20.7 %, of Houlsby et al. +3.0, +8.4, "
    "+30.3 %, merged LoRA none by construction. Here: {setting}. Another scale and other hardware: these figures do "
    "not repeat the paper's, and say only what this model costs on this machine."
)
SPREAD = 0.8  # width of a category's points, as a share of the category


def drawn(p: Latencies, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figure as PNG and SVG; nothing unless the experiment names lengths."""
    phases = [phase for phase in PHASES if any(not c.typical for c in p.cells if c.phase == phase)]
    if phases:
        yield from files(p.slug, _figure(p, phases, looks))


def _figure(p: Latencies, phases: Sequence[str], looks: Mapping[str, Look]) -> Figure:
    figure = Figure(figsize=(8.6 if len(phases) == 1 else 13.0, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(phases), squeeze=False)[0])
    (experiment,) = literals([p.experiment])
    figure.suptitle(f"{experiment}: what adapters add to inference", x=0.01, ha="left", fontsize=12, fontweight="bold")
    handles: dict[str, Any] = {}
    for panel, phase in zip(panels, phases, strict=True):
        cells = [c for c in p.cells if c.phase == phase and not c.typical and c.label != BASE]
        handles |= _panel(panel, cells, p.labels, looks)
        panel.set_title(PHASES[phase], loc="left", fontsize=10)
    panels[0].set_ylabel("time beyond the base network's (%, median within rounds)")
    legend(panels[-1], handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    filled = "Filled: adapters in the network; hollow: merged into it. Bars: 95 % interval, by processes or rounds."
    text = f"{filled} {PUBLISHED.format(setting=literal(p.setting))}"
    figure.supxlabel("\n".join(wrapped(text, 118 if len(phases) == 1 else 178)), fontsize=8, color=MUTED)
    settle(figure)
    return figure


def _panel(panel: Axes, cells: Sequence[Cell], labels: Sequence[str], looks: Mapping[str, Look]) -> dict[str, Any]:
    """Draw points side by side at each shape, in the order of the labels; a merged method has two.

    Returns:
        For the legend, name -> points.
    """
    handles = {}
    shapes = sorted({c.shape for c in cells})
    for i in range(0, len(shapes), 2):
        panel.axvspan(i - 0.5, i + 0.5, color="#f5f5f5", lw=0, zorder=0)
    panel.axhline(0, color=MUTED, lw=1.1, zorder=1)
    variants = [
        (label, kind)
        for label in labels
        for kind in ("unmerged", "merged")
        if any(c.label == label and (t := getattr(c, kind)) and t.ratio is not None for c in cells)
    ]
    step = SPREAD / max(1, len(variants))
    for k, (label, kind) in enumerate(variants):
        offset = (k - (len(variants) - 1) / 2) * step
        mine = [(c, t) for c in cells if c.label == label and (t := getattr(c, kind)) and t.ratio is not None]
        name = label if kind == "unmerged" else f"{label}, merged"
        places = [(shapes.index(c.shape) + offset, t) for c, t in mine]
        handles[name] = _points(panel, places, kind, looks[label])
    panel.set_xticks(range(len(shapes)), [f"{batch} × {length}" for batch, length in shapes])
    panel.set_xlim(-0.5, len(shapes) - 0.5)
    panel.grid(False, axis="x")
    panel.set_xlabel("batch × tokens of the prompt" if cells and cells[0].phase != "forward" else "batch × tokens")
    return handles


def _points(panel: Axes, points: Sequence[tuple[float, Timed]], kind: str, look: Look) -> Any:
    colour, marker = look
    for x, t in points:
        if t.low is not None and t.high is not None:
            panel.plot([x, x], [_percent(t.low), _percent(t.high)], "-", lw=1.2, color=colour, alpha=0.75, zorder=2)
    frame = pd.DataFrame({"x": [x for x, _ in points], "y": [_percent(t.ratio) for _, t in points]})
    hollow: dict[str, Any] = {"facecolor": "white", "edgecolor": colour, "linewidth": 1.4}
    filled: dict[str, Any] = {"color": colour, "linewidth": 0.4}
    before = panel.get_ylabel()
    sns.scatterplot(
        frame, x="x", y="y", ax=panel, marker=marker, s=46, zorder=3, legend=False,
        **(filled if kind == "unmerged" else hollow),
    )  # fmt: skip
    panel.set_ylabel(before)
    return panel.collections[-1]


def _percent(ratio: float | None) -> float:
    return ((ratio or 0.0) - 1) * 100
