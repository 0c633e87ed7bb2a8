"""Intervals, p-values, ranks and Pareto fronts: against closed forms, scipy, published examples and plain reasoning."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from peftbench.report.data.pareto import on_front
from peftbench.report.stats import intervals, power, ranks
from peftbench.report.stats.intervals import Estimate, Scores


def scores(values, seeds=None, influences=None, grain=0.0):
    values = np.array(values, dtype=float)
    return Scores(tuple(seeds or range(len(values))), values, influences, grain)


def drawn(right, seeds=None):
    """Scores of (S, n) zeros and ones."""
    right = np.array(right, dtype=float)
    return scores(right.mean(1), seeds, right - right.mean(1, keepdims=True))


def random_runs(seeds=3, n=200, seed=0, shift=0.0):
    rng = np.random.RandomState(seed)
    return (rng.normal(0, 1, n) + rng.normal(0, 1, (seeds, n)) + 0.8 + shift > 0).astype(float)


def test_with_seeds_alone_it_is_students_interval():
    values = [0.70, 0.74, 0.69, 0.78]
    found = intervals.mean(scores(values))
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found.interval() == pytest.approx(expected)


def test_with_seeds_alone_a_paired_difference_is_students_test():
    a, b = [0.70, 0.74, 0.69], [0.66, 0.72, 0.68]
    found = intervals.difference(scores(a), scores(b))
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-6)


def test_the_p_value_is_where_the_interval_touches_zero():
    found = intervals.difference(drawn(random_runs()), drawn(random_runs(seed=1, shift=0.3)))
    assert 0 < found.p < 1
    assert found.half(1 - found.p) == pytest.approx(abs(found.value), rel=1e-6)


def test_one_seed_has_the_examples_interval_and_says_that_it_is_of_the_run():
    right = random_runs(seeds=1)
    found = intervals.mean(drawn(right))
    assert found.is_of_runs
    assert found.half() == pytest.approx(stats.t.ppf(0.975, 199) * right.std(ddof=1) / math.sqrt(200))


def test_many_seeds_leave_the_variance_of_the_examples_they_share():
    """Seeds that are right on the same examples: more of them do not narrow what the examples leave open."""
    rng = np.random.RandomState(0)
    easy = rng.normal(0, 1, 300)
    right = (easy + 0.1 * rng.normal(0, 1, (200, 300)) > 0).astype(float)
    found = intervals.mean(drawn(right))
    share = right.mean(0)
    assert found.half() == pytest.approx(1.968 * math.sqrt(share.var(ddof=1) / 300), rel=0.02)
    assert found.half() > 5 * intervals.mean(scores(right.mean(1))).half()


def test_seeds_that_agree_by_chance_do_not_make_an_interval_of_no_width():
    right = random_runs(seeds=2)
    right[1] = np.roll(right[0], 1)  # the same score, on other examples
    found = intervals.mean(drawn(right))
    assert found.parts[0][0] == 0
    assert found.half() >= stats.t.ppf(0.975, 199) * math.sqrt(found.floor) > 0


def test_pairing_by_seed_and_example_removes_what_both_share():
    rng = np.random.RandomState(0)
    easy, luck = rng.normal(0, 2, 400), rng.normal(0, 1, (3, 1))
    a, b = (drawn(easy + luck + 0.2 * rng.normal(0, 1, (3, 400)) > 0) for _ in range(2))
    apart = Scores((7, 8, 9), b.values, b.influences)
    assert intervals.difference(a, b).half() < intervals.difference(a, apart).half() / 3


def test_without_a_common_seed_the_examples_still_pair():
    a, b = drawn(random_runs()), drawn(random_runs(), seeds=(7, 8, 9))
    found = intervals.difference(a, b)
    assert found.shared == 0.0  # the same runs under other seeds: the examples cancel out
    (v, df), other = found.parts
    assert (v, df) == pytest.approx((a.values.var(ddof=1) / 3, 2))
    assert other == (v, df)


def test_a_failed_seed_is_left_out_on_both_sides():
    a, b = scores([0.5, 0.6, 0.9], (0, 1, 2)), scores([0.4, 0.6], (0, 2))
    assert intervals.difference(a, b).value == pytest.approx((0.1 + 0.3) / 2)


def test_a_ratio_is_over_the_seeds_that_both_sides_ran():
    a, b = scores([0.5, 0.6, 0.9], (0, 1, 2)), scores([0.4, 0.6], (0, 2))
    assert intervals.ratio(a, b).value == pytest.approx((0.5 + 0.9) / (0.4 + 0.6))
    apart = intervals.ratio(scores([0.5, 0.7], (0, 1)), scores([0.4, 0.6], (7, 8)))
    assert apart.value == pytest.approx(1.2 / 1.0), "without a common seed all count"


def test_a_ratio_varies_as_its_logarithm():
    a, b = scores([0.70, 0.74, 0.69, 0.72]), scores([0.66, 0.72, 0.64, 0.70])
    found = intervals.ratio(a, b)
    logs = np.log(a.values / b.values)
    assert found.value == pytest.approx(a.values.mean() / b.values.mean())
    assert found.half() / found.value == pytest.approx(stats.t.ppf(0.975, 3) * stats.sem(logs), rel=0.02)
    assert intervals.inverse(found).half() * found.value == pytest.approx(found.half() / found.value, rel=1e-9)
    assert intervals.ratio(a, scores([-0.1, 0.1, 0.0, 0.0])) is None


def test_an_average_over_tasks_is_narrower_than_each_and_unknown_with_one_unknown():
    one = intervals.mean(drawn(random_runs()))
    assert intervals.average([one] * 4).half() == pytest.approx(one.half() / 2)
    assert intervals.average([one, Estimate(0.5, 1)]) is None


def test_nothing_is_claimed_where_nothing_is_known():
    for unknown in (intervals.mean(scores([0.5])), intervals.mean(scores([0.5, 0.5]))):
        assert (unknown.half(), unknown.interval(), unknown.p) == (None, None, None)


def test_holm_is_holms():
    """His adjustment by hand: sorted p times 3, 2, 1, never falling, at most 1."""
    assert intervals.holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]


def test_wilson_is_scipys():
    for wins, n in ((0, 3), (2, 3), (17, 40)):
        expected = stats.binomtest(wins, n).proportion_ci(method="wilson")
        assert intervals.wilson(wins / n, n) == pytest.approx((expected.low, expected.high))


def test_the_probability_to_be_better_counts_seeds_and_halves_ties():
    a, b = scores([0.5, 0.6, 0.7]), scores([0.4, 0.6, 0.8])
    assert intervals.wins(a, b)[0] == pytest.approx(0.5)
    assert intervals.wins(a, b, -1)[0] == pytest.approx(0.5)
    apart = scores([0.4, 0.6, 0.8], (7, 8, 9))
    assert intervals.wins(a, apart)[0] == pytest.approx((1 + 1.5 + 2) / 9)


def test_the_level_holds_whatever_the_shares_of_seeds_and_examples():
    """Normal scores with known parts: V1 estimated with 2 degrees of freedom beside a V2 that is known."""
    rng = np.random.RandomState(0)
    for share in (0.02, 0.3, 0.7, 1.0):
        z = rng.normal(0, 1, 40_000)
        v1 = share * rng.chisquare(2, 40_000) / 2
        half = [Estimate(0.0, 3, ((v, 2),), 1 - share, 0.0, 10**6).half() for v in v1[:4000]]
        assert np.mean(np.abs(z[:4000]) > half) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 4000)


# How much it would take


def test_more_seeds_are_asked_for_the_smaller_the_difference():
    spread = power.VarianceComponents(seed=4e-4, shared=1e-6, examples=400)
    asked = [spread.seeds_for(size) for size in (0.1, 0.05, 0.02)]
    assert asked == sorted(asked)
    assert asked[0] < asked[2]


def test_what_is_asked_for_sees_the_difference_in_four_cases_of_five():
    spread = power.VarianceComponents(seed=4e-4, shared=0.0, examples=0)
    n = spread.seeds_for(0.02)
    rng = np.random.RandomState(0)
    d = rng.normal(0.02, 0.02, (4000, n))
    t = d.mean(1) / (d.std(1, ddof=1) / math.sqrt(n))
    assert np.mean(t > stats.t.ppf(0.975, n - 1)) == pytest.approx(0.8, abs=0.06)


def test_where_the_examples_are_too_few_no_number_of_seeds_is_given():
    spread = power.VarianceComponents(seed=4e-4, shared=4e-4, examples=250)
    assert spread.seeds_for(0.02) is None
    assert spread.examples_for(0.02) == pytest.approx(250 * 7.849, rel=1e-3)


# Ranks

DEMSAR = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970
"""


