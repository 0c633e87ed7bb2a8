"""The figures about the trained network itself: their verdicts follow what the probes found, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from paper_records import reproduced, trained
from scipy.stats import pearsonr

from peftbench.measure.probes import subspaces
from peftbench.report.papers import (
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    REPRODUCED,
    WITHIN,
    NotRun,
    Reproduction,
    Results,
    adalora_ranks,
    dora_decomposition,
    learning_forgetting,
    lora_subspaces,
)
from peftbench.report.papers._interval import of
from peftbench.report.papers._probes import jackknife, over

LAYERS, WIDTH = 6, 96
Body = dict[str, Any]


def probed(body: Body, probe: str, points: list[dict[str, Any]]) -> Body:
    measured = body.get("probes", {})
    return {**body, "probes": {**measured, probe: {"version": 1, "paper": "", "definition": "", "points": points}}}


def sites(roles: str, value: Callable[[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"role": role, "layer": i, "path": f"layer.{i}.{role}", **value(role, i)}
        for i in range(LAYERS)
        for role in roles.split()
    ]


def claims(reproduction: Reproduction) -> list[str]:
    return [c.verdict for c in reproduction.claims]


# AdaLoRA: ranks


def rank_runs(ffn: int, top: int, score: float = 0.8, seeds: Sequence[int] = range(4)) -> list[Body]:
    """A mean of 8; feed-forward weights and upper layers have so many more, give or take one."""
    out = []
    for seed in seeds:
        draw = np.random.default_rng(seed)

        def rank(role: str, layer: int, draw: Any = draw) -> dict[str, int]:
            more = ffn * (role in ("up", "down")) + top * (layer >= LAYERS // 2)
            return {"rank": 6 + more + int(draw.integers(-1, 2))}

        body = trained("adalora", {}, score, seed)
        out.append(probed(body, "ranks", [{"step": 40, "sites": sites("q k v o up down", rank)}]))
    return out


@pytest.mark.parametrize(
    ("ffn", "top", "verdicts"),
    [(3, 2, [REPRODUCED, REPRODUCED]), (-3, 2, [NOT_REPRODUCED, REPRODUCED]), (3, 0, [REPRODUCED, WITHIN])],
)
def test_where_ranks_went_follows_the_records(tmp_path: Path, ffn: int, top: int, verdicts: list[str]) -> None:
    assert claims(reproduced(adalora_ranks.FIGURE, tmp_path, rank_runs(ffn, top))) == verdicts


@pytest.mark.parametrize(
    ("seeds", "verdict"), [((0, 1, 2, 3), NOT_REPRODUCED), ((0, 1, 2), REPRODUCED), ((0, 1, 2, 4), REPRODUCED)]
)
def test_the_claim_on_feed_forward_weights_is_read_from_all_declared_seeds_of_the_deeper_network_or_none(
    tmp_path: Path, seeds: tuple[int, ...], verdict: str
) -> None:
    factories.write_all(tmp_path / adalora_ranks.DEEP, rank_runs(-3, 2, seeds=seeds))
    found = reproduced(adalora_ranks.FIGURE, tmp_path, rank_runs(3, 2))
    assert claims(found) == [verdict, REPRODUCED]
    assert len(found.table.rows) == (12 if seeds == (0, 1, 2, 3) else 6)


def test_ranks_that_never_moved_or_of_a_task_not_learned_decide_nothing(tmp_path: Path) -> None:
    assert reproduced(adalora_ranks.FIGURE, tmp_path / "a", rank_runs(3, 2, score=0.2)).verdict == NOT_COMPARABLE
    flat = [{**site, "rank": 8} for site in sites("q k v o up down", lambda role, layer: {})]
    bodies = [probed(trained("adalora", {}, 0.8, s), "ranks", [{"step": 40, "sites": flat}]) for s in range(2)]
    assert reproduced(adalora_ranks.FIGURE, tmp_path / "b", bodies).verdict == NOT_COMPARABLE


# DoRA: magnitude and direction


def moved(method: str, sign: int, seed: int, noise: float = 0.05) -> Body:
    """dM follows dD with this sign, over layers and steps."""
    draw = np.random.default_rng((seed, len(method)))
    points = [{"step": 0, "sites": sites("q k v", lambda role, layer: {"dM": 0.0, "dD": 0.0})}]
    for step in (25, 50, 75, 100):
        dD = {(role, i): draw.uniform(0.1, 1) for role in "qkv" for i in range(LAYERS)}
        points.append(
            {
                "step": step,
                "sites": sites(
                    "q k v",
                    lambda role, i, dD=dD: {
                        "dD": dD[role, i],
                        "dM": 2 + sign * dD[role, i] + noise * draw.normal(),
                    },
                ),
            }
        )
    return probed(trained(method, {}, 0.8, seed), "decomposition", points)


def moved_runs(full: int, lora: int, dora: int, **changes: Any) -> list[Body]:
    signs = {"full": full, "lora": lora, "dora": dora}
    return [moved(m, sign, seed, **changes) for m, sign in signs.items() for seed in range(3)]


@pytest.mark.parametrize(
    ("signs", "verdicts"),
    [
        ((-1, 1, -1), [REPRODUCED] * 3),
        ((1, 1, 1), [NOT_REPRODUCED, REPRODUCED, NOT_REPRODUCED]),
        ((-1, 1, 0), [REPRODUCED, REPRODUCED, WITHIN]),
    ],
)
def test_magnitude_against_direction_follows_the_records(
    tmp_path: Path, signs: tuple[int, int, int], verdicts: list[str]
) -> None:
    assert claims(reproduced(dora_decomposition.FIGURE, tmp_path, moved_runs(*signs))) == verdicts


def test_the_correlation_is_pearsons_over_query_weights_after_the_start(tmp_path: Path) -> None:
    bodies = moved_runs(-1, 1, -1, noise=0.4)
    by_hand = []
    for body in bodies[:3]:
        points = body["probes"]["decomposition"]["points"][1:]
        pairs = [(s["dM"], s["dD"]) for p in points for s in p["sites"] if s["role"] == "q"]
        by_hand.append(pearsonr(*zip(*pairs, strict=True)).statistic)
    assert reproduced(dora_decomposition.FIGURE, tmp_path, bodies).claims[0].value == pytest.approx(np.mean(by_hand))


# LoRA: subspaces


def directions(rows: np.ndarray, seed: int) -> dict[str, Any]:
    """As the probe keeps them, of a matrix whose right-singular vectors are these rows, in their order."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(rows), len(rows))))[0]
    return subspaces.directions(torch.tensor(turn @ np.diag(np.linspace(2, 1, len(rows))) @ rows))


