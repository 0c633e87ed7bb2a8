"""Curves: the scores of every method along one axis of an experiment, and where they cross.

An axis of tasks (training size, steps) has a table for each value; an axis that is a hyperparameter has its values in
the rows of one table. The statistics are those of the tables: `verdicts` and `scores`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftbench.records.spec import TrainSpec
from peftbench.report.data import answer, scores, verdicts
from peftbench.report.data.comparison import Comparison, Entry, names_of
from peftbench.report.data.verdicts import ScoreVerdict
from peftbench.report.media.filename import stem
from peftbench.report.stats import intervals
from peftbench.report.stats.crossings import Crossings, crossings
from peftbench.report.stats.intervals import LEVEL, Estimate, Scores

ALPHA = 1 - LEVEL
OF_TASKS = ("train_size", "steps")
UNITS = {"train_size": "training examples", "steps": "optimiser steps"}
BETTER, WORSE, OPEN = "surely better", "surely worse", "not told apart"
STATES: Mapping[str | None, str] = {"better": BETTER, "worse": WORSE, "equal": "equal within the margin"}
_GRID = re.compile(r" (\w+)=(\d+)(?= |$)")  # a value of a grid in a label: `lora rank=2 lr=0.005`


@dataclass(frozen=True)
class Line:
    """One method along an axis.

    Attributes:
        label: its label, without the value of the axis.
        places: value -> the table and the label of its row there.
        varies: whether the axis is one of its settings; else it has one row, which belongs to every value.
    """

    label: str
    places: Mapping[int, tuple[Comparison, str]] = field(repr=False)
    varies: bool = True

    def entry(self, value: int) -> Entry | None:
        """The row at a value."""
        c, label = self.places.get(value, (None, ""))
        return next((e for e in c.entries if e.label == label), None) if c else None

    def verdict(self, value: int) -> ScoreVerdict | None:
        """The statistics of the row at a value; None without a score."""
        c, label = self.places.get(value, (None, ""))
        return verdicts.of(c).get(label) if c else None

    def tied(self, value: int) -> bool:
        """Whether the row is among the best of its table, where that tells anything."""
        v = self.verdict(value)
        return bool(v and v.tied and verdicts.some_are_behind(self.places[value][0]))

    def difference(self, other: Line | None, value: int) -> Estimate | None:
        """Its score less that of another line at a value, or less the reference's; None if one of them has none."""
        if value not in self.places or not _tells(self.places[value][0]):
            return None
        if other is None:
            v = self.verdict(value)
            return v.difference if v else None
        (c, mine), (there, label) = self.places[value], other.places.get(value, (None, ""))
        known = scores.of(c) if there is c else {}
        return intervals.difference(known[mine], known[label]) if mine in known and label in known else None

    def enough(self, last: int, margin: float, direction: str) -> int | None:
        """The least value from which on its score is surely not worse than at the last value by more than a margin.

        Each value is tested by itself, one-sided at 5 %, paired by seed and test example.

        Args:
            last: the last value.
            margin: largest loss that does not matter, in the metric's unit.
            direction: "max" or "min", which of the two is better.

        Returns:
            The value; None if even the last but one is not known to be so good.
        """
        found, at_last = None, self._scores(last)
        for value in sorted((x for x in self.places if x < last), reverse=True):
            here = self._scores(value)
            if here is None or at_last is None:
                break
            lost = intervals.difference(at_last, here)
            lost = lost.negative() if direction == "min" else lost
            half = lost.half(1 - 2 * ALPHA)
            if lost.is_of_runs or half is None or lost.value + half >= margin:
                break
            found = value
        return found

    def _scores(self, value: int) -> Scores | None:
        c, label = self.places.get(value, (None, ""))
        return scores.of(c).get(label) if c else None

    def state(self, value: int, direction: str) -> str | None:
        """How it compares with the reference at a value, corrected over the table; None if not known."""
        d, v = self.difference(None, value), self.verdict(value)
        if d is None or v is None:
            return None
        c, label = self.places[value]
        if (a := answer.of(c)) is not None and label in a.versus:
            return STATES.get(a.versus[label], OPEN)
        if v.p_holm is None:
            return None
        if v.p_holm >= ALPHA:
            return OPEN
        return BETTER if (d.value > 0) == (direction != "min") else WORSE


@dataclass(frozen=True, eq=False)
class AxisCurve:
    """The scores of an experiment's methods on one task along one axis.

    Attributes:
        experiment: name of the experiment.
        task: the data set that ran.
        stand_in_for: the requested task if `task` is its stand-in, else None.
        backbone: name of the base model.
        budget: training settings of the runs; on an axis of steps, those of the first value.
        axis: "train_size", "steps", or a hyperparameter.
        values: the tested values in ascending order -> how they are written.
        metric: the primary metric.
        direction: "max" or "min", which of the two is better.
        reference: label of the row that differences are to.
        lines: the methods, in the order of the tables.
        tables: the tables that the values come from, in their order.
        variant: what tells it from other curves of the task along the axis; else empty.
        file: file name of the table, where `slug` alone would be another's too; else empty.
    """

    experiment: str
    task: str
    stand_in_for: str | None
    backbone: str
    budget: TrainSpec
    axis: str
    values: Mapping[int, str]
    metric: str
    direction: str
    reference: str
    lines: tuple[Line, ...]
    tables: tuple[Comparison, ...]
    variant: str = ""
    file: str = ""

    @property
    def unit(self) -> str:
        """What the axis counts."""
        return UNITS.get(self.axis, self.axis)

    @property
    def title(self) -> str:
        """The task's name and the axis; a stand-in is always marked as one."""
        name = f"{self.task} (stand-in for {self.stand_in_for})" if self.stand_in_for else self.task
        return f"{name} by {self.unit}" + (f", {self.variant}" if self.variant else "")

    @property
    def slug(self) -> str:
        """File name of the table, without its extension."""
        ending = f"by-{self.axis.replace('_', '-')}"
        return self.file or stem(self.experiment, *names_of(self.task, self.stand_in_for), variant=self.variant,
                                 ending=ending)  # fmt: skip

    def crossings(self, line: Line, other: Line | None = None) -> Crossings | None:
        """Where a line crosses another, or the reference's scores; None unless two values are known."""
        known = {x: d for x in self.values if (d := line.difference(other, x))}
        ends = {x: around for x, d in known.items() if (around := d.interval())}
        if len(ends) < 2:
            return None
        return crossings(list(ends), [known[x].value for x in ends], list(ends.values()))

    def pairs(self) -> Iterator[tuple[Line, Line]]:
        """Every pair of lines of which at least one varies."""
        for i, one in enumerate(self.lines):
            yield from ((one, other) for other in self.lines[i + 1 :] if one.varies or other.varies)


