"""Prefix-tuning's figure 4: score by prefix length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table, run_command
from peftbench.report.papers._again import Runs, note, read_once
from peftbench.report.papers._interval import Interval, difference, mean
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

FOLDER, AGAIN = "paper/prefix_length", "paper/prefix_length_again"
AGAIN_LENGTHS, NEW = (10, 100), range(40, 160)  # what is asked again, and of which new seeds
CLAIMS = 2 + 1  # one is asked twice
LOOKS = (3, 6, 40)  # numbers of seeds at which the claims are read
LENGTHS = (1, 2, 5, 10, 20, 50, 100)
THRESHOLD = 10  # the paper's, for table-to-text


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER, lambda r: method(r) == "prefix")
    same_setting(runs)
    rows = choose_rates(runs, lambda r: hyper(r, "length"))
    need(rows, LENGTHS, f"{FOLDER}, length")
    again = read_once(results, AGAIN, [rows[n] for n in AGAIN_LENGTHS], lambda r: hyper(r, "length"), NEW)
    return Reproduction(
        scale=scale([*(r for t in rows.values() for r in t.runs), *(r for same in again.values() for r in same)]),
        claims=_claims(rows, again),
        table=Table(("length", "parameters", "rate", "accuracy"), tuple(map(_row, rows.values()))),
        draw=lambda canvas: _draw(canvas, rows),
        incomparable=unlearned(rows.values()),
        notes=(*notes(results, [FOLDER, AGAIN], rows, LOOKS), *_both_answers(rows, again)),
    )


def _fall(rows: dict[int, ChosenRate]) -> tuple[int, int, Interval]:
    """The longest, the one that validation prefers, and the difference of the two over the first seeds."""
    longest, top = rows[max(rows)], best(in_full(rows.values()))
    return longest.key, top.key, points(difference(longest.runs, top.runs, claims=CLAIMS, looks=LOOKS))


def _both_answers(rows: dict[int, ChosenRate], again: Runs) -> tuple[str, ...]:
    if not again:
        return ()
    top, longest = (rows[n] for n in AGAIN_LENGTHS)
    first = points(difference(longest.runs, top.runs, claims=CLAIMS, looks=LOOKS))
    return (note(f"length {longest.key} against {top.key}", len(longest.runs), first, len(NEW)),)


def _claims(rows: dict[int, ChosenRate], again: Runs) -> tuple[Claim, ...]:
    rise = points(difference(rows[THRESHOLD].runs, rows[1].runs, claims=CLAIMS, looks=LOOKS))
    longest, top, fall = _fall(rows)
    if again:
        top, longest = AGAIN_LENGTHS
        fall = points(difference(again[longest], again[top], claims=CLAIMS))
    return (
        Claim(f"length {THRESHOLD} beats length 1", "rises up to a threshold", *rise, above=0, equal=TWO_POINTS,
              form="{:+.1f}"),
        Claim(f"the longest ({longest}) is below the length that validation prefers ({top})",
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
    records=(FOLDER, AGAIN),
    commands=(run_command("prefix_length"), run_command("prefix_length_again")),
    looks=LOOKS,
)