def basis(shared: int, key: tuple[int, ...], count: int) -> np.ndarray:
    """`count` orthonormal rows of which the first `shared` are the same for every key."""
    common = np.random.default_rng(7).normal(size=(WIDTH, shared))
    own = np.random.default_rng(key).normal(size=(WIDTH, count - shared))
    return np.linalg.qr(np.concatenate([common, own], axis=1))[0].T


def subspace_runs(shared: dict[str, int], one_seed_alike: bool = False) -> list[Body]:
    """Ranks 8 and 64, two seeds; every run shares so many directions with every other, by role."""
    out = []
    for rank in (8, 64):
        for seed in range(2):

            def value(role: str, layer: int, rank: int = rank, seed: int = seed) -> dict[str, Any]:
                key = (seed, layer, ord(role), 0 if one_seed_alike else rank)
                kept = directions(basis(shared[role], key, 8 if rank == 8 else 16), layer)
                return {"width": WIDTH, "A": kept, "update": kept}

            body = trained("lora", {"rank": rank}, 0.8, seed)
            out.append(probed(body, "subspaces", [{"step": 40, "sites": sites("q v", value)}]))
    return out


def test_shared_directions_follow_the_records(tmp_path: Path) -> None:
    reproduction = reproduced(lora_subspaces.FIGURE, tmp_path / "a", subspace_runs({"q": 3, "v": 1}))
    assert claims(reproduction) == [REPRODUCED] * 4
    reproduction = reproduced(lora_subspaces.FIGURE, tmp_path / "b", subspace_runs({"q": 1, "v": 3}))
    assert claims(reproduction)[3] == NOT_REPRODUCED
    reproduction = reproduced(lora_subspaces.FIGURE, tmp_path / "c", subspace_runs({"q": 0, "v": 0}))
    assert claims(reproduction)[0] == NOT_REPRODUCED


