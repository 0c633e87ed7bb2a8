"""DoRA's figure 2: the correlation of magnitude and direction changes in full fine-tuning, LoRA and DoRA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from peftbench.records.record import RunRecord
from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table
from peftbench.report.papers._interval import Interval
from peftbench.report.papers._probes import Array, by_site, jackknife, points
from peftbench.report.papers._records import NotRun, group, need, scale
from peftbench.report.papers._sweep import choose_rates, method, same_setting, unlearned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "paper/dora_decomposition"
METHODS, ROLES = ("full", "lora", "dora"), ("q", "v")  # the paper's figure is of the query weights
PAPER = {"full": "−0.62", "lora": "+0.83", "dora": "−0.31"}
CLAIMS = 3


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER, lambda r: method(r) in METHODS)
    same_setting(runs)
    by_method = group(runs, method)
    need(by_method, METHODS, FOLDER)
    steps = _steps(runs)
    moved = {name: np.stack([_moved(r, steps) for r in by_method[name]]) for name in METHODS}
    return Reproduction(
        scale=scale(runs),
        claims=tuple(_claim(name, moved[name][:, 0]) for name in METHODS),
        table=Table(
            ("method", "weight", "correlation", "slope dM / dD", "correlation at the last step", "dM, dD at the end"),
            tuple(_row(name, role, moved[name][:, i]) for name in METHODS for i, role in enumerate(ROLES)),
        ),
        draw=lambda canvas: _draw(canvas, moved, steps),
        incomparable=unlearned(choose_rates(runs, method).values()),
        notes=(
            f"A point is one layer after {', '.join(map(str, steps))} steps; the paper pools layers and four points of "
            "training, too. Both changes grow with the steps, which alone makes that correlation more positive: the "
            "table has the one over layers at the last step beside it.",
            "Changes are means over the rows of a weight, one an output, as our DoRA has its magnitudes; correlations "
            "are within a seed, and their mean over seeds is given.",
            "Intervals: over seeds and layers (jackknife), 95 % for the three claims together.",
        ),
    )


def _steps(runs: list[RunRecord]) -> list[int]:
    """The steps after the first that every run probed."""
    steps = {tuple(p["step"] for p in points(r, "decomposition") if p["step"] > 0) for r in runs}
    if len(steps) > 1:
        raise NotRun(f"the runs of {FOLDER} were looked at after different steps")
    return sorted(steps.pop())


def _moved(r: RunRecord, steps: list[int]) -> Array:  # (roles, steps, layers, 2): dM and dD
    at = {p["step"]: by_site(p["sites"], ROLES, lambda s: (s["dM"], s["dD"])) for p in points(r, "decomposition")}
    return np.stack([at[step] for step in steps], axis=1)


def _correlation(moved: Array) -> float:
    """Correlation of dM and dD over all points of (..., 2)."""
    dM, dD = moved.reshape(-1, 2).T
    return float(np.corrcoef(dM, dD)[0, 1])


def _interval(moved: Array, claims: int) -> Interval:  # (seeds, steps, layers, 2)
    r = jackknife(_correlation, moved.swapaxes(1, 2), claims)
    return Interval(r.value, max(r.low, -1.0), min(r.high, 1.0), r.half_at)


def _claim(name: str, moved: Array) -> Claim:
    sign = "positive" if name == "lora" else "negative"
    above, below = (0.0, math.inf) if name == "lora" else (-math.inf, 0.0)
    correlation = _interval(moved, CLAIMS)
    return Claim(f"{name}: the correlation is {sign}", PAPER[name], *correlation, above, below, form="{:+.2f}")


def _row(name: str, role: str, moved: Array) -> tuple[str, ...]:
    all_, last = _interval(moved, 1), _interval(moved[:, -1:], 1)
    dM, dD = moved[..., 0].ravel(), moved[..., 1].ravel()
    end = moved[:, -1].mean((0, 1))
    both = [f"{x.value:+.2f} [{x.low:+.2f}, {x.high:+.2f}]" for x in (all_, last)]
    return name, role, both[0], f"{np.polyfit(dD, dM, 1)[0]:+.3g}", both[1], f"{end[0]:.3g}, {end[1]:.3g}"


def _draw(canvas: Figure, moved: dict[str, Array], steps: list[int]) -> None:
    from peftbench.report.figures.style import COLOURS, MARKERS, MUTED

    panels = canvas.subplots(1, len(METHODS))
    for panel, name in zip(panels, METHODS, strict=True):
        own = moved[name][:, 0].mean(0)  # the query weights, mean over seeds: (steps, layers, 2)
        for t, layer in np.ndindex(*own.shape[:2]):
            look = {"color": COLOURS[layer % len(COLOURS)], "marker": MARKERS[t % len(MARKERS)]}
            panel.plot(own[t, layer, 1], own[t, layer, 0], ls="", ms=6, **look)
        x, y = own[..., 1].ravel(), own[..., 0].ravel()
        ends = np.array([x.min(), x.max()])
        panel.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=MUTED, lw=1.1, ls="--")
        correlation = _interval(moved[name][:, 0], 1).value
        panel.set_title(f"{name}: {correlation:+.2f} (paper {PAPER[name]})", loc="left", fontsize=10)
        panel.ticklabel_format(style="sci", scilimits=(-3, 4))
        panel.set_xlabel("change of direction dD")
    panels[0].set_ylabel("change of magnitude dM (query weights)")
    layers = moved[METHODS[0]].shape[3]
    for layer in range(layers):
        panels[-1].plot([], [], "s", color=COLOURS[layer % len(COLOURS)], label=f"layer {layer + 1}")
    for t, step in enumerate(steps):
        panels[-1].plot([], [], MARKERS[t % len(MARKERS)], color=MUTED, label=f"step {step}")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5)


FIGURE = PaperFigure(
    number=7,
    name="dora_decomposition",
    title="Change of magnitude against change of direction",
    paper=Paper("Liu et al. 2024", "DoRA", "2402.09353", "figure 2"),
    published=(
        "VL-BART on four image-text tasks, the query weights of every layer after three intermediate points of "
        "training and at its end: the correlation of the two changes is −0.62 in full fine-tuning, +0.83 in LoRA and "
        "−0.31 in DoRA."
    ),
    criterion=(
        "the correlation over layers and points of training is negative in full fine-tuning and in DoRA, and positive "
        "in LoRA."
    ),
    reproduce=reproduce,
    size=(12.0, 4.6),
)
