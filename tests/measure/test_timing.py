"""Interleaved timing: order, what is inside a timed part, and the statistics; a counted clock, never real durations."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats

from peftbench.backbones.devices import synchronise
from peftbench.measure.timing import PhaseClock, interleaved, interval, ratio, spread, summary


class Bench:
    """A clock that moves only when an action runs, and a log of what happened."""

    def __init__(self, **costs: float) -> None:
        self.costs, self.log, self.now, self.collecting = costs, [], 0.0, []

    def actions(self) -> dict:
        return {name: lambda name=name: self._run(name) for name in self.costs}

    def _run(self, name: str) -> None:
        self.log.append(name)
        self.collecting.append(gc.isenabled())
        self.now += self.costs[name]

    def clock(self) -> float:
        self.log.append("clock")
        return self.now

    def synchronize(self) -> None:
        self.log.append("sync")


def test_each_action_is_timed_once_a_round_after_the_warm_up() -> None:
    bench = Bench(a=1.0, b=2.0)
    samples = interleaved(bench.actions(), 3, 2, bench.synchronize, bench.clock)
    assert samples == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert bench.log.count("a") == bench.log.count("b") == 5


def test_rounds_run_forwards_and_backwards_in_turn() -> None:
    bench = Bench(a=1.0, b=1.0, c=1.0)
    interleaved(bench.actions(), 2, 1, bench.synchronize, bench.clock)
    assert [entry for entry in bench.log if entry in "abc"] == [*"cba", *"abc", *"cba"]


@pytest.fixture
def thawed() -> Iterator[None]:
    """No object is frozen during the test; conftest.py froze what the libraries made."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.mark.slow
def test_what_a_round_leaves_behind_is_collected_before_the_next_and_nothing_stays_frozen(thawed: None) -> None:
    left: list[weakref.ref[Circle]] = []
    alive: list[int] = []

    class Circle:
        def __init__(self) -> None:
            self.me = self

    def action() -> None:
        alive.append(sum(ref() is not None for ref in left))
        left.append(weakref.ref(Circle()))

    interleaved({"a": action}, 4, 0, lambda: None)
    assert alive == [0, 0, 0, 0]
    assert gc.get_freeze_count() == 0


def test_what_was_frozen_before_stays_frozen_and_nothing_is_added(thawed: None) -> None:
    """By two objects, not by the count: an object that dies while it is frozen leaves the count, too."""
    frozen: list[list[int]] = [[]]
    gc.freeze()
    made: list[list[int]] = []
    interleaved({"a": lambda: made.append([])}, 2, 0, lambda: None)
    seen = {id(one) for one in gc.get_objects()}  # all but what is frozen
    assert id(frozen[0]) not in seen
    assert id(made[0]) in seen


def test_the_last_action_ends_every_round_whatever_its_direction() -> None:
    bench = Bench(a=1.0, z=5.0, b=1.0)
    samples = interleaved(bench.actions(), 2, 1, bench.synchronize, bench.clock, last="z")
    assert [entry for entry in bench.log if entry in "abz"] == [*"baz", *"abz", *"baz"]
    assert list(samples) == ["a", "z", "b"]
    assert samples["z"] == [5.0, 5.0]


def test_the_device_is_synchronised_before_each_reading_of_the_clock() -> None:
    bench = Bench(a=1.0)
    interleaved(bench.actions(), 1, 0, bench.synchronize, bench.clock)
    assert bench.log == ["sync", "clock", "a", "sync", "clock"]


def test_a_slow_synchronisation_after_the_action_counts_and_one_before_does_not() -> None:
    now, pending = [0.0], [5.0]  # work queued by someone else before the timed part

    def synchronize() -> None:
        now[0] += pending.pop() if pending else 0.0

    samples = interleaved({"a": lambda: pending.append(2.0)}, 1, 0, synchronize, lambda: now[0])
    assert samples == {"a": [2.0]}


def test_the_garbage_collector_is_off_inside_and_as_before_afterwards() -> None:
    bench = Bench(a=1.0)
    assert gc.isenabled()
    interleaved(bench.actions(), 2, 1, bench.synchronize, bench.clock)
    assert bench.collecting == [False] * 3
    assert gc.isenabled()
    gc.disable()
    try:
        interleaved(bench.actions(), 1, 0, bench.synchronize, bench.clock)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_action_that_fails_is_not_hidden_and_leaves_the_collector_on() -> None:
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 / 0}, 1, 0, lambda: None)  # type: ignore[dict-item]
    assert gc.isenabled()