def test_what_two_ranks_share_because_of_one_seed_does_not_count(tmp_path: Path) -> None:
    """The first layer's A would be drawn from the same numbers, and seem to have been learned."""
    alike = subspace_runs({"q": 0, "v": 0}, one_seed_alike=True)
    assert reproduced(lora_subspaces.FIGURE, tmp_path, alike).claims[0].value < 0.2


def test_one_seed_is_not_compared(tmp_path: Path) -> None:
    with pytest.raises(NotRun, match="one seed"):
        reproduced(
            lora_subspaces.FIGURE, tmp_path, [b for b in subspace_runs({"q": 1, "v": 1}) if b["spec"]["seed"] == 0]
        )


# Learning against forgetting

REFERENCES = [["alpha beta gamma delta epsilon zeta"]]


def forgetting_runs(rises: dict[str, float], words: dict[str, int]) -> list[Body]:
    """By label: how far the loss of a window rises, and how many of a reference's six words are written.

    Of 40 right answers one is lost for each 0.01 of the rise.
    """
    out = []
    for name, rise in rises.items():
        for seed in range(3):
            draw = np.random.default_rng((seed, *name.encode()))
            body = trained(name, {}, 0.5, seed)
            body["spec"]["method"]["label"] = name
            body.update(factories.with_ids(body))
            ids = [f"{i:016x}" for i in range(20)]
            told = [" ".join(REFERENCES[0][0].split()[: words[name] + i % 2]) for i in range(20)]
            body["predictions"] = {"ids": ids, "values": told, "labels": REFERENCES * 20}
            body["metrics"] |= {"test": {"bleu": 0.1, "rougeL": 0.5, "perplexity": 9.0}, "primary": "bleu"}
            body["curve"]["validation"] = [{"step": s, "perplexity": 12.0 - s / 10} for s in (10, 20, 30)]
            windows = draw.uniform(2, 4, size=32)
            points = []
            for step in (0, 10, 20, 30):
                now = windows + rise * step / 30 + 0.02 * draw.normal(size=32) * (step > 0)
                points.append({"step": step, "loss": float(now.mean()), "windows": now.tolist()})
            kept = 40 - round(100 * rise)
            answered = [
                {"step": s, "accuracy": n / 64, "right": [1] * n + [0] * (64 - n)} for s, n in ((0, 40), (30, kept))
            ]
            out.append(probed(probed(body, "wikitext2_loss", points), "arc_easy", answered))
    return out


@pytest.mark.parametrize(
    ("full", "words", "verdicts"),
    [
        (0.2, 5, [REPRODUCED] * 6),
        (-0.2, 5, [NOT_REPRODUCED] * 4 + [REPRODUCED] * 2),
        (0.2, 2, [REPRODUCED] * 4 + [NOT_REPRODUCED] * 2),
        (0.05, 3, [WITHIN] * 6),
    ],
)
def test_learning_and_forgetting_follow_the_records(
    tmp_path: Path, full: float, words: int, verdicts: list[str]
) -> None:
    rises = {"full": full, "lora": 0.05, "lora-r64": 0.05, "ia3": 0.01}
    bodies = forgetting_runs(rises, {"full": words, "lora": 3, "lora-r64": 3, "ia3": 3})
    reproduction = reproduced(learning_forgetting.FIGURE, tmp_path, bodies)
    if verdicts[0] == WITHIN:  # equal answers are exactly equal: no interval reaches over zero
        assert [claims(reproduction)[:2], {c.value for c in reproduction.claims[2:]}] == [verdicts[:2], {0.0}]
    else:
        assert claims(reproduction) == verdicts


