"""The page's tables: headings and cells as text, each with what it sorts by, its bar, and the records behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftbench.report.data import families, verdicts
from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.media.plain import visible
from peftbench.report.tables import columns as tables
from peftbench.report.tables import export
from peftbench.report.tables.columns import Column

RARE = 10  # rank of a column from which on it is hidden at first
UNITS = {"memory": tables.MIB, "stored": tables.KIB, "step": 1e-3, "latency": 1e-3}  # of headings, in bytes or seconds
OF_RUNS = ("score", "sd", "relative", "trainable", "head", "size", "stored", "memory", "failed")


@dataclass(frozen=True)
class Head:
    """A column: its name in links and choices, heading, whether it is hidden at first, and whether it holds numbers."""

    key: str
    heading: str
    hidden: bool
    is_number: bool


@dataclass(frozen=True)
class Bar:
    """An interval as a small bar: low, value and high in percent of the cell's width."""

    low: float
    at: float
    high: float


@dataclass(frozen=True)
class Cell:
    """A cell: text, number in the heading's unit, bar, the records behind it ("runs" or "pass"), and its interval."""

    text: str
    value: float | None = None
    bar: Bar | None = None
    source: str = "runs"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """A row with its family."""

    label: str
    family: str
    cells: tuple[Cell, ...]
    is_reference: bool = False


@dataclass(frozen=True)
class Table:
    """A table, its rows in the order of the report."""

    heads: tuple[Head, ...]
    rows: tuple[Row, ...]

    @property
    def by_family(self) -> dict[str, list[Row]]:
        """The rows of each family."""
        found = {name: [r for r in self.rows if r.family == name] for name in families.ORDER}
        return {name: rows for name, rows in found.items() if rows}


Interval = tuple[float | None, float | None, float | None]  # low, value, high


def scores(c: Comparison) -> Table:
    """The table of scores and costs, with every column of the report that holds anything."""
    shown = tables.with_values(tables.columns(c), c.entries)
    exported = {e.label: export.row(c, e) for e in c.entries}
    around = {
        "score": {e.label: _score(c, e) for e in c.entries},
        "relative": {e.label: _relative(c, e) for e in c.entries},
        "step-ratio": {e.label: _step_ratio(e) for e in c.entries},
    }
    bars = {key: _bars(found) for key, found in around.items()}
    rows = []
    for e in c.entries:
        cells = [
            Cell(
                visible(column.cell(e)),
                _value(column.key, exported[e.label]),
                bars.get(column.key, {}).get(e.label),
                "runs" if column.key in (*OF_RUNS, *c.other_metrics, "method") else "pass",
                *_ends(around.get(column.key, {}).get(e.label)),
            )
            for column in shown
        ]
        rows.append(Row(visible(e.label), families.of(e.method), tuple(cells), e.label == c.reference))
    return Table(tuple(_head(column, column.rank >= RARE) for column in shown), tuple(rows))


def average(a: Average) -> Table:
    """The table over tasks."""
    shown = tables.with_values(tables.average_columns(a), a.standings)
    bars = _bars({s.label: (*(s.relative_interval or (None, None)), s.relative) for s in a.standings}, order=(0, 2, 1))
    values: Mapping[str, Callable[[Any], float | None]] = {
        "score": lambda s: s.relative,
        "rank": lambda s: s.rank,
        "trainable": lambda s: s.trainable,
        "memory": lambda s: s.peak_ratio,
        "step-ratio": lambda s: s.step_ratio,
        "failed": lambda s: s.failed,
    }
    rows = []
    for s in a.standings:
        cells = [
            Cell(
                visible(column.cell(s)),
                values[column.key](s) if column.key in values else None,
                bars.get(s.label) if column.key == "score" else None,
                "runs",
                *(s.relative_interval or (None, None) if column.key == "score" else (None, None)),
            )
            for column in shown
        ]
        rows.append(Row(visible(s.label), families.of(s.method), tuple(cells), s.label == a.reference))
    return Table(tuple(_head(column, False) for column in shown), tuple(rows))


def plain(shown: Sequence[Column], rows: Iterable[Any]) -> dict[str, list[Any]]:
    """A table for reading alone: headings and texts."""
    rows = list(rows)
    kept = tables.with_values(shown, rows) or list(shown)
    return {
        "heads": [visible(column.heading) for column in kept],
        "rows": [[visible(column.cell(row)) for column in kept] for row in rows],
    }


def _ends(found: Interval | None) -> tuple[float | None, float | None]:
    low, _, high = found or (None, None, None)
    return (None, None) if low is None or high is None else (low, high)


def _head(column: Column, hidden: bool) -> Head:
    return Head(column.key, visible(column.heading), hidden, column.key not in ("method", "size"))


def _value(key: str, row: Mapping[str, Any]) -> float | None:
    """The number that a cell sorts by, in the unit of its heading; None for a text or a dash."""
    names = {
        "score": "mean",
        "memory": "peak_memory_bytes",
        "stored": "stored_bytes",
        "step": "step_seconds",
        "step-ratio": "step_ratio",
        "size": "deviation",
    }
    if key.startswith("latency-"):
        found = row["latency_seconds"].get(key.removeprefix("latency-"), {}).get("unmerged")
    elif key in row["other_metrics"]:
        found = row["other_metrics"][key]["mean"]
    else:
        found = row.get(names.get(key, key))
    unit = UNITS.get("latency" if key.startswith("latency-") else key, 1)
    return found / unit if isinstance(found, (int, float)) else None


def _score(c: Comparison, e: Entry) -> Interval:
    v = verdicts.of(c).get(e.label)
    low, high = v.interval if v and v.interval else (None, None)
    return low, e.mean, high


def _relative(c: Comparison, e: Entry) -> Interval:
    v = verdicts.of(c).get(e.label)
    low, high = (v.relative.interval() if v and v.relative else None) or (None, None)
    return low, e.relative, high


def _step_ratio(e: Entry) -> Interval:
    ratio = e.times.ratio if e.times else None
    return (ratio.low, ratio.median, ratio.high) if ratio else (None, None, None)


def _bars(found: Mapping[str, Interval], order: tuple[int, int, int] = (0, 1, 2)) -> dict[str, Bar]:
    """The bars of a column on one scale, from its smallest to its largest end."""
    ends = {label: tuple(of[i] for i in order) for label, of in found.items()}
    known = [x for of in ends.values() for x in of if x is not None]
    if not known or max(known) <= min(known):
        return {}
    low, width = min(known), max(known) - min(known)

    def percent(x: float) -> float:
        return round(100 * (x - low) / width, 2)

    bars = {}
    for label, (below, at, above) in ends.items():
        if at is not None:
            bars[label] = Bar(*(percent(at if x is None else x) for x in (below, at, above)))
    return bars
