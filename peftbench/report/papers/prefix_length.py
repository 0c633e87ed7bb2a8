"""Prefix-tuning's figure 4: score by prefix length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table
from peftbench.report.papers._interval import difference, mean
from peftbench.report.papers._records import need, scale
from peftbench.report.papers._sweep import (
    TWO_POINTS,
    ChosenRate,
    accuracy,
    best,
    choose_rates,
    hyper,
    in_full,
    method,
    notes,
    points,
    same_setting,
    unlearned,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "paper/prefix_length"
LOOKS = (3, 6, 40)  # numbers of seeds at which the claims are read
LENGTHS = (1, 2, 5, 10, 20, 50, 100)
THRESHOLD = 10  # the paper's, for table-to-text


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER, lambda r: method(r) == "prefix")
    same_setting(runs)
    rows = choose_rates(runs, lambda r: hyper(r, "length"))
    need(rows, LENGTHS, f"{FOLDER}, length")
    return Reproduction(
        scale=scale([r for t in rows.values() for r in t.runs]),
        claims=_claims(rows),
        table=Table(("length", "parameters", "rate", "accuracy"), tuple(map(_row, rows.values()))),
        draw=lambda canvas: _draw(canvas, rows),
        incomparable=unlearned(rows.values()),
        notes=notes(results, [FOLDER], rows, LOOKS),
    )


def _claims(rows: dict[int, ChosenRate]) -> tuple[Claim, ...]:
    longest, top = rows[max(rows)], best(in_full(rows.values()))
    rise = points(difference(rows[THRESHOLD].runs, rows[1].runs, claims=2, looks=LOOKS))
    fall = points(difference(longest.runs, top.runs, claims=2, looks=LOOKS))
    return (
        Claim(f"length {THRESHOLD} beats length 1", "rises up to a threshold", *rise, above=0, equal=TWO_POINTS,
              form="{:+.1f}"),
        Claim(f"the longest ({longest.key}) is below the length that validation prefers ({top.key})",
              "falls a little beyond it", *fall, below=0, equal=TWO_POINTS, form="{:+.1f}"),
    )  # fmt: skip


def _row(t: ChosenRate) -> tuple[str, ...]:
    return str(t.key), f"{t.trainable:,}", f"{t.lr:g}", accuracy(t)


def _draw(canvas: Figure, rows: dict[int, ChosenRate]) -> None:
    from peftbench.report.papers import _drawing as drawing

    panel = canvas.subplots()
    drawing.line(panel, list(rows), [mean(t.runs) for t in rows.values()], "prefix", 1)
    panel.axvline(THRESHOLD, ls=":", lw=1.2, color="#666666")
    panel.annotate(
        " the paper's threshold\n for table-to-text",
        (THRESHOLD, 0.02),
        xycoords=("data", "axes fraction"),
        fontsize=8.5,
    )
    drawing.log_axis(panel, list(rows))
    panel.set_xlabel("length of the prefix (keys and values a layer)")
    panel.set_ylabel("test accuracy (bars: 95 % interval)")


FIGURE = PaperFigure(
    number=11,
    name="prefix_length",
    title="Length of the prefix, 1 to 100",
    paper=Paper("Li and Liang 2021", "Prefix-Tuning", "2101.00190", "figure 4"),
    published=(
        "BART large on XSum and GPT-2 medium on DART: the score rises with the length up to a threshold, 200 for "
        "summarisation and 10 for table-to-text, and falls slightly beyond it."
    ),
    criterion=f"length {THRESHOLD} beats length 1, and the longest is below the length that validation prefers.",
    reproduce=reproduce,
    looks=LOOKS,
)
