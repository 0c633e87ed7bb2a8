"""The verdicts of the papers' figures follow their records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import factories
import pytest
from factories import write_all
from paper_records import flat, read, read_once, reproduced, roles_runs, trained
from scipy import stats

from peftbench.errors import UserError
from peftbench.report.papers import (
    EQUAL,
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    REPRODUCED,
    WITHIN,
    NotRun,
    Results,
    _build,
    equal_size,
    lora_latency,
    lora_plus_rates,
    lora_rank,
    lora_roles,
    lr_sensitivity,
    params_scores,
    prefix_length,
    qlora_memory,
    qlora_nf4,
)
from peftbench.report.papers._sweep import choose_rates, method

ROOT = Path(__file__).resolve().parents[2]


COMPARED = ("q", "q v", "q k v o")  # by the claims about roles


@pytest.fixture
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds are all that there are."""
    read_once(monkeypatch)


# Verdicts from synthetic records


@pytest.mark.usefixtures("one_look")
@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"q": 0.60}, REPRODUCED),
        ({"q": 0.79}, WITHIN),  # about the same
        ({"q": 0.95}, NOT_REPRODUCED),
        ({"q": 0.60, "q k v o": 0.70}, NOT_REPRODUCED),  # worse than q and v by far
    ],
)
def test_which_roles_follows_the_records(tmp_path: Path, changes: dict[str, float], verdict: str) -> None:
    bodies = roles_runs({**flat(0.8), **changes}, own=verdict == WITHIN)
    assert reproduced(lora_roles.FIGURE, tmp_path, bodies).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"dora": 0.92}, REPRODUCED),
        ({}, EQUAL),
        ({"dora": 0.92, "qlora": 0.70}, NOT_REPRODUCED),
        ({"dora": 0.92, "full": 0.98}, NOT_REPRODUCED),
    ],
)
def test_pairs_of_one_size_follow_the_records(tmp_path: Path, changes: dict[str, float], verdict: str) -> None:
    scores = {**dict.fromkeys(("full", "lora", "qlora", "dora"), 0.80), **changes}
    for folder in equal_size.FOLDERS:
        bodies = [
            trained(name, {}, score, seed, label=name, task=f"{folder}/{task}", errors=f"{seed}")
            for name, score in scores.items()
            for seed in range(3)
            for task in ("one", "two")
        ]
        write_all(tmp_path / folder, bodies)
    reproduction = equal_size.FIGURE.reproduce(Results(tmp_path))
    assert reproduction.verdict == verdict
    assert len(reproduction.claims) == 9


def test_a_pair_that_is_not_whole_is_not_compared(tmp_path: Path) -> None:
    for folder in equal_size.FOLDERS:
        write_all(
            tmp_path / folder, [trained(n, {}, 0.8, s, label=n) for n in ("full", "lora", "dora") for s in (0, 1)]
        )
    with pytest.raises(NotRun, match="no finished run of qlora"):
        equal_size.FIGURE.reproduce(Results(tmp_path))


def test_where_nothing_was_learned_nothing_is_claimed(tmp_path: Path) -> None:
    reproduction = reproduced(lora_roles.FIGURE, tmp_path, roles_runs(flat(0.24), majority=0.23))
    assert reproduction.verdict == NOT_COMPARABLE
    page = _build.page(_build.FigureResult(lora_roles.FIGURE, reproduction))
    assert f"| {REPRODUCED} |" not in page
    assert f"| {NOT_REPRODUCED} |" not in page


def test_roles_of_unequal_sizes_are_not_comparable(tmp_path: Path) -> None:
    bodies = roles_runs({**flat(0.8), "q": 0.6})
    bodies[0]["parameters"]["trainable"] = 2000
    assert "sizes differ" in str(reproduced(lora_roles.FIGURE, tmp_path, bodies).incomparable)


@pytest.mark.usefixtures("one_look")
@pytest.mark.parametrize(("low_rank", "verdict"), [(0.80, REPRODUCED), (0.60, NOT_REPRODUCED)])
def test_rank_follows_the_records(tmp_path: Path, low_rank: float, verdict: str) -> None:
    bodies = [
        trained(name, {"rank": rank}, (low_rank if rank == 1 else 0.8) + (0.1 if name == "dora" else 0), seed)
        for name in lora_rank.METHODS
        for rank in lora_rank.RANKS
        for seed in range(3)
    ]
    assert reproduced(lora_rank.FIGURE, tmp_path, bodies).verdict == verdict


