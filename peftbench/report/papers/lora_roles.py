"""LoRA's table 5: which attention projections to adapt at equal size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table
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

FOLDER = "paper/lora_roles"
LOOKS = (3, 16, 40)  # numbers of seeds at which the claims are read
PAPER = {  # roles: (rank, WikiSQL, MultiNLI)
    "q": (8, 70.4, 91.0),
    "k": (8, 70.0, 90.8),
    "v": (8, 73.0, 91.0),
    "o": (8, 73.2, 91.3),
    "q k": (4, 71.4, 91.3),
    "q v": (4, 73.7, 91.3),
    "q k v o": (2, 73.7, 91.7),
}
MARGIN = 2.0  # points


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER, lambda r: method(r) == "lora" and (hyper(r, "roles"), hyper(r, "rank")) in _asked())
    same_setting(runs)
    rows = choose_rates(runs, lambda r: hyper(r, "roles"))
    need(rows, PAPER, FOLDER)
    sizes = {t.trainable for t in rows.values()}
    unequal = f"the sizes differ: {sorted(sizes)} parameters" if len(sizes) > 1 else None
    return Reproduction(
        scale=scale([r for t in rows.values() for r in t.runs]),
        claims=_claims(rows),
        table=Table(
            ("adapted", "rank", "parameters", "rate", "accuracy", "paper: WikiSQL, MultiNLI"),
            tuple(_row(rows[roles]) for roles in PAPER),
        ),
        draw=lambda canvas: _draw(canvas, rows),
        incomparable=unequal or unlearned(rows.values()),
        notes=notes(results, [FOLDER], rows, LOOKS),
    )


def _asked() -> set[tuple[str, int]]:
    return {(roles, rank) for roles, (rank, *_) in PAPER.items()}


def _claims(rows: dict[str, ChosenRate]) -> tuple[Claim, ...]:
    def less(a: str, b: str) -> Interval:
        return points(difference(rows[a].runs, rows[b].runs, claims=3, looks=LOOKS))

    return (
        Claim("q and v at rank 4 beat q alone at rank 8", "+3.3 and +0.3 points",
              *less("q v", "q"), above=0, equal=TWO_POINTS, form="{:+.1f}"),
        Claim("all four at rank 2 beat q alone at rank 8", "+3.3 and +0.7 points",
              *less("q k v o", "q"), above=0, equal=TWO_POINTS, form="{:+.1f}"),
        Claim("all four at rank 2 and q and v at rank 4 are within 2 points", "0.0 and +0.4 points",
              *less("q k v o", "q v"), above=-MARGIN, below=MARGIN, form="{:+.1f}"),
    )  # fmt: skip


def _row(t: ChosenRate) -> tuple[str, ...]:
    rank, wikisql, mnli = PAPER[t.key]
    return t.key, str(rank), f"{t.trainable:,}", f"{t.lr:g}", accuracy(t), f"{wikisql}, {mnli}"


def _draw(canvas: Figure, rows: dict[str, ChosenRate]) -> None:
    from peftbench.report.papers import _drawing as drawing

    ours, theirs = canvas.subplots(1, 2)
    places = list(range(len(PAPER)))
    drawing.line(ours, places, [mean(rows[roles].runs) for roles in PAPER], "ours", 1, ls="none")
    ours.set_ylabel("test accuracy (bars: 95 % interval)")
    ours.set_title("ours", loc="left", fontsize=10)
    theirs.plot(places, [PAPER[roles][1] / 100 for roles in PAPER], "s", color="#000000", ms=5.5)
    theirs.set_title("the paper's, GPT-3 on WikiSQL (standard deviation 0.005)", loc="left", fontsize=10)
    for panel in (ours, theirs):
        panel.set_xticks(places, [f"{roles}\nr={PAPER[roles][0]}" for roles in PAPER], fontsize=8)


FIGURE = PaperFigure(
    number=5,
    name="lora_roles",
    title="Which projections to adapt with LoRA, at equal size",
    paper=Paper("Hu et al. 2021", "LoRA", "2106.09685", "table 5"),
    published=(
        "GPT-3 175B with 18 million parameters, WikiSQL (± 0.5) and MultiNLI (± 0.1): q 70.4, 91.0; k 70.0, 90.8; v "
        "73.0, 91.0; o 73.2, 91.3 at r = 8; q k 71.4, 91.3; q v 73.7, 91.3 at r = 4; all four 73.7, 91.7 at r = 2."
    ),
    criterion=(
        "q and v, and all four, each beat q alone of the same size, and these two are within 2 points of each other."
    ),
    reproduce=reproduce,
    looks=LOOKS,
    size=(9.6, 4.6),
)
