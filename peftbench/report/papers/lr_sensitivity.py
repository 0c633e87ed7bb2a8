"""Score by learning rate: is LoRA's best rate ten times that of full fine-tuning, and do its variants differ?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table, run_command
from peftbench.report.papers._interval import difference
from peftbench.report.papers._probes import over
from peftbench.report.papers._records import group, need, scale, task, validation
from peftbench.report.papers._sweep import ChosenRate, choose_rates, lr, method, points, same_setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from peftbench.records.record import RunRecord

OWN = "paper/lr_sensitivity"
FOLDERS = (OWN, "reference/sweep_quickstart", "reference/sweep_glue_small")
METHODS = ("full", "lora", "dora", "rslora", "pissa", "lora_plus")
VARIANTS = METHODS[2:]
TEN, HALF_A_DECADE = 10.0, math.sqrt(10)
MARGIN = 2.0  # points, the paper's "1 to 2 %"

Sweeps = dict[str, list["RunRecord"]]  # by title: the runs of one folder on one task


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    sweeps = _sweeps(results)
    chosen = {title: choose_rates(runs, method) for title, runs in sweeps.items()}
    claims = []
    for title, rows in chosen.items():
        if title.startswith(OWN):  # the others have one seed, which says nothing of others
            claims += [_ratio(title, rows, sweeps[title]), *_variants(rows)]
    return Reproduction(
        scale="; ".join(f"{title.split(',')[0]}: {scale(runs)}" for title, runs in sweeps.items()),
        claims=tuple(claims),
        table=Table(("sweep", "method", "best rate", "tried", "validation", "test", "seeds"), tuple(_rows(chosen))),
        draw=lambda canvas: _draw(canvas, sweeps),
        notes=(
            "The best rate is the one with the best mean validation score. It may be any whose score is not surely "
            "worse, by seed, at 95 % for all rates of the ratio together; and it is known up to the middle (geometric) "
            "between these and their neighbours, at an edge up to nothing.",
            "Claims are read where there are several seeds, so from none of the sweeps with one.",
        ),
    )


def _sweeps(results: Results) -> Sweeps:
    sweeps: Sweeps = {}
    for folder in FOLDERS:
        runs = results.runs(folder, lambda r: method(r) in METHODS)
        for name, same in group(runs, task).items():
            same_setting(same)
            need({method(r) for r in same}, ("full", "lora"), f"{folder} on {name}:")
            sweeps[f"{folder}, {name}"] = same
    return sweeps


def _ratio(title: str, rows: dict[str, ChosenRate], runs: list[RunRecord]) -> Claim:
    others = sum(len(rows[name].rates) - 1 for name in ("lora", "full"))
    of = group(runs, method)
    (low, high), (full_low, full_high) = (_known(rows[name], of[name], others) for name in ("lora", "full"))
    return Claim(
        f"LoRA's best rate is about ten times full fine-tuning's ({title})",
        "10 times; 15 in short runs",
        rows["lora"].lr / rows["full"].lr,
        low / full_high,
        high / full_low if full_low else math.inf,
        above=TEN / HALF_A_DECADE,
        below=TEN * HALF_A_DECADE,
        form="{:.1f}",
    )


def _known(t: ChosenRate, runs: list[RunRecord], others: int) -> tuple[float, float]:
    """The rates between which the best rate lies, as the seeds and the grid tell.

    Args:
        t: the method at its chosen rate.
        runs: the method's runs at all rates.
        others: number of rates that are compared with a chosen one, of all methods together.
    """
    may_be = [rate for rate, same in group(runs, lr).items() if not _is_worse(same, t.runs, others)]
    i, j = t.rates.index(min(may_be)), t.rates.index(max(may_be))
    low = math.sqrt(t.rates[i] * t.rates[i - 1]) if i else 0.0
    return low, math.sqrt(t.rates[j] * t.rates[j + 1]) if j + 1 < len(t.rates) else math.inf


def _is_worse(runs: Sequence[RunRecord], chosen: Sequence[RunRecord], others: int) -> bool:
    """Whether the validation score is surely below the chosen rate's, over their common seeds."""
    mine, best = ({r.spec.seed: validation(r) for r in same} for same in (runs, chosen))
    gaps = [best[seed] - mine[seed] for seed in sorted(mine.keys() & best.keys())]
    return len(gaps) > 1 and over(np.asarray(gaps), others).low > 0


