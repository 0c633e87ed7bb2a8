"""Times that are comparable on a noisy machine: actions interleaved in rounds, ratios taken within a round.

Anything that slows a machine for a second slows all actions of that round alike. The ratio of two actions therefore
stays stable while both times vary. Odd rounds run in reverse order, so that a steady drift cancels out and no action
always follows the same other one. The device is synchronised before each reading of the clock. The garbage collector
runs between rounds, never inside a timed action. A ratio has a bootstrap interval over its rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from peftbench.measure.memory import PHASES

CONFIDENCE = 0.95  # of the intervals
RESAMPLES = 9999  # of the rounds, drawn with replacement
SEED = 0  # for resampling: the same samples give the same interval
FROZEN_BY_PYTHON = gc.get_freeze_count()  # as it starts: 375 objects in 3.12, else none


class Phased(Protocol):
    """Anything that a training step notifies of its phases: the memory tracker, the operation counter, a clock."""

    def phase(self, name: str) -> None:
        """Start a phase: "forward", "backward" or "optimizer"."""


class PhaseClock:
    """Measures the seconds of each phase, one sample per step; use it as a context manager around each step.

    The device is synchronised at the phase boundaries. On an asynchronous device this slows the step down, so its total
    time must be measured without this clock.

    Attributes:
        samples: Seconds of each phase by step.
    """

    def __init__(self, synchronize: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self.samples: dict[str, list[float]] = {name: [] for name in PHASES}
        self._synchronize, self._clock = synchronize, clock
        self._phase: str | None = None
        self._since = 0.0

    def __enter__(self) -> PhaseClock:
        for samples in self.samples.values():
            samples.append(0.0)
        self.phase("forward")
        return self

    def __exit__(self, *_: object) -> None:
        self._lap(None)

    def phase(self, name: str) -> None:
        """Start a phase. Phases may alternate; their parts add up.

        Raises:
            ValueError: There is no such phase.
        """
        if name not in PHASES:
            raise ValueError(f"PhaseClock: unknown phase {name!r}; the phases are {', '.join(PHASES)}")
        self._lap(name)

    def _lap(self, name: str | None) -> None:
        self._synchronize()
        now = self._clock()
        if self._phase is not None:
            self.samples[self._phase][-1] += now - self._since
        self._phase, self._since = name, now


def interleaved(
    actions: Mapping[str, Callable[[], None]],
    rounds: int,
    warmup: int,
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
    last: str | None = None,
) -> dict[str, list[float]]:
    """Time every action in every round.

    Args:
        actions: Actions by name.
        rounds: Timed rounds.
        warmup: Rounds that run before these and are not timed.
        synchronize: Waits for the device.
        clock: Returns seconds.
        last: Name of an action that ends every round, so that the caches it leaves affect another action each round.

    Returns:
        Seconds by action, in the actions' order; sample i of every action is from round i.

    Raises:
        ValueError: There are no actions or no rounds.
    """
    if not actions or rounds < 1 or warmup < 0:
        raise ValueError(
            f"interleaved: {len(actions)} actions, {rounds} rounds, {warmup} warm-up rounds; at least 1, 1, 0"
        )
    samples: dict[str, list[float]] = {name: [] for name in actions}
    collecting = gc.isenabled()
    thaw = gc.get_freeze_count() <= FROZEN_BY_PYTHON  # what the caller froze stays frozen
    gc.collect()
    if thaw:
        gc.freeze()  # collections between rounds then skip the libraries' many objects
    try:
        for number in range(-warmup, rounds):
            gc.collect()
            gc.disable()
            order = [name for name in actions if name != last]
            ends = [] if last is None else [last]
            for name in [*(order if number % 2 == 0 else order[::-1]), *ends]:
                seconds = _timed(actions[name], synchronize, clock)
                if number >= 0:
                    samples[name].append(seconds)
            if collecting:
                gc.enable()
    finally:
        if thaw:
            gc.unfreeze()
        if collecting:
            gc.enable()
    return samples


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Return {"median", "iqr", "n", "samples"} in seconds.

    "iqr", the interquartile range, is None for a single sample.
    """
    return {**spread(samples), "samples": list(samples)}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return {"median", "iqr", "n"} of values whose samples are stored elsewhere.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no samples: nothing was timed")
    low, high = np.quantile(values, [0.25, 0.75])
    iqr = float(high - low) if len(values) > 1 else None
    return {"median": statistics.median(values), "iqr": iqr, "n": len(values)}


def ratio(samples: Sequence[float], reference_samples: Sequence[float]) -> dict[str, Any]:
    """Return {"median", "iqr", "low", "high", "n"} of the ratios of two actions, taken round by round.

    "low" and "high" bound the median's interval. The ratio of the medians is not used.

    Raises:
        ValueError: The two have different numbers of rounds.
    """
    if len(samples) != len(reference_samples):
        raise ValueError(
            f"ratio: {len(samples)} rounds against {len(reference_samples)}; both must be of the same rounds"
        )
    ratios = [a / b for a, b in zip(samples, reference_samples, strict=True)]
    low, high = interval(ratios)
    return {**spread(ratios), "low": low, "high": high}


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the median's 95 % percentile bootstrap interval; (None, None) for fewer than two values.

    Each resample draws rounds, so both times of a round stay together. The interval is the same for the same values.
    """
    if len(values) < 2:
        return None, None
    medians = np.sort(np.median(np.asarray(values, dtype=float)[_resamples(len(values))], axis=-1))
    outside = (1 - CONFIDENCE) / 2
    return _quantile(medians, outside), _quantile(medians, 1 - outside)


@lru_cache(maxsize=4)
def _resamples(n: int) -> np.ndarray[Any, Any]:
    """The rounds of each resample, (RESAMPLES, n): those that `scipy.stats.bootstrap` draws.

    Importing scipy.stats takes a process of a profile pass longer than all of its intervals.
    """
    return np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))


def _quantile(ascending: np.ndarray[Any, Any], share: float) -> float:
    """The quantile by linear interpolation, rounded as `scipy.stats.quantile` rounds it."""
    place = share * (len(ascending) - 1)
    below, part = int(place), place % 1
    above = min(below + 1, len(ascending) - 1)
    return float((1 - part) * ascending[below] + part * ascending[above])


def _timed(action: Callable[[], None], synchronize: Callable[[], None], clock: Callable[[], float]) -> float:
    synchronize()
    start = clock()
    action()
    synchronize()
    return clock() - start
