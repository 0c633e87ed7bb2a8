"""Several result sets side by side: one table for each measure, methods in rows and tables of the sets in columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from peftbench.report.data import families, verdicts
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.media.plain import visible
from peftbench.report.web import costs

MEASURES: Mapping[str, str] = {
    "score": "score",
    "relative": "score / reference",
    **costs.NAMES,
}


@dataclass(frozen=True)
class Column:
    """A table of a set: the number of the set, its name, the table's title and metric, and the address of its page."""

    number: int
    experiment: str
    title: str
    metric: str
    address: str


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and whether its row may be the best of its column."""

    text: str
    is_tied: bool = False


@dataclass(frozen=True)
class Row:
    """A method by its label; one label means one method and its settings only within a set."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Measure:
    """A table of one measure."""

    key: str
    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class SideBySide:
    """Columns, and a table for each measure that any of them has."""

    columns: tuple[Column, ...]
    measures: tuple[Measure, ...]


def of(sets: Sequence[tuple[str, str, Sequence[Comparison]]]) -> SideBySide | None:
    """Set the tables of several result sets side by side.

    Args:
        sets: file of the page, name, and tables of each.

    Returns:
        The columns and the measures; None with fewer than two tables.
    """
    tables = [(number, file, name, c) for number, (file, name, own) in enumerate(sets) for c in own]
    if len(tables) < 2:
        return None
    columns = tuple(
        Column(number, visible(name), visible(c.title), visible(c.metric), f"{file}#task={c.slug}")
        for number, file, name, c in tables
    )
    entries = [{e.label: e for e in c.entries} for *_, c in tables]
    labels = _ordered([c for *_, c in tables])
    measures = []
    for key, heading in MEASURES.items():
        rows = tuple(
            Row(
                visible(label),
                tuple(_cell(key, c, of_table.get(label)) for (*_, c), of_table in zip(tables, entries, strict=True)),
            )
            for label in labels
        )
        if any(cell.text for row in rows for cell in row.cells):
            measures.append(Measure(key, heading, rows))
    return SideBySide(columns, tuple(measures))


def _ordered(tables: Sequence[Comparison]) -> list[str]:
    """All labels: by family, and in a family as the tables name them."""
    family = {e.label: families.of(e.method) for c in tables for e in reversed(c.entries)}
    order = list(families.ORDER)
    known = dict.fromkeys(e.label for c in tables for e in c.entries)
    return sorted(known, key=lambda label: order.index(family[label]) if family[label] in order else len(order))


def _cell(key: str, c: Comparison, e: Entry | None) -> Cell:
    if e is None:
        return Cell("")
    v = verdicts.of(c).get(e.label)
    is_tied = bool(key in ("score", "relative") and v and v.tied)
    return Cell(_TEXTS[key](c, e), is_tied)


def _score(c: Comparison, e: Entry) -> str:
    return "" if e.mean is None else costs.score(c, e)


def _relative(c: Comparison, e: Entry) -> str:
    return "" if e.relative is None else f"{e.relative:.3f}"


def _amount(name: str) -> Callable[[Comparison, Entry], str]:
    return lambda c, e: costs.amount(e, name)


_TEXTS: Mapping[str, Callable[[Comparison, Entry], str]] = {
    "score": _score,
    "relative": _relative,
    **{name: _amount(name) for name in costs.NAMES},
}