def _variants(rows: dict[str, ChosenRate]) -> list[Claim]:
    need(rows, VARIANTS, OWN)
    intervals = {name: difference(rows[name].runs, rows["lora"].runs, claims=len(VARIANTS)) for name in VARIANTS}
    return [
        Claim(f"{name} at its best rate is within 2 points of LoRA at its own", "within 1 to 2 %", *points(interval),
              above=-MARGIN, below=MARGIN, form="{:+.1f}")
        for name, interval in intervals.items()
    ]  # fmt: skip


def _rows(chosen: dict[str, dict[str, ChosenRate]]) -> list[tuple[str, ...]]:
    return [
        (title, name, f"{t.lr:g}", f"{t.rates[0]:g} to {t.rates[-1]:g} ({len(t.rates)})", f"{t.preferred:.3f}",
         f"{t.test:.3f}", str(len(t.runs)))
        for title, rows in chosen.items()
        for name, t in sorted(rows.items(), key=lambda item: METHODS.index(item[0]))
    ]  # fmt: skip


def _draw(canvas: Figure, sweeps: Sweeps) -> None:
    from statistics import fmean

    from peftbench.report.figures.style import COLOURS, MARKERS
    from peftbench.report.papers import _drawing as drawing
    from peftbench.report.papers._records import score

    panels = canvas.subplots(1, len(sweeps), squeeze=False)[0]
    for panel, (title, runs) in zip(panels, sweeps.items(), strict=True):
        for i, name in enumerate(METHODS):
            rates = group((r for r in runs if method(r) == name), lr)
            for rate, same in rates.items():
                panel.plot([rate] * len(same), [score(r) for r in same], ".", ms=4, color=COLOURS[i], alpha=0.6)
            ys = [fmean(map(score, same)) for same in rates.values()]
            if rates:
                panel.plot(list(rates), ys, color=COLOURS[i], marker=MARKERS[i], ms=5, lw=1.2, label=name)
        drawing.log_axis(panel, (1e-4, 1e-3, 1e-2))
        panel.set_title(title.replace(", ", "\n"), loc="left", fontsize=8.5)
        panel.set_xlabel("learning rate")
        panel.set_ylabel(f"test {runs[0].metrics.primary}")
    panels[0].legend(frameon=False, fontsize=8)


FIGURE = PaperFigure(
    number=12,
    name="lr_sensitivity",
    title="Sensitivity to the learning rate",
    paper=Paper("Lee et al. 2026", "Learning Rate Matters: Vanilla LoRA May Suffice", "2602.04998", "its abstract"),
    published=(
        'Once each has a rate of its own, LoRA\'s variants end within 1 to 2 % of each other. "LoRA Without Regret" '
        "(Thinking Machines 2025): LoRA's best rate is about 10 times that of full fine-tuning, 15 times in short runs."
    ),
    criterion=(
        "LoRA's best rate over full fine-tuning's is within half a decade of 10, and each variant at its best "
        "rate is within 2 points of LoRA (in the sweep that has several seeds)."
    ),
    reproduce=reproduce,
    records=FOLDERS,
    commands=(
        run_command("lr_sensitivity"),
        "python -m peftbench run experiments/sweep_quickstart.yaml --results results/reference/sweep_quickstart",
        "python -m peftbench run experiments/sweep_glue_small.yaml --results results/reference/sweep_glue_small "
        "--data-dir GLUE",
    ),
    size=(13.0, 4.6),
)