@pytest.mark.usefixtures("one_look")
@pytest.mark.parametrize(("there", "verdict"), [(8, NOT_REPRODUCED), (7, REPRODUCED)])
def test_a_claim_asked_again_is_read_from_all_its_new_seeds_or_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, verdict: str
) -> None:
    monkeypatch.setattr(lora_rank, "NEW", range(3, 11))
    bodies = [
        trained(name, {"rank": rank}, 0.8, seed)
        for name in lora_rank.METHODS
        for rank in lora_rank.RANKS
        for seed in range(3)
    ]
    new = [
        trained("lora", {"rank": r}, s, 3 + n) for r, s in ((1, 0.6), (64, 0.8)) for n in range(there if r == 1 else 8)
    ]
    write_all(tmp_path / lora_rank.AGAIN, new)
    found = reproduced(lora_rank.FIGURE, tmp_path, bodies)
    assert found.claims[0].verdict == verdict
    assert {c.verdict for c in found.claims[1:3]} == {REPRODUCED}, "the others keep the seeds that they have"
    assert any("asked again of 8 new ones" in note for note in found.notes) == (there == 8)


@pytest.mark.usefixtures("one_look")
@pytest.mark.parametrize(
    ("there", "lr", "verdict"), [(8, 1e-3, NOT_REPRODUCED), (7, 1e-3, REPRODUCED), (8, 2e-3, REPRODUCED)]
)
def test_a_fall_asked_again_is_read_from_all_its_new_seeds_at_the_old_rate_or_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, lr: float, verdict: str
) -> None:
    monkeypatch.setattr(prefix_length, "NEW", range(3, 11))
    scores = dict(zip(prefix_length.LENGTHS, (0.60, 0.65, 0.7, 0.80, 0.75, 0.74, 0.70), strict=True))
    bodies = [trained("prefix", {"length": n}, s, seed) for n, s in scores.items() for seed in range(3)]
    new = [
        trained("prefix", {"length": length}, score, 3 + seed, lr)
        for length, score, seeds in ((10, 0.8, 8), (100, 0.9, there))
        for seed in range(seeds)
    ]
    write_all(tmp_path / prefix_length.AGAIN, new)
    rise, fall = reproduced(prefix_length.FIGURE, tmp_path, bodies).claims
    assert (rise.verdict, fall.verdict) == (REPRODUCED, verdict)


@pytest.mark.usefixtures("one_look")
@pytest.mark.parametrize(("longest", "verdict"), [(0.70, REPRODUCED), (0.90, NOT_REPRODUCED)])
def test_prefix_length_follows_the_records(tmp_path: Path, longest: float, verdict: str) -> None:
    scores = dict(zip(prefix_length.LENGTHS, (0.60, 0.65, 0.7, 0.80, 0.85, 0.84, longest), strict=True))
    bodies = [trained("prefix", {"length": n}, s, seed) for n, s in scores.items() for seed in range(3)]
    assert reproduced(prefix_length.FIGURE, tmp_path, bodies).verdict == verdict


def plus_runs(gain: float) -> list[dict[str, Any]]:
    """Equal rates reach 0.80, lambda 16 `gain` more, each with errors of its own."""
    return [
        trained(
            "lora_plus", {"ratio": b / a}, 0.8 + (gain if 15 < b / a < 17 else 0), seed, lr=a, errors=f"{a}{b}{seed}"
        )
        for a in lora_plus_rates.RATES
        for b in lora_plus_rates.RATES
        if b >= a
        for seed in range(3)
    ]


@pytest.mark.usefixtures("one_look")
@pytest.mark.parametrize(("gain", "verdict"), [(0.15, REPRODUCED), (0.0, WITHIN)])
def test_two_rates_follow_the_records(tmp_path: Path, gain: float, verdict: str) -> None:
    assert reproduced(lora_plus_rates.FIGURE, tmp_path, plus_runs(gain)).verdict == verdict