@pytest.mark.parametrize(("names", "rounds", "warmup"), [("", 1, 0), ("a", 0, 0), ("a", 1, -1)])
def test_nothing_to_time_is_an_error(names: str, rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="at least 1, 1, 0"):
        interleaved(Bench(**dict.fromkeys(names, 1.0)).actions(), rounds, warmup, lambda: None)


def test_a_summary_has_median_spread_count_and_samples() -> None:
    assert summary([4.0, 1.0, 2.0, 3.0]) == {"median": 2.5, "iqr": 1.5, "n": 4, "samples": [4.0, 1.0, 2.0, 3.0]}


def test_one_sample_has_no_spread_and_none_is_an_error() -> None:
    assert summary([2.0]) == {"median": 2.0, "iqr": None, "n": 1, "samples": [2.0]}
    with pytest.raises(ValueError, match="no samples"):
        summary([])


def test_a_ratio_is_taken_within_rounds_so_that_a_slow_machine_cancels_out() -> None:
    reference = [1.0, 10.0, 3.0]
    assert ratio([2.0, 20.0, 6.0], reference) == {"median": 2.0, "iqr": 0.0, "low": 2.0, "high": 2.0, "n": 3}


def test_a_ratios_interval_is_of_the_paired_rounds_and_the_same_each_time() -> None:
    """A machine that slows to a tenth for some rounds widens the times, not the ratio's interval."""
    slow = [1.0, 10.0, 3.0, 1.0, 7.0, 1.0, 2.0, 10.0, 1.0, 5.0, 1.0]
    paired = [0.80, 0.81, 0.79, 0.80, 0.82, 0.80, 0.78, 0.80, 0.81, 0.79, 0.80]
    found = ratio([a * b for a, b in zip(slow, paired, strict=True)], slow)
    assert found == ratio([a * b for a, b in zip(slow, paired, strict=True)], slow)
    assert found["median"] == pytest.approx(0.80)
    assert 0.785 <= found["low"] <= 0.80 <= found["high"] <= 0.815


def test_an_interval_covers_a_known_median_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    found = [interval(list(draw.lognormal(0.0, 0.2, 11))) for _ in range(60)]  # the median of these is 1
    covered = sum(low <= 1.0 <= high for low, high in found if low is not None and high is not None)
    assert 50 <= covered <= 60


@pytest.mark.parametrize("rounds", [2, 3, 4, 11, 50])
def test_an_interval_is_that_of_scipys_bootstrap_to_the_last_digit(rounds: int) -> None:
    draw = np.random.default_rng(rounds)
    for values in (draw.lognormal(0.0, 0.2, rounds), np.round(draw.lognormal(0.0, 0.2, rounds), 1)):
        theirs = scipy.stats.bootstrap((values,), np.median, method="percentile", rng=np.random.default_rng(0))
        low, high = theirs.confidence_interval
        assert interval(list(values)) == (low, high)


def test_one_round_has_a_ratio_without_an_interval() -> None:
    assert ratio([1.0], [2.0]) == {"median": 0.5, "iqr": None, "low": None, "high": None, "n": 1}


def test_a_ratio_over_different_rounds_is_an_error() -> None:
    with pytest.raises(ValueError, match="same rounds"):
        ratio([1.0], [1.0, 2.0])


def test_the_cpu_needs_no_synchronisation() -> None:
    synchronise("cpu")


def test_what_follows_from_samples_has_their_number_and_does_not_repeat_them() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0]) == {"median": 2.5, "iqr": 1.5, "n": 4}


class Step:
    """A step that tells its phases and moves a counted clock; a phase's queued work ends when somebody waits for it."""

    def __init__(self) -> None:
        self.now, self.queued = 0.0, 0.0

    def synchronize(self) -> None:
        self.now += self.queued
        self.queued = 0.0

    def run(self, clock: PhaseClock, *phases: tuple[str, float]) -> None:
        with clock:
            for name, seconds in phases:
                clock.phase(name)
                self.queued += seconds


def test_a_phase_takes_what_was_queued_in_it_and_its_parts_add_up() -> None:
    step = Step()
    clock = PhaseClock(step.synchronize, lambda: step.now)
    step.run(clock, ("forward", 1.0), ("backward", 2.0), ("optimizer", 4.0))
    step.queued = 100.0  # between two steps: nobody's
    step.synchronize()
    step.run(clock, ("forward", 1.0), ("backward", 2.0), ("forward", 10.0), ("backward", 20.0), ("optimizer", 4.0))
    assert clock.samples == {"forward": [1.0, 11.0], "backward": [2.0, 22.0], "optimizer": [4.0, 4.0]}


def test_a_clock_refuses_an_unknown_phase() -> None:
    with pytest.raises(ValueError, match="unknown phase 'later'"):
        PhaseClock(lambda: None).phase("later")
