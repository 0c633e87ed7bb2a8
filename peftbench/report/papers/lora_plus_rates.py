"""LoRA+'s heat map: score by the learning rates of A and of B."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbench.records.record import TrainingRecord
from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table
from peftbench.report.papers._interval import difference
from peftbench.report.papers._records import need, scale
from peftbench.report.papers._sweep import (
    TWO_POINTS,
    ChosenRate,
    accuracy,
    best,
    choose_rates,
    hyper,
    in_full,
    lr,
    method,
    notes,
    points,
    same_setting,
    unlearned,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "paper/lora_plus_rates"
LOOKS = (3, 6, 40)  # numbers of seeds at which the claims are read
RATES = (1.25e-4, 5e-4, 2e-3, 8e-3, 3.2e-2)
ADVICE = 16  # the paper's lambda

Cell = tuple[float, float]  # rates of A and of B


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER, lambda r: method(r) == "lora_plus")
    same_setting(runs)
    cells = choose_rates(runs, cell)
    failed = {cell(r) for r in results.failed(FOLDER) if method(r) == "lora_plus"}
    need({*cells, *failed}, [(a, b) for a in RATES for b in RATES if b >= a], f"{FOLDER}, rates")
    whole = [t for t in cells.values() if t.key not in failed]
    top = best(in_full(whole))
    equal = sum(ratio(t) < 1.5 for t in whole)
    return Reproduction(
        scale=scale(runs),
        claims=_claims(whole),
        table=Table(("rate of A", "rate of B", "lambda", "accuracy"), tuple(map(_row, cells.values()))),
        draw=lambda canvas: _draw(canvas, cells, top),
        incomparable=unlearned(whole),
        notes=(
            f"Validation prefers {_words(top)}.",
            "The half with B slower than A was not run.",
            f"To choose among: {equal} cells with equal rates, {len(whole) - equal} with lambda above 1.",
            *notes(results, [FOLDER], cells, LOOKS),
        ),
    )


def cell(r: TrainingRecord) -> Cell:
    a = lr(r)
    return a, float(f"{a * hyper(r, 'ratio'):.4g}")


def ratio(t: ChosenRate) -> float:
    return t.key[1] / t.key[0]


def _claims(cells: list[ChosenRate]) -> tuple[Claim, ...]:
    equal = best(in_full(t for t in cells if ratio(t) < 1.5))
    advised = best(in_full(t for t in cells if abs(ratio(t) / ADVICE - 1) < 0.01))
    faster = best(in_full(t for t in cells if ratio(t) > 1.5))
    gains = [points(difference(t.runs, equal.runs, claims=2, looks=LOOKS)) for t in (advised, faster)]
    return (
        Claim(f"lambda {ADVICE} beats equal rates, each at its best rate ({_words(advised)}; {_words(equal)})",
              "+1 to +2 %", *gains[0], above=0, equal=TWO_POINTS, form="{:+.1f}"),
        Claim(f"some lambda above 1 beats equal rates ({_words(faster)})", "lambda about 16, from 8 to 32",
              *gains[1], above=0, equal=TWO_POINTS, form="{:+.1f}"),
    )  # fmt: skip


def _words(t: ChosenRate) -> str:
    return f"A {t.key[0]:g}, B {t.key[1]:g}"


def _row(t: ChosenRate) -> tuple[str, ...]:
    return f"{t.key[0]:g}", f"{t.key[1]:g}", f"{ratio(t):.0f}", accuracy(t)


def _draw(canvas: Figure, cells: dict[Cell, ChosenRate], top: ChosenRate) -> None:
    import numpy as np
    from matplotlib.patches import Rectangle

    panel = canvas.subplots()
    shown = np.full((len(RATES), len(RATES)), np.nan)
    for (a, b), t in cells.items():
        shown[RATES.index(a), RATES.index(b)] = t.test
    image = panel.imshow(shown, origin="lower", cmap="viridis", aspect="auto")
    middle = (np.nanmin(shown) + np.nanmax(shown)) / 2
    for (a, b), t in cells.items():
        i, j = RATES.index(a), RATES.index(b)
        panel.text(j, i, f"{t.test:.3f}\nλ {ratio(t):.0f}", ha="center", va="center", fontsize=8.5,
                   color="#000000" if t.test > middle else "#ffffff")  # fmt: skip
    corner = RATES.index(top.key[1]) - 0.48, RATES.index(top.key[0]) - 0.48
    panel.add_patch(Rectangle(corner, 0.96, 0.96, fill=False, ec="#d55e00", lw=2))
    ticks = [f"{rate:g}" for rate in RATES]
    panel.set_xticks(range(len(RATES)), ticks)
    panel.set_yticks(range(len(RATES)), ticks)
    panel.grid(False)
    panel.set_xlabel("rate of B")
    panel.set_ylabel("rate of A")
    canvas.colorbar(image, ax=panel, label="test accuracy (framed: validation's choice)")


FIGURE = PaperFigure(
    number=8,
    name="lora_plus_rates",
    title="Two learning rates for LoRA's A and B",
    paper=Paper("Hayou et al. 2024", "LoRA+", "2402.12354", "the heat map of test accuracy over both rates"),
    published=(
        "RoBERTa base, GPT-2 and Llama-7B: the best rate of B is well above that of A, by about 2^4 (2^3 to 2^5); "
        "accuracy gains 1 to 2 %, and training is up to twice as fast."
    ),
    criterion=(
        f"lambda = {ADVICE}, and the lambda above 1 that validation prefers, each beat equal rates; every lambda at "
        "the rates that validation prefers for it."
    ),
    reproduce=reproduce,
    looks=LOOKS,
    size=(7.6, 5.6),
)