@pytest.mark.usefixtures("one_look")
def test_a_cell_where_a_seed_failed_is_shown_but_never_the_best(tmp_path: Path) -> None:
    bodies = plus_runs(0.15)
    lost = next(
        i for i, b in enumerate(bodies) if b["spec"]["method"]["hyper"]["ratio"] == 64 and b["spec"]["seed"] == 0
    )
    again = trained(
        "lora_plus", bodies[lost]["hyper"], 0.99, 0, lr=bodies[lost]["spec"]["train"]["lr"], status="diverged"
    )
    bodies[lost] = again
    for body in bodies:
        if body["slug"].rsplit("--", 1)[0] == again["slug"].rsplit("--", 1)[0] and body is not again:
            body["metrics"]["validation"]["accuracy"] = 1.0
    reproduction = reproduced(lora_plus_rates.FIGURE, tmp_path, bodies)
    assert any("1 diverged" in note for note in reproduction.notes)
    assert reproduction.verdict == REPRODUCED


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "verdict"), [(0.80, REPRODUCED), (0.60, NOT_REPRODUCED)])
def test_sizes_and_scores_follow_the_records_of_three_sweeps(tmp_path: Path, adapter: float, verdict: str) -> None:
    named = [(name, {"rank": 8}, 0.86) for name in ("lora", "dora", "vera")]
    named += [("prefix", {"length": 10}, 0.7), ("full", {}, 0.81), ("bitfit", {}, 0.7), ("layernorm", {}, 0.7)]
    named += [("ia3", {}, 0.7), ("linear_probe", {}, 0.6)]
    named += [("adapter", {"bottleneck": n, "placement": p}, adapter) for n in (8, 64) for p in ("houlsby", "parallel")]
    homes = {"lora": "paper/lora_rank", "dora": "paper/lora_rank", "prefix": "paper/prefix_length"}
    for name, hyper, score in named:
        bodies = [trained(name, hyper, score, seed, params=0 if name == "linear_probe" else 1000) for seed in range(3)]
        write_all(tmp_path / homes.get(name, "paper/params_scores"), bodies)
    reproduction = params_scores.FIGURE.reproduce(Results(tmp_path))
    assert reproduction.verdict == verdict
    assert list(_build.image(_build.FigureResult(params_scores.FIGURE, reproduction)))


def test_runs_of_different_budgets_are_not_put_on_one_axis(tmp_path: Path) -> None:
    bodies = roles_runs({**flat(0.8), "q": 0.6})
    for b in bodies[-3:]:
        b["spec"]["train"]["steps"] = 80
        b.update(factories.with_ids(b))
    with pytest.raises(NotRun, match=r"steps: 40 or 80\)"):
        reproduced(lora_roles.FIGURE, tmp_path, bodies)


def sweep(rates: dict[str, list[float]], best: dict[str, float], seeds: int) -> list[dict[str, Any]]:
    return [
        trained(name, {}, 0.8 - 0.1 * (rate != best[name]), seed, lr=rate)
        for name, tried in rates.items()
        for rate in tried
        for seed in range(seeds)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "verdict"), [(2e-3, REPRODUCED), (2e-4, NOT_REPRODUCED), (8e-3, WITHIN)], ids=["ten", "one", "edge"]
)
def test_the_best_rates_ratio_is_known_as_far_as_the_grid_tells(tmp_path: Path, lora: float, verdict: str) -> None:
    rates = {"full": [1e-4, 2e-4, 4e-4], "lora": [1e-4, 2e-4, 4e-4, 1e-3, 2e-3, 4e-3, 8e-3]}
    for folder in lr_sensitivity.FOLDERS[1:]:
        write_all(tmp_path / folder, sweep(rates, {"full": 2e-4, "lora": lora}, 1))
    with pytest.raises(NotRun, match="lr_sensitivity"):  # one seed says nothing of the variants, the paper's own claim
        lr_sensitivity.FIGURE.reproduce(Results(tmp_path))
    own = {**rates, **dict.fromkeys(lr_sensitivity.VARIANTS, rates["lora"])}
    best = {"full": 2e-4, **dict.fromkeys(("lora", *lr_sensitivity.VARIANTS), lora)}
    write_all(tmp_path / lr_sensitivity.OWN, sweep(own, best, 3))
    claims = lr_sensitivity.FIGURE.reproduce(Results(tmp_path)).claims
    ratios = [c for c in claims if "ten times" in c.says]
    assert {c.verdict for c in ratios} == {verdict}
    assert (len(ratios), len(claims)) == (1, 1 + len(lr_sensitivity.VARIANTS))


def test_a_rate_that_is_not_surely_worse_may_be_the_best(tmp_path: Path) -> None:
    """Three rates: the second has the best mean, the third is as good in most seeds, the first is worse in all."""
    scores = {1e-3: (0.60, 0.61, 0.60), 2e-3: (0.80, 0.81, 0.80), 4e-3: (0.79, 0.82, 0.79), 8e-3: (0.50, 0.51, 0.50)}
    bodies = [
        trained("lora", {}, score, seed, lr=rate, validation=score)
        for rate, of_seeds in scores.items()
        for seed, score in enumerate(of_seeds)
    ]
    runs = read(tmp_path, bodies)
    known = lr_sensitivity._known(choose_rates(runs, method)["lora"], runs, 3)
    assert known == pytest.approx((math.sqrt(1e-3 * 2e-3), math.sqrt(4e-3 * 8e-3)))


