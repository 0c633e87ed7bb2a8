"""AdaLoRA's figure 3: which layers and weight matrices keep their rank after the reallocation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table
from peftbench.report.papers._interval import of
from peftbench.report.papers._probes import Array, by_site, points
from peftbench.report.papers._records import NotRun, scale
from peftbench.report.papers._sweep import choose_rates, method, same_setting, unlearned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "paper/adalora_ranks"
ATTENTION, FEED_FORWARD = ("q", "k", "v", "o"), ("gate", "up", "down")


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER, lambda r: method(r) == "adalora")
    same_setting(runs)
    there = {site["role"] for site in points(runs[0], "ranks")[-1]["sites"]}
    attention, ffn = ([r for r in roles if r in there] for roles in (ATTENTION, FEED_FORWARD))
    if not attention or not ffn:
        raise NotRun(f"{FOLDER} has ranks of {', '.join(sorted(there))} only, not of attention and feed-forward")
    roles = [*attention, *ffn]
    ranks = np.stack([by_site(points(r, "ranks")[-1]["sites"], roles, lambda s: s["rank"]) for r in runs])
    shared = bool((ranks == ranks[:, :1, :1]).all())
    return Reproduction(
        scale=scale(runs),
        claims=_claims(ranks, len(attention)),
        table=_table(ranks, roles),
        draw=lambda canvas: _draw(canvas, ranks, roles),
        incomparable="every layer kept the same rank" if shared else unlearned(choose_rates(runs, method).values()),
        notes=(
            "Ranks are those of the update W' - W, counted on its singular values; each cell of the figure is the mean "
            "over seeds.",
            "Intervals: over seeds and layers (first claim) or seeds and weights (second), 95 % for both together.",
        ),
    )


def _claims(ranks: Array, attention: int) -> tuple[Claim, ...]:  # (seeds, roles, layers)
    half = ranks.shape[-1] // 2
    ffn_more = ranks[:, attention:].mean(1) - ranks[:, :attention].mean(1)  # (seeds, layers)
    upper_more = ranks[..., -half:].mean(-1) - ranks[..., :half].mean(-1)  # (seeds, roles)
    return (
        Claim("feed-forward weights keep a higher rank than attention's", "yes, in words",
              *of(ffn_more, claims=2), above=0, form="{:+.2f}"),
        Claim("the upper half of the layers keeps a higher rank than the lower", "yes, in words",
              *of(upper_more, claims=2), above=0, form="{:+.2f}"),
    )  # fmt: skip


def _table(ranks: Array, roles: list[str]) -> Table:
    mean = ranks.mean(0)
    head = ("weight", *(f"layer {i + 1}" for i in range(mean.shape[1])), "mean", "least and most")
    rows = [
        (role, *(f"{x:.1f}" for x in mean[i]), f"{mean[i].mean():.1f}", f"{ranks[:, i].min()} to {ranks[:, i].max()}")
        for i, role in enumerate(roles)
    ]
    return Table(head, (*rows, ("all", *(f"{x:.1f}" for x in mean.mean(0)), f"{mean.mean():.1f}", "")))


def _draw(canvas: Figure, ranks: Array, roles: list[str]) -> None:
    panel = canvas.subplots()
    mean = ranks.mean(0)
    shown = panel.imshow(mean, cmap="Blues", vmin=0, aspect="auto")
    for i, j in np.ndindex(*mean.shape):
        colour = "white" if mean[i, j] > 0.6 * mean.max() else "#222222"
        panel.text(j, i, f"{mean[i, j]:.1f}", ha="center", va="center", color=colour, fontsize=9)
    panel.set_xticks(range(mean.shape[1]), [str(j + 1) for j in range(mean.shape[1])])
    panel.set_yticks(range(len(roles)), roles)
    panel.grid(visible=False)
    panel.set_xlabel("layer")
    panel.set_ylabel("weight")
    canvas.colorbar(shown, ax=panel, label="final rank, mean over seeds")


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
)
