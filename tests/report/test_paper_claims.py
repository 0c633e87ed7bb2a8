"""What a claim about a paper's figure rests on: rates chosen on validation, intervals, and the seeds they ask for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from factories import as_trial
from paper_records import read, trained

from peftbench.report.papers import EQUAL, NOT_REPRODUCED, REPRODUCED, WITHIN, Claim, Reproduction, Table
from peftbench.report.papers._interval import around, difference, mean
from peftbench.report.papers._interval import of as interval_of
from peftbench.report.papers._sweep import choose_rates, lr, method
from peftbench.report.stats.intervals import LEVEL

# How rates are chosen, and what intervals are worth


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
