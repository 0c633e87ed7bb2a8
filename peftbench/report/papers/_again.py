"""A claim that a sweep leaves open, asked again: of new seeds alone, and read once, when all of them are there.

To go on with the old seeds until the claim is decided would take a chance more than the looks that were declared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from peftbench.records.record import RunRecord
from peftbench.report.papers._interval import Interval
from peftbench.report.papers._records import NotRun, Results, group

Runs = dict[Any, list[RunRecord]]


def read_once(
    results: Results, folder: str, key: Callable[[RunRecord], Hashable], wanted: Sequence[Any], seeds: int
) -> Runs:
    """The runs on new seeds.

    Args:
        results: where the folders lie.
        folder: the one with the new seeds.
        key: run -> what the claim compares.
        wanted: the keys of the claim.
        seeds: the number of new seeds that was declared.

    Returns:
        key -> its runs; empty until each of `wanted` has all of its seeds.
    """
    try:
        found = group(results.runs(folder), key)
    except NotRun:
        return {}
    return found if all(len(found.get(k, ())) == seeds for k in wanted) else {}


def note(what: str, old: int, first: Interval, new: int) -> str:
    """Both answers to a claim in words: what `old` seeds left open, and that `new` others count."""
    return (
        f"{old} seeds left {what} open, at {first.value:+.1f} [{first.low:+.1f}, {first.high:+.1f}]. The claim was "
        f"asked again of {new} new ones; these alone count, read once."
    )
