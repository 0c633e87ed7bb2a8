"""Moderated seed variances: what one row of a table tells of another, and how much it may."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from peftbench.report.stats import intervals, moderated
from peftbench.report.stats.intervals import Estimate, Scores


def estimate(variance: float, seeds: int = 3) -> Estimate:
    return Estimate(0.1, seeds, ((variance / seeds, seeds - 1),), examples=0)


def drawn(rows: int, df: float, prior_df: float, variance: float = 0.04) -> list[tuple[float, float]]:
    random = np.random.RandomState(0)
    sigma2 = prior_df * variance / random.chisquare(prior_df, rows)
    return list(zip(sigma2 * random.chisquare(df, rows) / df, np.full(rows, df), strict=True))


def test_a_moderated_variance_is_the_mean_of_own_and_prior_weighted_by_their_degrees_of_freedom() -> None:
    rows = [estimate(v) for v in (0.01, 0.02, 0.03, 0.05, 0.04)]
    prior = moderated.prior([(v, 2) for v in (0.01, 0.02, 0.03, 0.05, 0.04)])
    assert prior.df == 1.0  # a quarter of five rows less one
    logs = np.log([0.01, 0.02, 0.03, 0.05, 0.04])
    assert prior.variance == pytest.approx(math.exp(logs.mean() - digamma(1) + math.log(1)))
    ((variance, df),) = moderated.moderate(rows)[1].parts
    assert df == 3
    assert variance * 3 == pytest.approx((1 * prior.variance + 2 * 0.02) / 3)


def test_a_row_that_is_improbably_unstable_takes_less_from_the_others() -> None:
    rows = [estimate(v) for v in (*(0.01, 0.02, 0.03, 0.05, 0.04) * 3, 2.0)]
    usual, odd = (moderated.moderate(rows)[i].parts[0] for i in (0, -1))
    assert usual[1] > 3
    assert odd[1] == pytest.approx(2, abs=0.01)
    assert odd[0] * 3 == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("prior_df", [0.5, 1.2])
@pytest.mark.parametrize("df", [1, 4])
def test_the_degrees_of_freedom_of_a_prior_are_found_in_a_large_table(prior_df: float, df: float) -> None:
    assert moderated.prior(drawn(20_000, df, prior_df)).df == pytest.approx(prior_df, rel=0.1)


def test_rows_that_are_more_alike_than_the_cap_says_do_not_pass_it() -> None:
    assert moderated.prior(drawn(2_000, 2, 1e6)).df == moderated.MOST
    assert moderated.prior([(0.01, 2)] * 5).df == 1.0


def test_the_prior_of_rows_that_are_equal_is_their_variance_without_bias() -> None:
    """log chi^2 is biased; the mean of its exponential is put right by digamma."""
    found = moderated.prior(drawn(20_000, 1, 1e6, variance=0.04))
    assert found.variance == pytest.approx(0.04, rel=0.05)


def test_a_row_without_spread_gets_the_spread_of_others_and_says_nothing_of_theirs() -> None:
    rows = [estimate(v) for v in (0.0, 0.02, 0.03, 0.05, 0.04)]
    assert moderated.moderate(rows)[0].parts[0][0] > 0
    assert moderated.prior([(v, 2) for v in (0.0, 0.02, 0.03)]) == moderated.prior([(v, 2) for v in (0.02, 0.03)])


@pytest.mark.parametrize("rows", [[estimate(0.02)], [estimate(0.0), estimate(0.0)], [Estimate(0.1, 1, floor=0.1)], []])
def test_nothing_changes_where_no_row_tells_of_another(rows: list[Estimate]) -> None:
    assert moderated.moderate(rows) == rows


def test_rows_that_cannot_be_paired_are_moderated_among_themselves() -> None:
    random = np.random.RandomState(0)
    at = {range(3): 6, range(10, 13): 2}
    rows = [Scores(tuple(seeds), random.normal(0.8, 0.02, 3), None) for seeds, n in at.items() for _ in range(n)]
    base, others = rows[0], rows[1:]
    found = moderated.moderate([intervals.difference(s, base) for s in others])
    assert [len(e.parts) for e in found] == [1, 1, 1, 1, 1, 2, 2]
    assert all(df > 2 for e in found for _, df in e.parts)


@pytest.mark.parametrize("value", [1e-3, 0.1, 1.0, 50.0, 1e4])
def test_the_inverse_of_trigamma_is_its_inverse(value: float) -> None:
    assert polygamma(1, moderated._trigamma_inverse(value)) == pytest.approx(value, rel=1e-6)


def test_a_long_table_of_two_seeds_is_narrower_than_each_row_by_itself() -> None:
    random = np.random.RandomState(1)
    rows = [Scores((0, 1), random.normal(0.8, 0.02, 2), None) for _ in range(19)]
    own = [intervals.difference(s, rows[0]) for s in rows[1:]]
    level = 1 - 0.05 / 18
    widths = [sum(e.half(level) or 0.0 for e in some) for some in (moderated.moderate(own), own)]
    assert widths[0] < 0.15 * widths[1]
