"""The cells of a report's tables, each with its printed text and the origin of its number; found by name or number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftbench.errors import UserError, unknown
from peftbench.records import packs
from peftbench.records.record import Record
from peftbench.report.data import average_origins, origins
from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.origins import Origin
from peftbench.report.tables import columns, differences, formatting

NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
FULL = 4  # cells that are explained at once; of more, only the names are listed
SHOWN = 8  # samples of a record that are written out


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        table: title of the table: a task, or the average.
        row: label of the configuration.
        column: the column's name.
        heading: its heading.
        printed: the cell's text.
        origin: makes the origin of its number.
    """

    table: str
    row: str
    column: str
    heading: str
    printed: str
    origin: Callable[[], Origin]

    @property
    def name(self) -> str:
        """What a user calls it: `lora score`."""
        return f"{self.row} {self.column}"


def cells(comparisons: Sequence[Comparison], averages: Sequence[Average], records: Sequence[Record]) -> list[Cell]:
    """The cells of the tables of scores, of differences and over tasks.

    Args:
        comparisons: the tables.
        averages: the tables over tasks.
        records: the records that they are made of.
    """
    found: list[Cell] = []
    for a in averages:
        for s in a.standings:
            known = average_origins.over_tasks(a, s, comparisons)
            found += _row(f"{a.experiment}: average over tasks", s.label, columns.average_columns(a), s, known)
    for c in comparisons:
        all_ = [*columns.columns(c), *differences.columns(c)[1:]]
        for e in c.entries:
            found += _row(c.title, e.label, all_, e, origins.of(c, e, records))
    return found


def _row(
    table: str, label: str, all_: Sequence[columns.Column], row: Any, known: Mapping[str, Callable[[], Origin]]
) -> Iterator[Cell]:
    for column in all_[1:]:
        if column.key in known and (printed := column.cell(row)) != formatting.DASH:
            yield Cell(table, label, column.key, column.heading, printed, known[column.key])


def chosen(cells: Sequence[Cell], what: str, task: str | None = None) -> list[Cell]:
    """The cells that a user asks for.

    Args:
        cells: all cells.
        what: a cell's name, such as `lora score`, or a number as it is printed.
        task: title of the table; None for all.

    Raises:
        UserError: there is no such table, cell or number; the message lists what there is.
    """
    tables = list(dict.fromkeys(cell.table for cell in cells))
    if task is not None and task not in tables:
        raise unknown("table", task, tables, where="--task")
    cells = [cell for cell in cells if task in (None, cell.table)]
    if not cells:
        raise UserError("no table of scores here: there are records of neither runs nor a comparison of them")
    number = NUMBER.fullmatch(_plain(what))
    found = [cell for cell in cells if (_has(cell.printed, what) if number else cell.name == what)]
    if not found:
        raise _missing(cells, what, number is not None)
    return found


def named(cells: Sequence[Cell]) -> str:
    """The rows and the columns of cells, in two sentences."""
    rows, columns = (list(dict.fromkeys(getattr(cell, kind) for cell in cells)) for kind in ("row", "column"))
    return f"Rows: {', '.join(rows)}. Columns: {', '.join(columns)}." if cells else "It has no table of scores."


def _missing(cells: Sequence[Cell], what: str, is_number: bool) -> UserError:
    rows = list(dict.fromkeys(cell.row for cell in cells))
    if is_number:
        return UserError(
            f"{what}: no cell prints this number. Give it as it is printed, or name a cell, such as {cells[0].name!r}"
        )
    whose = [row for row in rows if what == row or what.startswith(f"{row} ")]
    if not whose:
        return unknown("cell", what, [f"{row} COLUMN" for row in rows])
    row = max(whose, key=len)
    column = what.removeprefix(row).strip()
    named = dict.fromkeys(cell.column for cell in cells if cell.row == row)
    return unknown(f"column of {row}", column, named)


def _plain(text: str) -> str:
    """A number without what surrounds it in a cell."""
    return text.replace("\u2212", "-").strip().rstrip("×%").strip()


def _has(printed: str, number: str) -> bool:
    """Whether a cell prints the number: the same digits, a plus or not."""
    return _plain(number).lstrip("+") in {found.lstrip("+") for found in NUMBER.findall(_plain(printed))}


def text(found: Sequence[Cell]) -> str:
    """What a terminal shows of the cells: each in full, or of many their names."""
    if len(found) <= FULL:
        return "\n\n".join("\n".join(_lines(cell)) for cell in found)
    listed = [f"  {cell.table}: {cell.name} = {cell.printed}" for cell in found]
    return "\n".join([f"{len(found)} cells print this; name one to see where it comes from:", *listed])


def _lines(cell: Cell) -> Iterator[str]:
    origin = cell.origin()
    yield f"{cell.table}: {cell.name} = {cell.printed}"
    yield f"  column: {cell.heading}"
    yield f"  {origin.formula}"
    for raw in origin.raw:
        yield f"  {packs.shown(raw.path)}: {raw.field} = {_value(raw.value)}"
    yield f"  {origin.computation}"


def _value(value: object) -> str:
    if isinstance(value, list):
        more = f", ... ({len(value)} in all)" if len(value) > SHOWN else ""
        return f"{', '.join(f'{v:.6g}' for v in value[:SHOWN])}{more}"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def json_ready(found: Sequence[Cell]) -> list[dict[str, Any]]:
    """The cells as JSON: table, row, column, printed, formula, computation, value and the records' raw values."""
    rows = []
    for cell in found:
        origin = cell.origin()
        raw = [{"record": packs.shown(r.path), "field": r.field, "value": r.value} for r in origin.raw]
        facts = {"table": cell.table, "row": cell.row, "column": cell.column, "printed": cell.printed}
        made = {"formula": origin.formula, "computation": origin.computation, "value": origin.value, "raw": raw}
        rows.append({**facts, **made})
    return rows
