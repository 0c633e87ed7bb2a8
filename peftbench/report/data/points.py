"""Where tables lie on the axes of their experiment: tables of one task that differ in training size or steps alone.

The records say it themselves: `limit_train` of the task and `steps` of the training. So a curve appears as well where
the sizes were given one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftbench.records import comparable
from peftbench.records.record import RunRecord
from peftbench.records.spec import RunSpec, digest
from peftbench.report.data.grouping import Key

LIMIT = "limit_train"


@dataclass(frozen=True, order=True)
class Point:
    """The values that tell a table from the others of its curve.

    Attributes:
        family: digest of what the tables have in common.
        rows: training examples.
        is_all: whether these are all of the task's.
        steps: optimiser steps; 0 where they are not given, but follow from tokens or seconds.
        varied: the axes along which the tables differ: "train_size", "steps".
    """

    family: str
    rows: int
    is_all: bool
    steps: int
    varied: tuple[str, ...]

    @property
    def words(self) -> str:
        """What varies, as a heading says it.

        >>> Point("", 4354, True, 40, ("train_size", "steps")).words
        'all 4,354 training examples, 40 steps'
        """
        size = f"{'all ' if self.is_all else ''}{self.rows:,} training examples"
        return ", ".join(text for axis, text in (("train_size", size), ("steps", f"{self.steps:,} steps"))
                         if axis in self.varied)  # fmt: skip

    def value(self, axis: str) -> tuple[int, str]:
        """The place on an axis, and how it is written there.

        >>> Point("", 4354, True, 40, ("train_size",)).value("train_size")
        (4354, 'all (4,354)')
        """
        number = self.rows if axis == "train_size" else self.steps
        return number, f"all ({number:,})" if axis == "train_size" and self.is_all else f"{number:,}"

    def others(self, axis: str) -> tuple[Any, ...]:
        """What tables of one curve along an axis have in common."""
        return self.family, *(() if axis == "train_size" else (self.rows,)), *(() if axis == "steps" else (self.steps,))


def of(groups: Mapping[Key, Sequence[RunRecord]]) -> dict[Key, Point]:
    """Find the tables that belong to a curve.

    Args:
        groups: the runs of each table.

    Returns:
        The points of those tables; the others are left out.
    """
    families: dict[tuple[str, str, str], list[Key]] = defaultdict(list)
    for key, runs in groups.items():
        families[key[0], key[1], _common(runs[0].spec)].append(key)
    found: dict[Key, Point] = {}
    for (*_, family), keys in families.items():
        places = {key: _place(groups[key]) for key in keys}
        known = [place for place in places.values() if place is not None]
        varied = tuple(
            axis for axis, values in (("train_size", {p[0] for p in known}), ("steps", {p[2] for p in known}))
            if len(values) > 1
        )  # fmt: skip
        if varied and len(set(known)) == len(keys) and _one_test_split([groups[key] for key in keys]):
            found |= {key: Point(family, *place, varied) for key, place in places.items() if place is not None}
    return found


def _common(spec: RunSpec) -> str:
    """A digest of what tables of one curve have in common: all that counts, without training size and steps."""
    setting = comparable.setting(spec)
    options = {k: v for k, v in setting.pop("task.options", {}).items() if k != LIMIT}
    without = {"task.fingerprint", *(["train.steps"] if _gives_steps(spec) or spec.train.tokens else [])}
    return digest([{k: v for k, v in setting.items() if k not in without}, options])


def _gives_steps(spec: RunSpec) -> bool:
    return spec.train.tokens is None and spec.train.seconds is None


def _place(runs: Sequence[RunRecord]) -> tuple[int, bool, int] | None:
    """(training examples, whether they are all, steps); None if all run, and no record says how many they are."""
    spec, data = runs[0].spec, next((d for r in runs if (d := r.body.data)), None)
    limit = spec.task.options.get(LIMIT)
    rows = data.splits["train"].rows if data else limit
    return None if rows is None else (rows, limit is None, spec.train.steps if _gives_steps(spec) else 0)


def _one_test_split(tables: Sequence[Sequence[RunRecord]]) -> bool:
    """Whether the scores of all tables are on the same test examples, as far as the predictions say it."""
    first = (next((p for r in runs if (p := r.predictions)), None) for runs in tables)
    return len({tuple(p.ids) for p in first if p}) <= 1