def test_what_the_claims_compare_may_go_on_without_the_others(tmp_path: Path) -> None:
    """Beyond the seeds that all have, only what the claims compare runs; it stays chosen, and a note says so."""
    scores = {**flat(0.8), "q": 0.60}
    runs = [
        r for r in roles_runs(scores, 40) if r["spec"]["seed"] < 3 or r["spec"]["method"]["hyper"]["roles"] in COMPARED
    ]
    found = reproduced(lora_roles.FIGURE, tmp_path, runs)
    assert found.verdict == REPRODUCED
    assert "went on to more seeds" in " ".join(found.notes)
    assert "looks into account" in " ".join(found.notes)


# Figures that are not sweeps


def nf4_file(root: Path, **errors: float) -> None:
    names = {"int4": 34.34, "fp4-e2m1": 31.07, "fp4-bitsandbytes": 31.07, "fp4-e3m0": 29.48, "nf4": 27.41}
    row = {"what": "made up", "weights": 64, "tensors": 1}
    usual = {n: p / 240 for n, p in names.items()}  # in the paper's order
    both = {n: {"float32": errors.get(n.replace("-", "_"), usual[n]), "double": 0.12} for n in names}
    rows = [{**row, "source": s, "error": both} for s in ("normal", "minilm-l6")]
    content = {"block": 64, "types": {n: {"label": n, "paper_perplexity": p} for n, p in names.items()}, "rows": rows}
    path = root / qlora_nf4.FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("nf4", "verdict"), [(0.09, REPRODUCED), (0.13, NOT_REPRODUCED)])
def test_nf4_is_judged_by_its_error(tmp_path: Path, nf4: float, verdict: str) -> None:
    nf4_file(tmp_path, nf4=nf4)
    assert qlora_nf4.FIGURE.reproduce(Results(tmp_path)).verdict == verdict


def memory_file(root: Path, **peaks: float) -> None:
    parts = dict.fromkeys(qlora_memory.PARTS, 10**9)
    rows = [
        {"name": name, "peak_bytes": 1e9 * peaks.get(name.replace("llama-", "m").replace(" ", "_"), 30), "trainable": 1,
         "at_peak": {**parts, "weights": 5.0e9, "adapter": 10**7}, "setting": {"batch": 1, "seq": 512, "dtype": "bf16"},
         "hyper": {"rank": 64}, "assumed": {"device": "not verified on a GPU"}}
        for name in (*qlora_memory.MAIN, qlora_memory.SMALL, qlora_memory.UNCHECKED)
    ]  # fmt: skip
    path = root / qlora_memory.FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"bits_per_weight": {"float32": 4.5, "double": 4.127}, "rows": rows}))


@pytest.mark.parametrize(("qlora", "verdict"), [(45, REPRODUCED), (47.9, WITHIN), (52, NOT_REPRODUCED)])
def test_memory_is_judged_by_the_papers_totals(tmp_path: Path, qlora: float, verdict: str) -> None:
    memory_file(tmp_path, m65b_full=1000, m65b_qlora=qlora)
    reproduction = qlora_memory.FIGURE.reproduce(Results(tmp_path))
    assert reproduction.verdict == verdict
    assert "not measured" in reproduction.scale


def test_a_damaged_file_of_figures_is_refused_by_name(tmp_path: Path) -> None:
    nf4_file(tmp_path)
    (tmp_path / qlora_nf4.FILE).write_text("{")
    with pytest.raises(UserError, match=r"nf4_error\.json"):
        qlora_nf4.FIGURE.reproduce(Results(tmp_path))


def test_latencies_are_judged_by_their_ratios_to_the_base() -> None:
    """The committed pass itself: what the page says of it follows from its numbers."""
    reproduction = _build.known()["lora_latency"].reproduce(Results(ROOT / "results"))
    by_shape = {row[0]: row[1:] for row in reproduction.table.rows}
    assert set(by_shape) >= {"lora", "lora, merged", "adapter-houlsby"}
    assert all(math.isfinite(c.low) and c.low <= c.value <= c.high for c in reproduction.claims)


def test_a_trend_over_shapes_is_judged_within_each_process() -> None:
    """Student's interval of the differences, recomputed from the files."""
    folder = ROOT / "results" / lora_latency.FOLDER / "runs"
    gaps = []
    for body in (json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))):
        (row,) = (row for row in body["rows"] if row["label"] == "adapter-pfeiffer")
        ratios = {
            (at["batch"], at["length"]): at["unmerged"]["ratio"]["median"]
            for at in row["latency"]
            if at["phase"] == "forward" and not at["typical"]
        }
        gaps.append(100 * (ratios[1, 32] - ratios[32, 128]))
    (claim,) = (
        c
        for c in lora_latency.FIGURE.reproduce(Results(ROOT / "results")).claims
        if c.says.startswith("adapter-pfeiffer slows the smallest pass more")
    )
    expected = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert (claim.low, claim.high) == pytest.approx((expected.low, expected.high))
