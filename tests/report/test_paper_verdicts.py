"""The verdicts of the papers' figures follow their records; how rates are chosen, and what the intervals are worth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
from factories import as_trial, write_all
from paper_records import flat, read_once, reproduced, roles_runs, trained
from scipy import stats

from peftbench.errors import UserError
from peftbench.report.papers import (
    EQUAL,
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    REPRODUCED,
    WITHIN,
    Claim,
    NotRun,
    Reproduction,
    Results,
    Table,
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
from peftbench.report.papers._interval import around, difference, mean
from peftbench.report.papers._interval import of as interval_of
from peftbench.report.papers._sweep import choose_rates, lr, method
from peftbench.report.stats.intervals import LEVEL

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


# How rates are chosen, and what intervals are worth


def read(root: Path, bodies: list[dict[str, Any]]) -> list[Any]:
    write_all(root / "x", bodies)
    return Results(root).runs("x")


def test_the_rate_is_chosen_on_validation_and_not_on_test(tmp_path: Path) -> None:
    bodies = [trained("lora", {"rank": 1}, 0.9, lr=1e-3, validation=0.5)]
    bodies += [trained("lora", {"rank": 1}, 0.6, lr=1e-2, validation=0.7)]
    chosen = choose_rates(read(tmp_path, bodies), method)["lora"]
    assert (chosen.lr, chosen.test) == (1e-2, 0.6)


def test_a_rate_at_which_a_seed_failed_is_not_chosen(tmp_path: Path) -> None:
    bodies = [trained("lora", {}, 0.6, seed, lr=1e-3) for seed in range(2)]
    bodies += [trained("lora", {}, 0.9, 0, lr=1e-2), trained("lora", {}, 0.9, 1, lr=1e-2, status="diverged")]
    assert choose_rates(read(tmp_path, bodies), method)["lora"].lr == 1e-3


def test_tuning_trials_are_left_out(tmp_path: Path) -> None:
    trial = as_trial(trained("lora", {}, 0.9, lr=1e-2), 0)
    assert [lr(r) for r in read(tmp_path, [trial, trained("lora", {}, 0.6, lr=1e-3)])] == [1e-3]


def test_a_difference_is_paired_by_seed_and_example(tmp_path: Path) -> None:
    """Two configurations that err on the same examples differ by nothing, however uncertain each of them is."""
    errors = {1: "same", 2: "same", 3: "own"}
    bodies = [trained("lora", {"rank": r}, 0.8, s, errors=f"{errors[r]} {s}") for r in errors for s in range(3)]
    one, two, three = (t.runs for t in choose_rates(read(tmp_path, bodies), lambda r: r.body.hyper["rank"]).values())
    assert difference(one, two)[:3] == (0, 0, 0)
    assert mean(one).low < 0.78
    apart = difference(one, three)
    assert apart.value == 0
    assert apart.low < -0.02 < 0.02 < apart.high


def test_one_seed_says_nothing_of_others(tmp_path: Path) -> None:
    assert mean(read(tmp_path, [trained("lora", {}, 0.8)])) == (0.8, -math.inf, math.inf, None)


def test_more_claims_make_wider_intervals_and_no_other_digits(tmp_path: Path) -> None:
    runs = read(tmp_path, [trained("lora", {}, 0.8, seed) for seed in range(3)])
    alone, among = mean(runs), mean(runs, claims=6)
    assert among.low < alone.low < alone.high < among.high
    assert mean(runs) == alone


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """2,000 times a true accuracy of 0.7, 3 seeds with their own luck, 100 examples with their own difficulty."""
    draw = np.random.default_rng(1)
    hits, widths = 0, []
    for _ in range(2000):
        level = 0.7 + 0.03 * draw.standard_normal((3, 1)) + 0.15 * draw.standard_normal((1, 100))
        i = interval_of((draw.random((3, 100)) < level).astype(float))
        hits += i.low <= 0.7 <= i.high
        widths.append(i.high - i.low)
    assert hits / 2000 >= 0.945
    assert np.median(widths) < 0.35  # not by saying nothing


def test_predictions_that_contradict_the_stored_score_are_an_error(tmp_path: Path) -> None:
    body = trained("lora", {}, 0.8)
    body["metrics"]["test"]["accuracy"] = 0.9
    with pytest.raises(ValueError, match="predictions have accuracy"):
        mean(read(tmp_path, [body]))


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


# What an interval decides, and how many seeds it would take


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 5.0, REPRODUCED),
        (-5.0, -0.1, NOT_REPRODUCED),
        (-1.9, 1.9, EQUAL),
        (-2.1, 1.9, WITHIN),
        (-1.9, 2.1, WITHIN),
    ],
)
def test_a_gain_that_is_asked_for_may_be_there_or_not_or_be_none_worth_having(
    low: float, high: float, verdict: str
) -> None:
    assert Claim("a beats b", "+1", (low + high) / 2, low, high, above=0, equal=(-2, 2)).verdict == verdict


def test_a_claim_without_a_margin_is_never_equal() -> None:
    assert Claim("a beats b", "+1", 0, -0.1, 0.1, above=0).verdict == WITHIN


def test_a_figure_with_an_equal_and_a_reproduced_claim_is_equal_and_with_an_open_one_open() -> None:
    seen, equal = Claim("a", "", 1, 0.5, 1.5, above=0), Claim("b", "", 0, -1, 1, above=0, equal=(-2, 2))
    open_ = Claim("c", "", 0, -3, 3, above=0, equal=(-2, 2))

    def verdict(*claims: Claim) -> str:
        return Reproduction("", claims, Table((), ()), lambda canvas: None).verdict

    assert verdict(seen, equal) == EQUAL
    assert verdict(seen, equal, open_) == WITHIN


@pytest.mark.parametrize(("gain", "verdict"), [(0.02, REPRODUCED), (-0.02, NOT_REPRODUCED), (0.002, EQUAL)])
def test_the_seeds_that_a_claim_asks_for_decide_it_if_nothing_else_changes(gain: float, verdict: str) -> None:
    """Seeds that lie far apart: four leave it open, as many as are asked for decide it, fewer do not."""

    def claim(seeds: int) -> Claim:
        apart = np.where(np.arange(seeds) % 2, 1.0, -1.0) * math.sqrt((seeds - 1) / seeds) / 50  # of one variance
        x = np.repeat(gain + apart[:, None], 400, 1) + np.tile([0.01, -0.01], 200)
        return Claim("a beats b", "", *interval_of(x), above=0, equal=(-0.015, 0.015))

    asked = claim(4).seeds
    assert claim(4).verdict == WITHIN
    assert asked is not None
    assert (claim(asked - asked % 2 - 2).verdict, claim(asked + asked % 2).verdict) == (WITHIN, verdict)
    assert claim(asked + asked % 2).seeds is None


def test_a_claim_that_was_looked_at_several_times_has_a_wider_interval() -> None:
    """Pocock's bounds for six looks are about those of four claims more for each claim; one look costs nothing."""
    e = interval_of(np.random.default_rng(0).normal(size=(20, 50))).half_at

    def claims(*looks: int) -> float:
        assert e
        half_at = around(e.estimate, 9, looks, "pocock").half_at
        assert half_at is not None
        return (1 - LEVEL) / (1 - half_at.level(20))

    assert claims() == pytest.approx(9)
    assert claims(20) == pytest.approx(9)
    assert 20 < claims(3, 5, 8, 12, 20, 30) < 54  # 54 would be Bonferroni over six looks


def test_early_looks_at_a_claim_decide_next_to_nothing_and_the_last_pays_little_for_them() -> None:
    x = np.random.default_rng(0).normal(size=(40, 50))
    early, last, once = interval_of(x[:16], 3, (3, 16, 40)), interval_of(x, 3, (3, 16, 40)), interval_of(x, 3)
    alone = interval_of(x[:16], 3)
    assert early.high - early.low > 1.5 * (alone.high - alone.low)
    assert once.high - once.low < last.high - last.low < 1.02 * (once.high - once.low)


def test_an_open_claim_asks_for_the_seeds_that_decide_it_at_the_look_they_reach() -> None:
    x = np.repeat(np.where(np.arange(20) % 2, 0.03, -0.03)[:, None], 400, 1) + np.tile([0.01, -0.01], 200)
    claim = Claim("a is b's equal", "", *interval_of(x, 3, (3, 20, 40)), above=-0.015, below=0.015)
    assert claim.verdict == WITHIN  # though 20 seeds would decide it if nobody looked before the last
    assert Claim("the same", "", *interval_of(x, 3), above=-0.015 * 1.5, below=0.015 * 1.5).verdict == REPRODUCED
    assert claim.seeds is not None
    assert claim.seeds >= 40


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
