"""The share of the machine's cores that other programs use during a measurement."""

from __future__ import annotations

import os
from time import perf_counter

import psutil

WAITING = ("idle", "iowait")  # counters of time in which a core does nothing
TWICE = ("guest", "guest_nice")  # Linux includes them in user and nice, too
SLACK_SHARE, SLACK_SECONDS = 0.05, 0.1  # tolerance, because the counters advance in ticks and at different moments


def own_seconds() -> float:
    """Return the CPU seconds of this process so far: all its threads, and its children that have ended."""
    return sum(os.times()[:4])


class LoadMonitor:
    """Measures the background load since its creation."""

    def __init__(self) -> None:
        self._began = _reading()

    def share(self) -> float | None:
        """Return the share of the cores' time that other programs used since creation, 0 to 1.

        Time that a hypervisor took counts as used by others.

        Returns:
            The share. None if the system does not report it, or if its counters cannot be this machine's because they
            hold less than this process used (some containers).
        """
        before, after = self._began, _reading()
        if before is None or after is None:
            return None
        elapsed, busy, own, counted = (b - a for a, b in zip(before, after, strict=True))
        capacity = elapsed * (psutil.cpu_count(logical=True) or 0)
        others = busy - own
        if capacity <= 0 or counted <= 0 or others < -(SLACK_SHARE * capacity + SLACK_SECONDS):
            return None
        return min(1.0, max(0.0, others / capacity))


def _reading() -> tuple[float, float, float, float] | None:
    """Return seconds: the clock's, the cores' busy ones, this process's own, and all that the cores have counted."""
    try:
        times = psutil.cpu_times()._asdict()
    except (OSError, NotImplementedError, psutil.Error):
        return None
    counted = {k: v for k, v in times.items() if k not in TWICE}
    busy = sum(v for k, v in counted.items() if k not in WAITING)
    return perf_counter(), busy, own_seconds(), sum(counted.values())
