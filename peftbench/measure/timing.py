"""Times that can be compared on a noisy machine: actions interleaved round by round, ratios taken within a round.

Whatever slows a machine for a second slows all actions of that round alike, so the ratio of two of them holds still
while both wander. Rounds run forwards and backwards in turn, so that a steady drift cancels out and no action always
follows the same neighbour. The device is synchronised before each reading of the clock; the garbage collector runs
between rounds, never inside a timed action. A ratio bears a bootstrap interval over its rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from peftbench.measure.memory import PHASES

CONFIDENCE = 0.95  # of the intervals
RESAMPLES = 9999  # of the rounds, drawn with replacement
SEED = 0  # of that drawing: the same samples give the same interval


class Phased(Protocol):
    """What a training step tells where it is: the memory tracker, the counter of operations, a clock."""

    def phase(self, name: str) -> None:
        """Say what comes next: "forward", "backward" or "optimizer"."""


class PhaseClock:
    """Seconds of each phase of the steps taken `with` it, one sample a step; the device is synchronised at the borders.

    On a device with a queue this makes a step slower: its whole time is then to be taken without a clock.
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
        """Say what comes next, as often as the phases alternate; their parts add up."""
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
    """Seconds of every action in every round, in the actions' order; sample i of all actions is of the same round.

    `warmup` rounds run first and are not timed. The action `last` ends every round, so that what it leaves in the
    caches meets the next round's first action, which changes. Raises ValueError without actions or rounds.
    """
    if not actions or rounds < 1 or warmup < 0:
        raise ValueError(
            f"interleaved: {len(actions)} actions, {rounds} rounds, {warmup} warm-up rounds; at least 1, 1, 0"
        )
    samples: dict[str, list[float]] = {name: [] for name in actions}
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()  # the libraries' many objects need not be looked through again between rounds
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
        gc.unfreeze()
        if collecting:
            gc.enable()
    return samples


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """{"median", "iqr", "n", "samples"}, seconds; "iqr" (third quartile less the first) is None for a single sample."""
    return {**spread(samples), "samples": list(samples)}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """{"median", "iqr", "n"} of figures that follow from samples kept elsewhere. Raises ValueError without any."""
    if not values:
        raise ValueError("no samples: nothing was timed")
    low, high = np.quantile(values, [0.25, 0.75])
    iqr = float(high - low) if len(values) > 1 else None
    return {"median": statistics.median(values), "iqr": iqr, "n": len(values)}


def ratio(samples: Sequence[float], reference_samples: Sequence[float]) -> dict[str, Any]:
    """{"median", "iqr", "low", "high", "n"} of the ratios taken round by round, not the ratio of the medians.

    "low" and "high" bound the median's interval. Raises ValueError where the two do not have one sample for each of
    the same rounds.
    """
    if len(samples) != len(reference_samples):
        raise ValueError(
            f"ratio: {len(samples)} rounds against {len(reference_samples)}; both must be of the same rounds"
        )
    ratios = [a / b for a, b in zip(samples, reference_samples, strict=True)]
    low, high = interval(ratios)
    return {**spread(ratios), "low": low, "high": high}


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The median's 95 % percentile bootstrap interval, the same for the same values; None, None for fewer than two.

    The rounds are resampled, each with its pair: what slowed a whole round is in both times of that pair.
    """
    if len(values) < 2:
        return None, None
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values),),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _timed(action: Callable[[], None], synchronize: Callable[[], None], clock: Callable[[], float]) -> float:
    synchronize()
    start = clock()
    action()
    synchronize()
    return clock() - start
