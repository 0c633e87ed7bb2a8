"""Groups of training records that share a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

from peftbench.records import comparable
from peftbench.records.record import RunRecord, TrialRecord

Key = tuple[str, str, str]  # experiment, task, hash of the setting that runs must share
R = TypeVar("R", RunRecord, TrialRecord)


def by_setting(records: Iterable[R]) -> dict[Key, list[R]]:
    """Group records by experiment and setting, in the order of the keys.

    A user's files may have been called otherwise in some records of a group; the first name in the alphabet is shown.
    """
    groups: dict[tuple[str, str], list[R]] = defaultdict(list)
    for r in records:
        groups[r.experiment, comparable.key(r.spec)].append(r)
    named = {(e, min(r.spec.task.name for r in group), setting): group for (e, setting), group in groups.items()}
    return dict(sorted(named.items()))
