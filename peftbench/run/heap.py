"""Freed memory, back to the system when it has become too much.

A worker keeps what it frees, as to fetch it anew takes time (`executors.pool.KEEP_MEMORY`). Where a block that lives
lies above many that do not, and the next ones are larger, its heap grows though nothing more lives: with 3 GB of
tensors a run came to hold 10 GB.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from peftbench.run.jobs import Progress

LEAST = 2**30  # bytes; a smaller process is left alone
GROWTH = 1.5


def give_back() -> None:
    """Return the heap's free pages to the system; nothing where the C library is not glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def tended(
    report: Progress, resident: Callable[[], int] = _resident, release: Callable[[], None] = give_back
) -> Progress:
    """Return `report` with this added: where the process has grown by half, its free pages go back.

    It has grown from what it held a step after the last time, with the step's own memory: what each step takes again
    stays, so that few steps pay for it.

    Args:
        report: what is called with the facts of each step.
        resident: reads the resident bytes of the process.
        release: gives the free pages back.
    """
    limit: int | None = None  # until a step has taken its memory

    def told(facts: Mapping[str, Any]) -> None:
        nonlocal limit
        report(facts)
        now = resident()
        if limit is None:
            limit = max(LEAST, int(GROWTH * now))
        elif now > limit:
            release()
            limit = None

    return told
