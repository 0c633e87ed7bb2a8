"""A claim that a sweep leaves open, asked again: of new seeds alone, and read once, when all of them are there.

To go on with the old seeds until the claim is decided would take a chance more than the looks that were declared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from peftbench.records.record import RunRecord
from peftbench.report.papers._interval import Interval
from peftbench.report.papers._records import NotRun, Results, group
from peftbench.report.papers._sweep import ChosenRate, lr, method, same_setting

Runs = dict[Any, list[RunRecord]]


def read_once(
    results: Results, folder: str, old: Sequence[ChosenRate], key: Callable[[RunRecord], Hashable], seeds: range
) -> Runs:
    """The runs on new seeds.

    Args:
        results: where the folders lie.
        folder: the one with the new seeds.
        old: what the claim compares, on the old seeds; the new ones have the same method and rate.
        key: run -> what the claim compares.
        seeds: the new seeds that were declared.

    Returns:
        key -> its runs; empty until each of `old` has all of its seeds.

    Raises:
        NotRun: a new run has another setting than the old ones.
    """
    methods = {method(t.runs[0]) for t in old}
    try:
        runs = results.runs(folder, lambda r: method(r) in methods and r.spec.seed in seeds)
    except NotRun:
        return {}
    found = group(runs, lambda r: (key(r), lr(r)))
    again = {t.key: found.get((t.key, t.lr), []) for t in old}
    same_setting([*(r for t in old for r in t.runs), *(r for same in again.values() for r in same)])
    return again if all([r.spec.seed for r in same] == list(seeds) for same in again.values()) else {}


def note(what: str, old: int, first: Interval, new: int) -> str:
    """Both answers to a claim in words: what `old` seeds left open, and that `new` others count."""
    return (
        f"{old} seeds left {what} open, at {first.value:+.1f} [{first.low:+.1f}, {first.high:+.1f}]. The claim was "
        f"asked again of {new} new ones; these alone count, read once; the table and the looks are of the old ones."
    )
