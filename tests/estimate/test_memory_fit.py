"""The largest value that fits is the one that plain bisection finds, with fewer estimates."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peftbench.errors import UserError
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.memory_fit import LARGEST, fit, largest
from peftbench.estimate.step_estimate import Setting, StepEstimate, estimate

Peak = Callable[[int], "int | None"]
PEAKS: dict[str, Peak] = {
    "straight": lambda n: 1_000 + 37 * n,
    "bent": lambda n: 5_000 + 20 * n + max(0, 90 * (n - 40)),
    "quadratic": lambda n: 2_000 + 3 * n + n * n,
    "steps": lambda n: 1_000 + 512 * (n // 8),
    "flat": lambda n: 900,
    "flat, then steep": lambda n: 1_000 if n < 50 else 50 * n * n,
    "bounded": lambda n: None if n > 128 else 1_000 + 9 * n,
    "bounded and flat": lambda n: None if n > 77 else 10,
}


def bisected(limit: int, peak: Peak) -> tuple[int, int]:
    """Doubling, then halving."""

    def fits(value: int) -> bool:
        found = peak(value)
        return found is not None and found <= limit

    low, high = 0, 1
    while high <= LARGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high


@pytest.mark.parametrize("name", PEAKS)
@pytest.mark.parametrize("limit", [5, 999, 1_000, 1_037, 1_036, 2_000, 6_400, 9_999, 123_456, 10**7])
def test_the_answer_is_that_of_bisection(name: str, limit: int) -> None:
    assert largest(limit, PEAKS[name]) == bisected(limit, PEAKS[name])


@pytest.mark.parametrize("name", PEAKS)
def test_a_curve_takes_no_more_estimates_than_twice_those_of_bisection(name: str) -> None:
    asked: dict[str, list[int]] = {"ours": [], "bisection": []}
    for search, seen in ((largest, asked["ours"]), (bisected, asked["bisection"])):
        search(10**5, lambda value, seen=seen: (seen.append(value), PEAKS[name](value))[1])
    assert len(asked["ours"]) <= 2 * len(asked["bisection"])


def test_a_straight_line_takes_four_estimates() -> None:
    asked: list[int] = []

    def peak(value: int) -> int:
        asked.append(value)
        return 1_000 + 37 * value

    assert largest(40_000, peak) == (1_054, 1_055)
    assert len(asked) == len(set(asked)) <= 4


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "limit"), [("batch", 3_000_000), ("batch", 2_345_678), ("seq", 700_000)])
def test_it_is_so_of_real_estimates(axis: str, limit: int) -> None:
    known: dict[Setting, StepEstimate] = {}

    def ask(setting: Setting) -> StepEstimate:
        if setting not in known:
            known[setting] = estimate(ModelQuery("tiny-decoder"), "lora", {}, setting)
        return known[setting]

    def peak(value: int) -> int | None:
        try:
            return ask(Setting(value, 16) if axis == "batch" else Setting(1, value)).peak_bytes
        except UserError:
            return None  # longer than the network

    found = fit(limit, axis, Setting(1, 16), ask)
    assert (found.largest, found.largest + 1) == bisected(limit, peak)
