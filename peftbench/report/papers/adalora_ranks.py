"""AdaLoRA's figure 3: which layers and weight matrices keep their rank after the reallocation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from peftbench.records.record import RunRecord
from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table, run_command
from peftbench.report.papers._interval import Interval, of
from peftbench.report.papers._probes import Array, by_site, points
from peftbench.report.papers._records import NotRun, scale
from peftbench.report.papers._sweep import choose_rates, method, same_setting, unlearned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER, DEEP = "paper/adalora_ranks", "paper/adalora_ranks_deep"
DEEP_SEEDS = range(4)  # of the deeper network, of which the claim that FOLDER leaves open is asked again
CLAIMS = 2 + 1  # one is asked twice
ATTENTION, FEED_FORWARD = ("q", "k", "v", "o"), ("gate", "up", "down")
FEW_LAYERS = 12  # up to which the figure has room for the numbers


@dataclass(frozen=True)
class Ranks:
    """The final ranks in one network."""

    network: str
    roles: list[str]  # attention's first
    attention: int  # the number of these
    of: Array  # (seeds, roles, layers)

    def ffn_more(self) -> Interval:
        """Mean rank of feed-forward weights less attention's, over seeds and layers."""
        return of(self.of[:, self.attention :].mean(1) - self.of[:, : self.attention].mean(1), claims=CLAIMS)

    def upper_more(self) -> Interval:
        """Mean rank in the upper half of the layers less that in the lower, over seeds and weights."""
        half = self.of.shape[-1] // 2
        return of(self.of[..., -half:].mean(-1) - self.of[..., :half].mean(-1), claims=CLAIMS)


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER, lambda r: method(r) == "adalora")
    deep = _deep(results)
    ranks = [_ranks(FOLDER, runs), *([_ranks(DEEP, deep)] if deep else [])]
    shared = any((one.of == one.of[:, :1, :1]).all() for one in ranks)
    return Reproduction(
        scale="; ".join(scale(same) for same in (runs, deep) if same),
        claims=_claims(ranks),
        table=Table(
            ("network", "weight", "lower half of the layers", "upper half", "all", "least and most"),
            tuple(row for one in ranks for row in _rows(one)),
        ),
        draw=lambda canvas: _draw(canvas, ranks),
        incomparable="every layer kept the same rank" if shared else unlearned(choose_rates(runs, method).values()),
        notes=(
            "Ranks are those of the update W' - W, counted on its singular values; each cell of the figure is the mean "
            "over seeds.",
            "Intervals: over seeds and layers (feed-forward weights) or seeds and weights (halves), 95 % for all "
            "claims together, one of them asked twice.",
            *_both_answers(ranks),
        ),
    )


def _deep(results: Results) -> list[RunRecord]:
    """The runs on the deeper network; none until all of them are there."""
    try:
        runs = results.runs(DEEP, lambda r: method(r) == "adalora" and r.spec.seed in DEEP_SEEDS)
    except NotRun:
        return []
    return runs if [r.spec.seed for r in runs] == list(DEEP_SEEDS) else []


def _ranks(folder: str, runs: list[RunRecord]) -> Ranks:
    same_setting(runs)
    there = {site["role"] for site in points(runs[0], "ranks")[-1]["sites"]}
    attention, ffn = ([r for r in roles if r in there] for roles in (ATTENTION, FEED_FORWARD))
    if not attention or not ffn:
        raise NotRun(f"{folder} has ranks of {', '.join(sorted(there))} only, not of attention and feed-forward")
    roles = [*attention, *ffn]
    found = np.stack([by_site(points(r, "ranks")[-1]["sites"], roles, lambda s: s["rank"]) for r in runs])
    return Ranks(runs[0].spec.backbone.model, roles, len(attention), found)


def _claims(ranks: Sequence[Ranks]) -> tuple[Claim, ...]:
    first, last = ranks[0], ranks[-1]
    return (
        Claim(f"feed-forward weights keep a higher rank than attention's ({last.network})", "yes, in words",
              *last.ffn_more(), above=0, form="{:+.2f}"),
        Claim(f"the upper half of the layers keeps a higher rank than the lower ({first.network})", "yes, in words",
              *first.upper_more(), above=0, form="{:+.2f}"),
    )  # fmt: skip


def _both_answers(ranks: Sequence[Ranks]) -> tuple[str, ...]:
    if len(ranks) == 1:
        return ()
    first, deep = ranks
    ffn, upper = first.ffn_more(), deep.upper_more()
    return (
        f"{first.of.shape[-1]} layers left the claim on feed-forward weights open, at {_told(ffn)}. It was asked again "
        f"of {deep.of.shape[-1]}; these alone count, read once. In them the upper half has {_told(upper)} more than "
        "the lower, which was not asked.",
    )


def _told(i: Interval) -> str:
    return f"{i.value:+.2f} [{i.low:+.2f}, {i.high:+.2f}]"


def _rows(one: Ranks) -> list[tuple[str, ...]]:
    half = one.of.shape[-1] // 2
    mean = one.of.mean(0)  # (roles, layers)
    return [
        (
            *(one.network, role),
            *(f"{part.mean():.1f}" for part in (mean[i, :half], mean[i, -half:], mean[i])),
            f"{one.of[:, i].min()} to {one.of[:, i].max()}",
        )
        for i, role in enumerate(one.roles)
    ]


def _draw(canvas: Figure, ranks: Sequence[Ranks]) -> None:
    panels = canvas.subplots(1, len(ranks), squeeze=False, width_ratios=[1, 1.6][: len(ranks)])[0]
    most = max(one.of.mean(0).max() for one in ranks)
    for panel, one in zip(panels, ranks, strict=True):
        mean = one.of.mean(0)
        shown = panel.imshow(mean, cmap="Blues", vmin=0, vmax=most, aspect="auto")
        if mean.shape[1] <= FEW_LAYERS:
            for i, j in np.ndindex(*mean.shape):
                colour = "white" if mean[i, j] > 0.6 * most else "#222222"
                panel.text(j, i, f"{mean[i, j]:.1f}", ha="center", va="center", color=colour, fontsize=9)
        ticks = range(0, mean.shape[1], 1 if mean.shape[1] <= FEW_LAYERS else 5)
        panel.set_xticks(ticks, [str(j + 1) for j in ticks])
        panel.set_yticks(range(len(one.roles)), one.roles)
        panel.grid(visible=False)
        panel.set_title(one.network, loc="left", fontsize=10)
        panel.set_xlabel("layer")
    panels[0].set_ylabel("weight")
    canvas.colorbar(shown, ax=panels[-1], label="final rank, mean over seeds")


FIGURE = PaperFigure(
    number=9,
    name="adalora_ranks",
    title="Where AdaLoRA leaves its ranks",
    paper=Paper("Zhang et al. 2023", "AdaLoRA", "2303.10512", "figure 3"),
    published=(
        "DeBERTaV3-base on MNLI, twelve layers, six weights in each: the paper finds that AdaLoRA prefers to give more "
        "of the budget to feed-forward weights and to the upper layers."
    ),
    criterion=(
        "the mean final rank is higher in feed-forward weights than in attention's, and higher in the upper half of "
        "the layers than in the lower."
    ),
    reproduce=reproduce,
    records=(FOLDER, DEEP),
    commands=(run_command("adalora_ranks"), f"{run_command('adalora_ranks_deep')} --data-dir DATA"),
    size=(11.0, 4.4),
)  # fmt: skip
