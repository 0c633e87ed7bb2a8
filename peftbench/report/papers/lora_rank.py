"""LoRA's table 6: does the rank matter? Includes DoRA, whose README sweeps ranks too."""

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
    choose_rates,
    hyper,
    method,
    notes,
    points,
    same_setting,
    unlearned,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER, AGAIN = "paper/lora_rank", "paper/lora_rank_again"
NEW = range(30, 110)  # seeds on which the claim that FOLDER leaves open is asked again
LOOKS = (3, 10, 30)  # numbers of seeds at which the claims are read
METHODS, RANKS = ("lora", "dora"), (1, 2, 4, 8, 32, 64)
MARGIN = 2.0  # points; the paper's ranks lie within 0.5
CLAIMS = 5 + 1  # one is asked twice


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER, lambda r: method(r) in METHODS)
    same_setting(runs)
    rows = choose_rates(runs, lambda r: (method(r), hyper(r, "rank")))
    need(rows, [(m, r) for m in METHODS for r in RANKS], FOLDER)
    chosen = [r for t in rows.values() for r in t.runs]
    asked = [rows["lora", rank] for rank in (1, 64)]
    again = read_once(results, AGAIN, asked, lambda r: (method(r), hyper(r, "rank")), NEW)
    return Reproduction(
        scale=scale([*chosen, *(r for same in again.values() for r in same)]),
        claims=_claims(rows, again),
        table=Table(("method", "rank", "parameters", "rate", "accuracy"), tuple(map(_row, rows.values()))),
        draw=lambda canvas: _draw(canvas, rows),
        incomparable=unlearned(rows.values()),
        notes=(*notes(results, [FOLDER, AGAIN], rows, LOOKS), *_both_answers(rows, again)),
    )


def _both_answers(rows: dict[tuple[str, int], ChosenRate], again: Runs) -> tuple[str, ...]:
    if not again:
        return ()
    old = rows["lora", 1].runs
    first = points(difference(old, rows["lora", 64].runs, claims=CLAIMS, looks=LOOKS))
    return (note("rank 1 against rank 64", len(old), first, len(NEW)),)


def _claims(rows: dict[tuple[str, int], ChosenRate], again: Runs) -> tuple[Claim, ...]:
    def less(a: tuple[str, int], b: tuple[str, int]) -> Interval:
        return points(difference(rows[a].runs, rows[b].runs, claims=CLAIMS, looks=LOOKS))

    lowest = (
        points(difference(again["lora", 1], again["lora", 64], claims=CLAIMS))
        if again
        else less(("lora", 1), ("lora", 64))
    )
    return (
        Claim("LoRA: rank 1 is not more than 2 points below rank 64", "−0.1 points (73.4 and 73.5)",
              *lowest, above=-MARGIN, form="{:+.1f}"),
        Claim("LoRA: ranks 8 and 64 are within 2 points", "+0.3 points (73.8 and 73.5)",
              *less(("lora", 8), ("lora", 64)), above=-MARGIN, below=MARGIN, form="{:+.1f}"),
        Claim("LoRA: ranks 8 and 32 are within 2 points", "often said; −5.4 points (70.9 and 76.3, README)",
              *less(("lora", 8), ("lora", 32)), above=-MARGIN, below=MARGIN, form="{:+.1f}"),
        Claim("DoRA beats LoRA at rank 4", "+22.4 points (61.9 and 39.5, README)",
              *less(("dora", 4), ("lora", 4)), above=0, equal=TWO_POINTS, form="{:+.1f}"),
        Claim("DoRA beats LoRA at rank 8", "+37.2 points (77.9 and 40.7, README)",
              *less(("dora", 8), ("lora", 8)), above=0, equal=TWO_POINTS, form="{:+.1f}"),
    )  # fmt: skip


def _row(t: ChosenRate) -> tuple[str, ...]:
    return t.key[0], str(t.key[1]), f"{t.trainable:,}", f"{t.lr:g}", accuracy(t)


def _draw(canvas: Figure, rows: dict[tuple[str, int], ChosenRate]) -> None:
    from peftbench.report.papers import _drawing as drawing

    panel = canvas.subplots()
    for i, name in enumerate(METHODS):
        mine = [t for t in rows.values() if t.key[0] == name]
        look = {**drawing.OPEN, "capsize": 6 - 3 * i}  # both bars stand at the rank
        drawing.line(panel, [t.key[1] for t in mine], [mean(t.runs) for t in mine], name, i + 1, **look)
    drawing.log_axis(panel, RANKS)
    panel.set_xlabel("rank r")
    panel.set_ylabel("test accuracy (bars: 95 % interval)")
    panel.legend(frameon=False)


FIGURE = PaperFigure(
    number=2,
    name="lora_rank",
    title="Rank of LoRA and DoRA, 1 to 64",
    paper=Paper("Hu et al. 2021", "LoRA", "2106.09685", "table 6"),
    published=(
        "GPT-3 175B on WikiSQL with r = 1, 2, 4, 8, 64 on W_q and W_v: 73.4, 73.3, 73.7, 73.8, 73.5 %. For DoRA "
        "(arXiv:2402.09353) the authors' README has LLaMA-7B on commonsense reasoning at r = 4, 8, 16, 32, 64: LoRA "
        "39.5, 40.7, 70.9, 76.3, 65.8, DoRA 61.9, 77.9, 77.5, 78.4, 76.8 %."
    ),
    criterion=(
        "rank 1 loses at most 2 points to rank 64, ranks 8 and 64, and 8 and 32, are within 2 points (the paper's lie "
        "within 0.5), and DoRA beats LoRA at ranks 4 and 8."
    ),
    reproduce=reproduce,
    records=(FOLDER, AGAIN),
    commands=(run_command("lora_rank"), run_command("lora_rank_again")),
    looks=LOOKS,
)
