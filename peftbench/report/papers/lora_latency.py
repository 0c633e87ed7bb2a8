"""LoRA's table 1: the inference latency that adapters add, by batch size and length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from peftbench.report.data import pooled_passes
from peftbench.report.data.latencies import Cell, Latencies, Timed, of_pass
from peftbench.report.data.latencies import of as latencies
from peftbench.report.papers import Claim, NotRun, Paper, PaperFigure, Reproduction, Results, Table
from peftbench.report.papers._probes import over

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "reference/lora_table1_encoder"
ADAPTERS = {"adapter-pfeiffer": ("L", (2.2, 5.0, 20.7)), "adapter-houlsby": ("H", (3.0, 8.4, 30.3))}
PAPER_SHAPES = ("32 × 512", "16 × 256", "1 × 128")
MERGED = 2.0  # percent by which a merged network may differ from the base: the resolution of a pass

Shape = tuple[int, int]
Cells = dict[tuple[str, Shape], Cell]


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    profiles = results.profiles(FOLDER)
    if not (passes := latencies(profiles)):
        raise NotRun(f"{FOLDER} has no latencies by shape")
    p = passes[0]
    cells = _cells(p)
    shapes = sorted({shape for _, shape in cells}, key=lambda s: s[0] * s[1])
    if missing := [name for name in (*ADAPTERS, "lora") if not all((name, s) in cells for s in shapes)]:
        raise NotRun(f"{FOLDER} has no latencies of {', '.join(missing)}")
    if len(shapes) < 2:
        raise NotRun(f"{FOLDER} has one shape, which shows no trend")
    return Reproduction(
        scale=_scale(p, shapes),
        claims=_claims(cells, [_cells(of_pass(r)) for r in pooled_passes.parts(p.profile, profiles)], shapes),
        table=Table(("method", *(f"{b} × {n}" for b, n in shapes)), tuple(_rows(p, cells, shapes))),
        draw=lambda canvas: _draw(canvas, p, cells, shapes),
        notes=(
            "In percent of the time of the network without adapters, within rounds; 95 % interval over the processes "
            "of the pass, or over the rounds of one; a difference of two shapes is taken within each process. Each "
            "claim's is at 95 % by itself.",
        ),
    )


def _scale(p: Latencies, shapes: list[Shape]) -> str:
    spec = p.profile.spec
    rounds = spec.latency.rounds or spec.rounds
    (b0, n0), (b1, n1) = shapes[0], shapes[-1]
    return (
        f"one forward pass of {spec.backbone.model} on {p.profile.env.machine}, batch × tokens {b0} × {n0} to "
        f"{b1} × {n1}, {rounds} rounds in {p.profile.processes} processes"
    )


def _cells(p: Latencies) -> Cells:
    return {(c.label, c.shape): c for c in p.cells if not c.typical and c.phase == "forward"}


def _trend(of: Sequence[Cells], name: str, small: Shape, large: Shape) -> tuple[float, float, float]:
    """How many points more the smallest pass is slowed than the largest, with its interval over the processes."""
    gaps = [_percent(c[name, small].unmerged)[0] - _percent(c[name, large].unmerged)[0] for c in of]
    return over(np.asarray(gaps))[:3]


def _claims(cells: Cells, processes: Sequence[Cells], shapes: list[Shape]) -> tuple[Claim, ...]:
    small, large = shapes[0], shapes[-1]
    claims = []
    for name, (mark, theirs) in ADAPTERS.items():
        value, low, high = _percent(cells[name, small].unmerged)
        claims += [
            Claim(f"{name} slows the smallest pass", f"+{theirs[-1]} % (Adapter-{mark}, 1 × 128)", value, low, high,
                  above=0, form="{:+.1f} %"),
            Claim(f"{name} slows the smallest pass more than the largest", f"+{theirs[-1]} and +{theirs[0]} %",
                  *_trend(processes, name, small, large), above=0, equal=(-MERGED, MERGED), form="{:+.1f}"),
        ]  # fmt: skip
    merged = [_percent(cells["lora", s].merged) for s in shapes]
    worst = max((value for value, _, _ in merged), key=abs)
    low, high = min(low for _, low, _ in merged), max(high for _, _, high in merged)
    claims.append(
        Claim(f"merged LoRA costs less than {MERGED:g} % at every shape; the worst, and the ends of all intervals",
              "none, by construction", worst, low, high, above=-MERGED, below=MERGED, form="{:+.1f} %")
    )  # fmt: skip
    return tuple(claims)


def _percent(t: Timed | None) -> tuple[float, float, float]:
    """Time above the base network's, in percent, with its interval."""
    if t is None or t.ratio is None or t.low is None or t.high is None:
        raise NotRun(f"{FOLDER} has a time without a ratio to the base network, or without its interval")
    return 100 * (t.ratio - 1), 100 * (t.low - 1), 100 * (t.high - 1)