def of(comparisons: Sequence[Comparison]) -> list[AxisCurve]:
    """Find the curves among the tables of a report.

    Args:
        comparisons: one table per experiment, task and budget.

    Returns:
        The curves, by experiment and task in the order of the tables; training size first, then steps.
    """
    curves = [*_of_tasks(comparisons), *(curve for c in comparisons for curve in _of_methods(c))]
    order = {id(c): i for i, c in enumerate(comparisons)}
    first = {(c.experiment, c.task): i for i, c in reversed(list(enumerate(comparisons)))}

    def place(curve: AxisCurve) -> tuple[Any, ...]:
        axes = [*OF_TASKS, curve.axis]
        return first[curve.experiment, curve.task], axes.index(curve.axis), order[id(curve.tables[0])]

    return sorted(curves, key=place)


def _of_tasks(comparisons: Sequence[Comparison]) -> Iterator[AxisCurve]:
    groups: dict[tuple[Any, ...], list[Comparison]] = defaultdict(list)
    for c in comparisons:
        for axis in c.point.varied if c.point else ():
            groups[axis, c.experiment, c.task, c.stand_in_for, c.point.others(axis) if c.point else ()].append(c)
    for (axis, *_), group in groups.items():
        tables = {c.point.value(axis): c for c in group if c.point}
        places = {number: tables[number, word] for number, word in sorted(tables)}
        if len(places) > 1:
            labels = dict.fromkeys(e.label for c in places.values() for e in c.entries)
            lines = [
                Line(name, {x: (c, name) for x, c in places.items() if name in {e.label for e in c.entries}})
                for name in labels
            ]
            yield _curve(axis, dict(sorted(tables)), lines, list(places.values()), _fixed(group[0], axis))


def _fixed(c: Comparison, axis: str) -> str:
    """The values of the other axis, which all tables of a curve share."""
    if c.point is None or len(c.point.varied) == 1:
        return ""
    number, word = c.point.value(next(other for other in c.point.varied if other != axis))
    return f"{word} {UNITS['steps' if axis == 'train_size' else 'train_size']}" if number else word


def _of_methods(c: Comparison) -> Iterator[AxisCurve]:
    rows: dict[str, dict[str, dict[int, Entry]]] = defaultdict(lambda: defaultdict(dict))
    for e in c.entries:
        for axis, text in _GRID.findall(e.label):
            if _hyper(e).get(axis) == int(text):
                rows[axis][e.label.replace(f" {axis}={text}", "")][int(text)] = e
    for axis, by_base in rows.items():
        varied = {base: entries for base, entries in by_base.items() if len(entries) > 1}
        values = sorted({value for entries in varied.values() for value in entries})
        inside = {e.label: base for base, entries in varied.items() for e in entries.values()}
        if not varied:
            continue
        lines: dict[str, Line] = {}
        for e in c.entries:
            base = inside.get(e.label)
            if base is None:
                lines[e.label] = Line(e.label, dict.fromkeys(values, (c, e.label)), varies=False)
            else:
                lines[base] = Line(base, {value: (c, one.label) for value, one in sorted(varied[base].items())})
        yield _curve(axis, {v: f"{v:,}" for v in values}, list(lines.values()), [c], c.variant)


def _curve(
    axis: str, values: Mapping[int, str], lines: Sequence[Line], tables: Sequence[Comparison], variant: str
) -> AxisCurve:
    c = tables[0]
    return AxisCurve(
        experiment=c.experiment,
        task=c.task,
        stand_in_for=c.stand_in_for,
        backbone=c.backbone,
        budget=c.budget,
        axis=axis,
        values=values,
        metric=c.metric,
        direction=c.direction,
        reference=c.reference,
        lines=tuple(lines),
        tables=tuple(tables),
        variant=variant,
    )


def _hyper(e: Entry) -> Mapping[str, Any]:
    """All hyperparameters of a row, defaults included where its records have them."""
    return {**next((h for r in e.runs if (h := r.body.hyper)), {}), **e.hyper}


def _tells(c: Comparison) -> bool:
    """Whether differences in a table mean anything: some method has learned the task."""
    if c.learned is not False or c.majority is None:
        return True
    known = [v.interval for v in verdicts.of(c).values() if v.interval]
    return any(high < c.majority if c.direction == "min" else low > c.majority for low, high in known)
