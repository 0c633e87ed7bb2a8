"""Times that can be compared on a noisy machine: actions interleaved round by round, ratios taken within a round.

Whatever slows a machine for a second slows all actions of that round alike, so the ratio of two of them holds still
while both wander. Rounds run forwards and backwards in turn, so that a steady drift cancels out and no action always
follows the same neighbour. The device is synchronised before each reading of the clock; the garbage collector runs
between rounds, never inside a timed action.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch


def synchronise(device: torch.device | str) -> None:
    """Wait until all work queued on `device` is done; the CPU has no queue."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def interleaved(
    actions: Mapping[str, Callable[[], None]],
    rounds: int,
    warmup: int,
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every action in every round, in the actions' order; sample i of all actions is of the same round.

    `warmup` rounds run first and are not timed. Raises ValueError without actions or rounds.
    """
    if not actions or rounds < 1 or warmup < 0:
        raise ValueError(
            f"interleaved: {len(actions)} actions, {rounds} rounds, {warmup} warm-up rounds; at least 1, 1, 0"
        )
    samples: dict[str, list[float]] = {name: [] for name in actions}
    collecting = gc.isenabled()
    try:
        for number in range(-warmup, rounds):
            gc.collect()
            gc.disable()
            order = list(actions) if number % 2 == 0 else list(actions)[::-1]
            for name in order:
                seconds = _timed(actions[name], synchronize, clock)
                if number >= 0:
                    samples[name].append(seconds)
            if collecting:
                gc.enable()
    finally:
        if collecting:
            gc.enable()
    return samples


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """{"median", "iqr", "n", "samples"}, seconds; "iqr" (third quartile less the first) is None for a single sample."""
    return {**_spread(samples), "n": len(samples), "samples": list(samples)}


def ratio(samples: Sequence[float], reference_samples: Sequence[float]) -> dict[str, float | None]:
    """{"median", "iqr"} of the ratios taken round by round, not the ratio of the medians.

    Raises ValueError where the two do not have one sample for each of the same rounds.
    """
    if len(samples) != len(reference_samples):
        raise ValueError(
            f"ratio: {len(samples)} rounds against {len(reference_samples)}; both must be of the same rounds"
        )
    return _spread([a / b for a, b in zip(samples, reference_samples, strict=True)])


def _timed(action: Callable[[], None], synchronize: Callable[[], None], clock: Callable[[], float]) -> float:
    synchronize()
    start = clock()
    action()
    synchronize()
    return clock() - start


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        raise ValueError("no samples: nothing was timed")
    low, high = np.quantile(values, [0.25, 0.75])
    return {"median": statistics.median(values), "iqr": float(high - low) if len(values) > 1 else None}