def _rows(p: Latencies, cells: Cells, shapes: list[Shape]) -> list[tuple[str, ...]]:
    rows = []
    for name in p.labels:
        for kind in ("unmerged", "merged"):
            times = [getattr(cells[name, s], kind) for s in shapes]
            if all(times):
                texts = ["{:+.1f} [{:+.1f}, {:+.1f}] %".format(*_percent(t)) for t in times]
                rows.append((name if kind == "unmerged" else f"{name}, merged", *texts))
    return rows


def _draw(canvas: Figure, p: Latencies, cells: Cells, shapes: list[Shape]) -> None:
    from peftbench.report.figures.latency_figure import SPREAD
    from peftbench.report.papers import _drawing as drawing
    from peftbench.report.papers._interval import Interval

    ours, theirs = canvas.subplots(1, 2, sharey=False)
    names = [(n, kind) for n in p.labels for kind in ("unmerged", "merged") if getattr(cells[n, shapes[0]], kind)]
    for i, (name, kind) in enumerate(names):
        look = {"mfc": "white"} if kind == "merged" else {}
        ys = [Interval(*_percent(getattr(cells[name, s], kind))) for s in shapes]
        xs = [j + (i - (len(names) - 1) / 2) * SPREAD / len(names) for j in range(len(shapes))]  # a column each
        suffix = ", merged" if kind == "merged" else ""
        drawing.line(ours, xs, ys, name + suffix, 1 + p.labels.index(name), ls="none", **look)
    for j in range(0, len(shapes), 2):
        ours.axvspan(j - 0.5, j + 0.5, color="#f5f5f5", lw=0, zorder=0)
    ours.set_xlim(-0.5, len(shapes) - 0.5)
    ours.grid(visible=False, axis="x")
    for i, (mark, values) in enumerate(ADAPTERS.values()):
        number = 1 + p.labels.index(list(ADAPTERS)[i])
        drawing.line(theirs, range(3), [Interval(v, v, v) for v in values[::-1]], f"Adapter-{mark}", number)
    ours.set_xticks(range(len(shapes)), [f"{b} × {n}" for b, n in shapes])
    theirs.set_xticks(range(3), PAPER_SHAPES[::-1])
    ours.set_title("ours", loc="left", fontsize=10)
    theirs.set_title("the paper's, GPT-2 medium on a GPU", loc="left", fontsize=10)
    ours.set_ylabel("time beyond the base network's, %")
    for panel in (ours, theirs):
        panel.axhline(0, color="#666666", lw=1)
        panel.set_xlabel("batch × tokens")
        panel.legend(frameon=False, fontsize=8)


FIGURE = PaperFigure(
    number=1,
    name="lora_latency",
    title="What adapters add to inference, by batch and length",
    paper=Paper("Hu et al. 2021", "LoRA", "2106.09685", "table 1"),
    published=(
        "One forward pass of GPT-2 medium on a GPU at batch × tokens 32 × 512, 16 × 256, 1 × 128: adapters of Lin et "
        "al. +2.2, +5.0, +20.7 %, of Houlsby et al. +3.0, +8.4, +30.3 %, merged LoRA none."
    ),
    criterion=(
        "both adapters slow the smallest pass, and more than the largest, and merged LoRA is at every shape within "
        f"{MERGED:g} % of the network without adapters. adapter-pfeiffer stands for the paper's Adapter-L: both have "
        "one bottleneck a layer."
    ),
    reproduce=reproduce,
    records=(FOLDER,),
    commands=(f"python -m peftbench profile experiments/lora_table1_encoder.yaml --results results/{FOLDER}",),
    size=(11.0, 5.0),
)
