"""The main figure for a browser without scripts: scores with their intervals, placed for the template to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from peftbench.report.data import answer, families, verdicts
from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison
from peftbench.report.media.plain import visible
from peftbench.report.web.charts import SHAPES

LEFT, PANEL, STEP = 190, 500, 22  # pixels: names, the panel, and a row
TICKS = 5  # about so many


@dataclass(frozen=True)
class Mark:
    """A row: its name, the ends of its interval and its mean in pixels, its shape, and whether it is the answer."""

    label: str
    low: float
    at: float
    high: float
    y: float
    shape: str
    is_chosen: bool


@dataclass(frozen=True)
class Picture:
    """The figure: title, size in pixels, rows, and ticks with their places."""

    title: str
    width: int
    height: int
    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]


Row = tuple[str, str, float, tuple[float, float] | None]  # label, method, mean, interval


def scores(c: Comparison) -> Picture | None:
    """The scores of a table; None without any."""
    told, known = answer.of(c), verdicts.of(c)
    shown = [(e, known[e.label]) for e in c.entries if e.label in known]
    rows = [(e.label, e.method, v.mean.value, v.interval) for e, v in shown]
    return _placed(rows, f"{visible(c.metric)}, mean and 95 % interval", told.chosen if told else None)


def average(a: Average) -> Picture | None:
    """The scores of a table over tasks; None without any."""
    rows = [(s.label, s.method, s.relative, s.relative_interval) for s in a.standings if s.relative is not None]
    return _placed(rows, f"score relative to {visible(a.reference)}, mean over tasks and 95 % interval", None)


def _placed(rows: Sequence[Row], title: str, chosen: str | None) -> Picture | None:
    if not rows:
        return None
    ends = [x for _, _, mean, around in rows for x in (mean, *(around or ()))]
    low, high = min(ends), max(ends)
    wide = (high - low) or abs(high) or 1.0

    def place(x: float) -> float:
        return round(LEFT + 8 + (PANEL - 16) * (x - low) / wide, 1)

    marks = tuple(
        Mark(
            visible(label),
            place((around or (mean, mean))[0]),
            place(mean),
            place((around or (mean, mean))[1]),
            STEP * i + STEP / 2,
            SHAPES[families.of(method)],
            label == chosen,
        )
        for i, (label, method, mean, around) in enumerate(rows)
    )
    ticks = tuple((place(x), text) for x, text in _ticks(low, low + wide))
    return Picture(title, LEFT + PANEL, STEP * len(rows) + 44, marks, ticks)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers within a range, as they are written.

    >>> _ticks(0.31, 1.04)
    [(0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8'), (1.0, '1.0')]
    """
    raw = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= raw)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(round(i * step, 10), f"{i * step:,.{digits}f}") for i in range(first, last + 1)]