@pytest.mark.parametrize(("full", "comparable"), [(0.2, True), (0.0, False), (-0.1, False)])
def test_where_the_reference_forgets_nothing_no_claim_counts(tmp_path: Path, full: float, comparable: bool) -> None:
    labels = ("full", "lora", "lora-r64")
    bodies = forgetting_runs({**dict.fromkeys(labels, 0.05), "full": full}, dict.fromkeys(labels, 3))
    reproduction = reproduced(learning_forgetting.FIGURE, tmp_path, bodies)
    assert (reproduction.verdict != NOT_COMPARABLE) == comparable


def test_forgetting_is_the_rise_from_the_base_at_the_end(tmp_path: Path) -> None:
    labels = ("full", "lora", "lora-r64")
    bodies = forgetting_runs(dict.fromkeys(labels, 0.1), dict.fromkeys(labels, 3))
    rises: dict[str, list[float]] = {name: [] for name in labels}
    for body in bodies:
        first, *_, last = body["probes"]["wikitext2_loss"]["points"]
        rises[body["spec"]["method"]["label"]].append(last["loss"] - first["loss"])
    claim = reproduced(learning_forgetting.FIGURE, tmp_path, bodies).claims[0]
    assert claim.value == pytest.approx(np.mean(rises["full"]) - np.mean(rises["lora"]), abs=1e-9)


def test_answers_are_lost_in_points_of_all_questions(tmp_path: Path) -> None:
    bodies = forgetting_runs(
        {"full": 0.16, "lora": 0.0, "lora-r64": 0.08}, dict.fromkeys(("full", "lora", "lora-r64"), 3)
    )
    found = reproduced(learning_forgetting.FIGURE, tmp_path, bodies)
    assert [c.value for c in found.claims[2:4]] == pytest.approx([100 * 16 / 64, 100 * 8 / 64])


# What they share


ALL = {
    "adalora_ranks": (adalora_ranks, lambda: rank_runs(3, 2)),
    "dora_decomposition": (dora_decomposition, lambda: moved_runs(-1, 1, -1)),
    "lora_subspaces": (lora_subspaces, lambda: subspace_runs({"q": 3, "v": 1})),
    "learning_forgetting": (
        learning_forgetting,
        lambda: forgetting_runs(
            {"full": 0.2, "lora": 0.05, "lora-r64": 0.1, "ia3": 0.0},
            {"full": 5, "lora": 3, "lora-r64": 4, "ia3": 1},
        ),
    ),
}


@pytest.mark.parametrize("name", ALL)
def test_runs_without_the_probe_are_no_records_for_the_figure(tmp_path: Path, name: str) -> None:
    module, bodies = ALL[name]
    with pytest.raises(NotRun, match="without the probe"):
        reproduced(module.FIGURE, tmp_path, [{k: v for k, v in b.items() if k != "probes"} for b in bodies()])


@pytest.mark.parametrize("name", ALL)
def test_every_figure_draws_and_tabulates_what_it_found(tmp_path: Path, name: str) -> None:
    module, bodies = ALL[name]
    reproduction = reproduced(module.FIGURE, tmp_path, bodies())
    canvas = Figure(figsize=module.FIGURE.size)
    reproduction.draw(canvas)
    assert canvas.axes
    assert reproduction.table.rows
    assert {len(row) for row in reproduction.table.rows} == {len(reproduction.table.head)}
    again = module.FIGURE.reproduce(Results(tmp_path))
    assert (again.claims, again.table) == (reproduction.claims, reproduction.table), (
        "the same records give the same digits"
    )


def test_the_jackknife_of_a_mean_is_the_interval_of_the_mean() -> None:
    x = np.random.default_rng(0).normal(size=(3, 8))
    assert jackknife(lambda units: float(units.mean()), x)[:3] == pytest.approx(of(x)[:3])


def test_intervals_of_layers_and_of_correlations_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(1)
    held = {"mean": 0, "correlation": 0}
    for _ in range(200):
        _, low, high, _ = over(draw.normal(size=6))
        held["mean"] += low <= 0 <= high
        pairs = draw.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size=(3, 12))
        low, high = jackknife(lambda p: float(np.corrcoef(p.T)[0, 1]), pairs)[1:3]
        held["correlation"] += low <= 0.5 <= high
    assert held["mean"] >= 180
    assert held["correlation"] >= 180
