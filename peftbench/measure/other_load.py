"""What other programs use of the machine's cores meanwhile: that no other run goes on does not make a machine quiet."""

from __future__ import annotations

import os
from time import perf_counter

import psutil

WAITING = ("idle", "iowait")  # of the system's counters, those in which a core does nothing
TWICE = ("guest", "guest_nice")  # Linux counts them in user and nice as well
SLACK_SHARE, SLACK_SECONDS = 0.05, 0.1  # the counters advance in ticks, and not all at the same moment


def own_seconds() -> float:
    """Processor seconds of this process so far: all its threads, and its children that have ended."""
    return sum(os.times()[:4])


class Watch:
    """Begins when it is made; `share()` tells about the time since."""

    def __init__(self) -> None:
        self._began = _reading()

    def share(self) -> float | None:
        """What others used of the cores' time, 0 to 1; what a hypervisor took counts as theirs.

        None where the system does not tell, or where its counters cannot be the ones of this machine, as they hold
        less than this very process has used (some containers).
        """
        before, after = self._began, _reading()
        if before is None or after is None:
            return None
        elapsed, busy, own, told = (b - a for a, b in zip(before, after, strict=True))
        capacity = elapsed * (psutil.cpu_count(logical=True) or 0)
        others = busy - own
        if capacity <= 0 or told <= 0 or others < -(SLACK_SHARE * capacity + SLACK_SECONDS):
            return None
        return min(1.0, max(0.0, others / capacity))


def _reading() -> tuple[float, float, float, float] | None:
    """Seconds: the clock's, the cores' busy ones, this process's own, and all that the cores have counted."""
    try:
        times = psutil.cpu_times()._asdict()
    except (OSError, NotImplementedError, psutil.Error):
        return None
    counted = {k: v for k, v in times.items() if k not in TWICE}
    busy = sum(v for k, v in counted.items() if k not in WAITING)
    return perf_counter(), busy, own_seconds(), sum(counted.values())
