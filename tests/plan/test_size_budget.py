"""Solving a size knob for a parameter budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbench.errors import UserError
from peftbench.plan.size_budget import solve


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=40),
    st.integers(0, 100),
    st.integers(1, 1500),
    st.integers(1, 5),
)
def test_the_nearest_size_of_any_rising_formula_is_found(steps: list[int], first: int, target: int, low: int) -> None:
    counts = [first + sum(steps[:i]) for i in range(len(steps) + 1)]
    high = low + len(steps)
    solved = solve(lambda v: counts[v - low], target, 0.05, low, high)
    best = min(abs(c - target) for c in counts)
    assert abs(solved.achieved - target) == best
    assert counts[solved.value - low] == solved.achieved
    assert solved.matched == (best <= 0.05 * target)
    assert low <= solved.value <= high


def test_an_exact_size_is_matched_even_with_no_tolerance() -> None:
    solved = solve(lambda r: 1536 * r, 1536 * 48, 0.0)
    assert (solved.value, solved.deviation, solved.matched) == (48, 0.0, True)


def test_the_nearest_is_marked_when_none_is_within_the_tolerance() -> None:
    solved = solve(lambda r: 1000 * r, 2400, 0.05)
    assert (solved.value, solved.achieved, solved.matched) == (2, 2000, False)
    assert solved.deviation == pytest.approx(-1 / 6)
    assert solved.neighbours == ((2, 2000), (3, 3000))


def test_of_two_equally_near_sizes_the_smaller_is_taken() -> None:
    assert solve(lambda r: 10 * r, 25, 0.5).value == 2


def test_a_budget_below_the_least_size_takes_the_least() -> None:
    solved = solve(lambda r: 1000 * r, 10, 0.05)
    assert (solved.value, solved.matched, solved.neighbours) == (1, False, ((1, 1000),))


def test_a_budget_above_the_greatest_size_takes_the_greatest() -> None:
    assert solve(lambda r: 10 * r, 1000, 0.05, high=7).value == 7


def test_a_strict_budget_names_the_two_nearest_sizes() -> None:
    with pytest.raises(UserError, match=r"2,000 parameters \(at 2\) and 3,000 parameters \(at 3\).*strict: false"):
        solve(lambda r: 1000 * r, 2400, 0.05, strict=True)
    assert solve(lambda r: 1000 * r, 2000, 0.05, strict=True).value == 2


def test_a_formula_that_falls_is_refused() -> None:
    with pytest.raises(UserError, match="the parameters fall from"):
        solve(lambda r: 1000 // r, 10_000, 0.05)


def test_few_sizes_are_counted() -> None:
    asked: list[int] = []

    def count(value: int) -> int:
        asked.append(value)
        return 1536 * value

    solve(count, 75_000, 0.05)
    assert max(asked) <= 128, "a formula is never asked far beyond the budget"
