"""A bar on standard error while many rows are read, if a person watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

MANY = 20_000  # rows: fewer are read before a bar would show

T = TypeVar("T")


def shown(items: Sequence[T], what: str, each: int = 1) -> Iterable[T]:
    """Return the items; on a terminal, going through many of them moves a bar.

    Args:
        items: the items.
        what: what is done with them, such as "reading train.csv".
        each: the number of rows in an item.
    """
    if each * len(items) < MANY or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, console=Console(stderr=True), transient=True)
