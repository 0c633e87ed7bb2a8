"""Freed memory, back to the system.

glibc keeps freed blocks in its heap. Where one that lives lies above them, and the next ones are larger, the heap grows
though nothing more lives: a run of 3 GB of tensors came to hold 10 GB.
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

    So it is done a few times in a run, and what the system must fetch again costs next to nothing.

    Args:
        report: what is called with the facts of each step.
        resident: reads the resident bytes of the process.
        release: gives the free pages back.
    """
    limit = LEAST

    def told(facts: Mapping[str, Any]) -> None:
        nonlocal limit
        report(facts)
        if resident() > limit:
            release()
            limit = max(LEAST, int(GROWTH * resident()))

    return told
