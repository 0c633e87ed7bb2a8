"""LoRA's figures 3 and 4: do runs with other ranks and seeds learn the same input directions?"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from peftbench.records.record import RunRecord
from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table
from peftbench.report.papers._interval import Interval
from peftbench.report.papers._probes import Array, by_site, over, points
from peftbench.report.papers._records import NotRun, group, need, scale
from peftbench.report.papers._similarity import by_chance, similarity, vectors
from peftbench.report.papers._sweep import choose_rates, hyper, method, same_setting, unlearned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "paper/lora_subspaces"
SMALL, LARGE = 8, 64  # ranks
ROLES = ("q", "v")
MATRICES = {"A": "A (the paper's)", "update": "B A, the update itself"}
PAIRS = {"ranks": f"ranks {SMALL} and {LARGE}", "seeds": f"two seeds of rank {LARGE}"}
CLAIMS = 4


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER, lambda r: method(r) == "lora" and hyper(r, "rank") in (SMALL, LARGE))
    same_setting(runs)
    by_rank = group(runs, lambda r: hyper(r, "rank"))
    need(by_rank, (SMALL, LARGE), f"{FOLDER} of rank")
    phi = {(m, p): _compared(by_rank, m, p) for m, p in product(MATRICES, PAIRS)}
    width = points(runs[0], "subspaces")[-1]["sites"][0]["width"]
    return Reproduction(
        scale=scale(runs),
        claims=_claims(phi, width),
        table=_table(phi, width),
        draw=lambda canvas: _draw(canvas, phi, width),
        incomparable=unlearned(choose_rates(runs, lambda r: hyper(r, "rank")).values()),
        notes=(
            "Runs of the two ranks are compared across seeds only: with one seed, both would draw the first layer's A "
            "from the same random numbers.",
            "The claims are about A, as the paper's are. A starts at random, B at zero, so the table and the figure "
            "have the update B A beside it.",
            "Intervals: over layers (t), 95 % for the four claims together; two seeds are too few to count as drawn.",
        ),
    )


def _compared(by_rank: dict[int, list[RunRecord]], matrix: str, pair: str) -> Array:
    """(roles, layers, i, j): phi between two sets of runs, the mean over pairs with different seeds."""
    first, second = (_bases(by_rank[rank], matrix) for rank in (SMALL if pair == "ranks" else LARGE, LARGE))
    of_two = [
        np.stack([[similarity(x, y) for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)])
        for (s, a), (t, b) in product(first.items(), second.items())
        if (s != t if pair == "ranks" else s < t)
    ]
    if not of_two:
        raise NotRun(f"{FOLDER} has one seed; two are compared")
    return np.mean(of_two, axis=0)


def _bases(runs: list[RunRecord], matrix: str) -> dict[int, Array]:
    """seed -> (roles, layers, kept, width)."""

    def basis(site: dict[str, Any]) -> Array:
        if len(site[matrix]["singular"]) < SMALL:
            raise NotRun(f"a layer of {FOLDER} has fewer than {SMALL} directions in {matrix}")
        return vectors(site[matrix], site["width"])

    return {r.spec.seed: by_site(points(r, "subspaces")[-1]["sites"], ROLES, basis) for r in runs}


def _claims(phi: dict[tuple[str, str], Array], width: int) -> tuple[Claim, ...]:
    ranks, seeds = phi["A", "ranks"], phi["A", "seeds"]
    all_ = SMALL - 1  # the index of phi(8, 8)

    def over_layers(of_layer: Array) -> Interval:
        return over(of_layer, CLAIMS)

    top = over_layers(ranks[:, :, 0, 0].mean(0))
    falls = over_layers((ranks[:, :, 0, 0] - ranks[:, :, all_, all_]).mean(0))
    beyond = over_layers(seeds[:, :, all_, all_].mean(0) - by_chance(SMALL, SMALL, width))
    query = over_layers(seeds[0, :, all_, all_] - seeds[1, :, all_, all_])
    return (
        Claim("ranks 8 and 64 share their top direction: phi(1, 1) is above 0.5", "above 0.5", *top, above=0.5),
        Claim("the others they share less: phi(1, 1) less phi(8, 8) is positive", "yes, in words", *falls, above=0),
        Claim("two seeds share more than chance: phi(8, 8) less that of random spaces", "yes, in words",
              *beyond, above=0),
        Claim("two seeds share more in W_q than in W_v: the difference of phi(8, 8)", "yes, in words",
              *query, above=0),
    )  # fmt: skip


def _table(phi: dict[tuple[str, str], Array], width: int) -> Table:
    places = ((1, 1), (2, 2), (4, 4), (8, 8), (1, 8), (8, 16))
    rows = [
        (PAIRS[pair], name, f"W_{role}", *(_spread(phi[matrix, pair][k, :, i - 1, j - 1]) for i, j in places))
        for (matrix, name), pair, (k, role) in product(MATRICES.items(), PAIRS, enumerate(ROLES))
    ]
    chance = ("random spaces", "", "", *(f"{by_chance(i, j, width):.3f}" for i, j in places))
    return Table(("compared", "matrix", "weight", *(f"phi({i}, {j})" for i, j in places)), (*rows, chance))


def _spread(of_layers: Array) -> str:
    """The mean, the smallest and the largest value over layers."""
    return f"{of_layers.mean():.3f} ({of_layers.min():.3f} to {of_layers.max():.3f})"


def _draw(canvas: Figure, phi: dict[tuple[str, str], Array], width: int) -> None:
    layers = phi["A", "ranks"].shape[1]
    middle = (layers - 1) // 2
    grid = canvas.add_gridspec(len(MATRICES) + 1, 4)
    panels = []
    for (row, matrix), (column, (pair, (k, role))) in product(
        enumerate(MATRICES), enumerate(product(PAIRS, enumerate(ROLES)))
    ):
        panel = canvas.add_subplot(grid[row, column])
        cells = phi[matrix, pair][k, middle]
        shown = panel.imshow(cells, cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto",
                             extent=(0.5, cells.shape[1] + 0.5, 0.5, cells.shape[0] + 0.5))  # fmt: skip
        panel.grid(visible=False)
        for axis, count in ((panel.xaxis, cells.shape[1]), (panel.yaxis, cells.shape[0])):
            axis.set_ticks([1, *range(4, count + 1, 4)])
        title = f"W_{role}, {PAIRS[pair]}\n{'A' if matrix == 'A' else 'B A'}, layer {middle + 1} of {layers}"
        panel.set_title(title, loc="left", fontsize=8.5)
        panel.set_xlabel("j", fontsize=8)
        panel.set_ylabel("i", fontsize=8)
        panels.append(panel)
    canvas.colorbar(shown, ax=panels, label="phi(i, j)", shrink=0.6)
    for column, pair in enumerate(PAIRS):
        _by_layer(canvas.add_subplot(grid[-1, 2 * column : 2 * column + 2]), phi, pair, width, legend=column == 1)


def _by_layer(panel: Any, phi: dict[tuple[str, str], Array], pair: str, width: int, legend: bool) -> None:
    from peftbench.report.figures.style import COLOURS, MARKERS, MUTED

    for n, (matrix, (k, role)) in enumerate(product(MATRICES, enumerate(ROLES))):
        ys = phi[matrix, pair][k, :, SMALL - 1, SMALL - 1]
        name = f"W_{role}, {'A' if matrix == 'A' else 'B A'}"
        panel.plot(range(1, len(ys) + 1), ys, color=COLOURS[n + 1], marker=MARKERS[n], ms=5, lw=1.2, label=name)
    panel.axhline(by_chance(SMALL, SMALL, width), color=MUTED, ls=":", lw=1.3, label="random spaces")
    panel.set_title(f"phi({SMALL}, {SMALL}) by layer: {PAIRS[pair]}", loc="left", fontsize=9)
    panel.set_xlabel("layer")
    panel.set_ylim(bottom=0)
    if legend:
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5)


FIGURE = PaperFigure(
    number=4,
    name="lora_subspaces",
    title="Directions that LoRA learns, between ranks and between seeds",
    paper=Paper("Hu et al. 2021", "LoRA", "2106.09685", "figures 3 and 4"),
    published=(
        "GPT-3 175B, W_q and W_v of layer 48 of 96: the top singular direction of A at rank 8 is shared with rank 64, "
        "with a normalised similarity (equation 4) above 0.5, while the others are not; between two seeds of rank 64 "
        "more directions are shared in W_q than in W_v, and between random matrices none."
    ),
    criterion=(
        "over the layers, phi(1, 1) of ranks 8 and 64 is above 0.5 and above phi(8, 8); between seeds phi(8, 8) is "
        "above that of random spaces, and larger in W_q than in W_v."
    ),
    reproduce=reproduce,
    size=(12.0, 9.0),
)
