"""One-sided tests and equivalence within a margin: against scipy, statsmodels and the intervals that they come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from peftbench.report.stats import equivalence, intervals
from peftbench.report.stats.equivalence import p_above, p_within
from peftbench.report.stats.intervals import Estimate, Scores

FEW = ([0.70, 0.74, 0.69, 0.78], [0.66, 0.72, 0.70, 0.71])


def scores(values) -> Scores:
    return Scores(tuple(range(len(values))), np.array(values, dtype=float), None)


def with_examples(seeds: int = 3, n: int = 200) -> Estimate:
    rng = np.random.RandomState(0)
    right = (rng.normal(0.5, 1, n) + rng.normal(0, 1, (2, seeds, n)) > 0).astype(float)
    return intervals.of_examples(right[0] - right[1])


@pytest.mark.parametrize("bound", [-0.1, -0.02, 0.0, 0.02, 0.03, 0.04, 0.1, 0.5])
def test_with_seeds_alone_it_is_students_one_sided_test(bound):
    a, b = FEW
    oracle = stats.ttest_1samp(np.subtract(a, b), bound, alternative="greater").pvalue
    assert p_above(intervals.difference(scores(a), scores(b)), bound) == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("margin", [1e-6, 0.005, 0.03, 0.06, 0.1, 1.0])
@pytest.mark.parametrize("gap", [-0.1, 0.0, 0.03])
def test_with_seeds_alone_equivalence_is_that_of_two_paired_t_tests(margin, gap):
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    a, b = np.array(FEW[0]) + gap, np.array(FEW[1])
    oracle = weightstats.ttost_paired(a, b, -margin, margin)[0]
    assert p_within(intervals.difference(scores(a), scores(b)), margin) == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_equivalence_holds_at_alpha_from_the_margin_on_that_holds_the_interval_at_1_minus_2_alpha(level):
    """So also where test examples widen the interval, and for one trained network on each side."""
    for e in (with_examples(), with_examples(seeds=1)):
        reach = max(abs(end) for end in e.interval(level))
        assert p_within(e, reach) == pytest.approx((1 - level) / 2, rel=1e-6)
        assert p_within(e, 1.01 * reach) < (1 - level) / 2 < p_within(e, 0.99 * reach)


def test_above_a_bound_and_below_it_share_out_one():
    e = with_examples()
    for bound in (-0.5, -0.01, 0.0, e.value, 0.3):
        assert p_above(e, bound) + p_above(e.negative(), -bound) == pytest.approx(1)
    assert p_above(e, e.value) == pytest.approx(0.5)


def test_a_wider_margin_is_never_harder_to_keep():
    e = with_examples()
    found = [p_within(e, margin) for margin in (1e-9, 0.01, 0.05, 0.1, 0.2, 1.0, 10.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] >= 0.5  # no data show a difference of exactly 0
    assert 0 <= found[-1] < 1e-3


def test_equivalence_does_not_depend_on_the_side_from_which_one_looks():
    e = with_examples()
    assert p_within(e, 0.1) == p_within(e.negative(), 0.1)
    assert e.negative().negative() == e
    assert (e.negative().se, e.negative().p) == (e.se, e.p)
    assert e.negative().interval() == pytest.approx([-end for end in reversed(e.interval())])


def test_what_has_no_known_uncertainty_has_no_p_value():
    for e in (Estimate(0.1, 1), Estimate(0.0, 2, ((0.0, 1),))):
        assert p_above(e, 0.0) is None
        assert p_within(e, 0.5) is None


def test_equivalence_is_claimed_falsely_in_at_most_5_percent_where_the_true_difference_is_the_margin():
    rng = np.random.RandomState(0)
    claimed = [p_within(intervals.difference(scores(d), scores(0 * d)), 0.05) < 0.05
               for d in rng.normal(0.05, 0.01, (400, 3))]  # fmt: skip
    assert np.mean(claimed) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean(claimed) > 0.02


@pytest.mark.parametrize("level", [0.3, 0.05, 1e-4])
@pytest.mark.parametrize("value", [-0.03, 0.0, 0.01, 0.02, 0.05, 0.2])
def test_what_is_surely_above_is_what_has_a_small_p_value(value: float, level: float) -> None:
    e = Estimate(value, 4, ((1e-4, 3),), shared=2e-5, floor=3e-5, examples=200)
    p = equivalence.p_above(e, 0.015)
    assert p is not None
    assert equivalence.is_above(e, 0.015, level) == (p < level)