def test_ranks_of_four_classifiers_on_fourteen_tasks_are_demsars():
    """Demsar 2006, table 6: C4.5, C4.5+m, C4.5+cf, C4.5+m+cf; mean ranks, chi2 and CD at 5 % as printed there.

    Its ranks know more digits than it prints: of two 0.975 the first is the better one.
    """
    found = ranks.of(["C4.5", "+m", "+cf", "+m+cf"], np.array([r.split() for r in DEMSAR.split("\n") if r], float))
    assert found.mean_ranks == pytest.approx((3.143, 2.000, 2.893, 1.964), abs=5e-4)
    assert found.critical == pytest.approx(1.25, abs=5e-3)
    uncorrected = 12 * 14 / (4 * 5) * sum((r - 2.5) ** 2 for r in found.mean_ranks)
    assert uncorrected == pytest.approx(9.28, abs=5e-3)  # as printed: without the correction for ties
    assert found.chi2 > uncorrected
    assert found.differ


def test_friedmans_statistic_is_scipys_and_its_p_is_near():
    rng = np.random.RandomState(0)
    table = rng.normal(0, 1, (25, 5)) + np.linspace(0, 0.6, 5)
    found = ranks.of(list("abcde"), table)
    expected = stats.friedmanchisquare(*table.T)
    assert found.chi2 == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue, abs=0.01)


