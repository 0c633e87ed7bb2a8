"""What a language model lost while it was trained: the probes of general language, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from peftbench.records.record import RunRecord
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.stats import intervals
from peftbench.report.stats.intervals import Estimate

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Measure:
    """A probe of general language, and the fields of its points.

    Attributes:
        probe: its name.
        mean: field of the mean over its windows or questions.
        units: field of the value of each.
        unit: what one of them is called.
    """

    probe: str
    mean: str
    units: str
    unit: str


LOSS = Measure("wikitext2_loss", "loss", "windows", "window")
ANSWERS = Measure("arc_easy", "accuracy", "right", "question")
MEASURES = (LOSS, ANSWERS)


@dataclass(frozen=True)
class Change:
    """Means over the seeds before the first step and with the tested weights, and how far the latter is above."""

    before: float
    after: float
    change: Estimate


def of_run(r: RunRecord, m: Measure) -> Array | None:
    """After less before, for each window or question (n,); None without both."""
    ends = _ends(r, m)
    return None if ends is None else ends[1][1] - ends[0][1]


def of(e: Entry, m: Measure) -> Change | None:
    """The change over the finished seeds; None if one of them lacks the probe, or was asked other things."""
    ends = [_ends(r, m) for r in e.runs if r.is_finished]
    known = [x for x in ends if x is not None]
    if not known or len(known) < len(ends) or len({len(units) for run in known for _, units in run}) > 1:
        return None
    change = intervals.of_examples(np.stack([after - before for (_, before), (_, after) in known]))
    return Change(fmean(x[0][0] for x in known), fmean(x[1][0] for x in known), change)


def known(c: Comparison) -> list[Measure]:
    """The measures that any configuration of a table has."""
    return [m for m in MEASURES if any(of(e, m) is not None for e in c.entries)]


def _ends(r: RunRecord, m: Measure) -> tuple[tuple[float, Array], tuple[float, Array]] | None:
    probe = r.body.probes.get(m.probe)
    if probe is None or len(probe.points) < 2 or probe.points[0].get("step") != 0:
        return None
    first, last = _read(probe.points[0], m), _read(probe.points[-1], m)
    return None if first is None or last is None or len(first[1]) != len(last[1]) else (first, last)


def _read(point: Mapping[str, Any], m: Measure) -> tuple[float, Array] | None:
    """The mean and the value of each; None where a record has no numbers in their place."""
    try:
        mean, units = float(point[m.mean]), np.asarray(point[m.units], dtype=float)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (mean, units) if units.ndim == 1 and len(units) and np.isfinite([mean, *units]).all() else None
