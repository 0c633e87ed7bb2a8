"""Where two curves cross: the estimate, and a confidence set that holds the true crossing as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peftbench.report.stats import intervals
from peftbench.report.stats.crossings import crossings
from peftbench.report.stats.intervals import Scores

SIZES = (100.0, 300.0, 1000.0, 3000.0)


def around(differences: list[float], half: float) -> list[tuple[float, float]]:
    return [(d - half, d + half) for d in differences]


def test_a_crossing_lies_where_the_line_in_the_logarithm_is_zero_and_its_set_where_the_intervals_hold_zero() -> None:
    found = crossings((10, 1000), [-0.02, 0.02], around([-0.02, 0.02], 0.01))
    assert found.estimates == pytest.approx((100,))
    assert found.parts == (pytest.approx((10**1.5, 10**2.5)),), "where the line is within 0.01 of 0"
    assert not any(found.is_open(end) for end in found.parts[0])


def test_a_set_is_open_where_the_ends_of_the_range_are_undecided() -> None:
    differences = [0.001, 0.002, 0.03, 0.04]
    found = crossings(SIZES, differences, around(differences, 0.01))
    assert (found.estimates, len(found.parts)) == ((), 1)
    first, last = found.parts[0]
    assert found.is_open(first)
    assert 300 < last < 1000


def test_curves_that_are_surely_apart_cross_nowhere_and_that_touch_twice_have_two_parts() -> None:
    apart = [0.05, 0.04, 0.03, 0.02]
    assert crossings(SIZES, apart, around(apart, 0.01)).parts == ()
    twice = [0.05, -0.05, 0.05, 0.06]
    found = crossings(SIZES, twice, around(twice, 0.01))
    assert len(found.estimates) == len(found.parts) == 2
    assert all(low < estimate < high for estimate, (low, high) in zip(found.estimates, found.parts, strict=True))


def test_parts_that_touch_at_a_tested_value_are_one() -> None:
    differences = [-0.05, 0.0, 0.05, 0.06]
    found = crossings(SIZES, differences, around(differences, 0.01))
    assert found.estimates == (300.0,)
    assert len(found.parts) == 1


def test_equal_curves_have_no_crossing_and_the_whole_range_as_its_set() -> None:
    found = crossings(SIZES, [0.0] * 4, around([0.0] * 4, 0.01))
    assert (found.estimates, found.parts) == ((), ((100.0, 3000.0),))


def test_one_tested_value_gives_no_estimate() -> None:
    assert crossings((50,), [0.1], [(-0.1, 0.3)]).parts == ((50, 50),)
    assert crossings((50,), [0.1], [(0.05, 0.15)]).parts == ()


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_the_set_holds_the_true_crossing_at_its_level_for_seeds_and_examples_that_correlate_over_sizes(
    shared: float,
) -> None:
    draw, held, sets = np.random.default_rng(7), 0, 400
    truth = [-0.06, -0.02, 0.02, 0.06]  # straight in the logarithm: it crosses 0 half of the way from 300 to 1,000
    crossing = math.sqrt(300 * 1000)
    seeds, examples = 5, 200
    for _ in range(sets):
        common = draw.normal(0, 0.02, seeds)
        base = draw.normal(0, 0.4, (1, examples))
        known = []
        for value in truth:
            seed = math.sqrt(shared) * common + math.sqrt(1 - shared) * draw.normal(0, 0.02, seeds)
            effect = math.sqrt(shared) * base + math.sqrt(1 - shared) * draw.normal(0, 0.4, (1, examples))
            effect = effect + draw.normal(0, 0.2, (seeds, examples))
            values = value + seed + effect.mean(1)
            mine = Scores(tuple(range(seeds)), values, effect - effect.mean(1, keepdims=True))
            nothing = Scores(tuple(range(seeds)), np.zeros(seeds), np.zeros((seeds, examples)))
            known.append(intervals.difference(mine, nothing))
        ends = [d.interval() or (math.nan, math.nan) for d in known]
        found = crossings(SIZES, [d.value for d in known], ends)
        held += any(low <= crossing <= high for low, high in found.parts)
    assert held / sets >= 0.94