def test_groups_are_the_largest_sets_within_one_critical_difference():
    found = ranks.Ranking(tuple("abcd"), 20, (1.0, 1.8, 2.6, 4.0), 30.0, 0.001, 1.0)
    assert found.groups == [("a", "b"), ("b", "c")]
    assert "worse than a are c, d" in found.sentence


def test_too_few_tasks_are_said_and_not_drawn():
    two = np.array([[3.0, 2.0, 1.0]] * 2)
    found = ranks.of(list("abc"), two)
    assert found.too_few_tasks
    need = int(found.sentence.split("test needs ")[1].split(")")[0])
    assert ranks.of(list("abc"), np.repeat(two[:1], need - 1, 0)).too_few_tasks
    assert not ranks.of(list("abc"), np.repeat(two[:1], need, 0)).too_few_tasks


def test_alike_configurations_are_one_group_whatever_their_ranks():
    found = ranks.Ranking(tuple("abc"), 30, (1.7, 2.0, 2.3), 2.0, 0.4, 0.3)
    assert found.groups == [("a", "b", "c")]
    assert "no difference" in found.sentence


# Pareto fronts


def test_on_the_front_is_who_is_not_beaten_in_both():
    quality = np.array([[0.9, 0.8, 0.8, 0.7, 0.9]])
    costs = np.array([[5.0, 3.0, 4.0, 1.0, 5.0]])
    assert on_front(quality, costs).tolist() == [[True, True, False, True, True]]


def test_seeds_whose_differences_are_equal_but_for_rounding_have_no_spread():
    """0.81 - 0.71 and 0.82 - 0.72 differ by 1e-16, which is no evidence of a narrow interval."""
    found = intervals.difference(scores([0.81, 0.82, 0.80]), scores([0.71, 0.72, 0.70]))
    assert found.parts == ((0.0, 2),)
    assert (found.is_known, found.interval(), found.p) == (False, None, None)
    assert intervals.mean(scores([0.8, 0.8, 0.8])).interval() is None
    assert intervals.difference(scores([1e-9, 2e-9]), scores([3e-9, 1e-9])).is_known
