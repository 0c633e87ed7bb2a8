"""The rows of a user's file: the cells of the chosen columns as texts, with the line of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.tasks import cells, progress, table_files
from peftbench.tasks.separated import Dialect

POLICIES = ("refuse", "drop", "keep")  # what becomes of a row with a missing cell
NAMED = 5  # lines that a message names
_FIX = "fill them in, or write missing: drop to leave such rows out"


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row of a file.

    Attributes:
        path: the file.
        line: its line in the file; for JSON and Parquet, its number.
        text: the text.
        pair: the second text, if the task has one.
        targets: the label, or the answers.
    """

    path: Path
    line: int
    text: str
    pair: str | None
    targets: tuple[str, ...]

    @property
    def where(self) -> str:
        """The row's place, to begin a message with."""
        return table_files.place(self.path, self.line)


@dataclass(frozen=True)
class Columns:
    """Which columns are read, and what becomes of rows with a missing cell.

    Attributes:
        text: the column of the text.
        target: the column of the label or the answer.
        pair: the column of the second text, if there is one.
        target_name: "label" or "answer".
        may_lack_pair: whether a row may have no second text.
        missing: one of `POLICIES`.
        classes: names of classes, which are not missing whatever they are.
    """

    text: str
    target: str
    pair: str | None
    target_name: str
    may_lack_pair: bool
    missing: str
    classes: frozenset[str] = frozenset()

    @property
    def by_use(self) -> Mapping[str, str]:
        """The columns by their option."""
        return {"text": self.text, **({"pair": self.pair} if self.pair else {}), self.target_name: self.target}


def read(path: Path, columns: Columns, dialect: Dialect) -> tuple[list[TextRow], list[str]]:
    """Return the rows of a file, and notes on the rows that were left out.

    Args:
        path: the file.
        columns: the columns to read.
        dialect: how a text file is written.

    Raises:
        UserError: the file is not valid; the message names the line.
    """
    table = table_files.read(path, dialect)
    if not table:
        header = "a header and " if table_files.has_header(path) else ""
        raise UserError(f"{path} has {header}no rows; an empty split cannot be used")
    for what, column in columns.by_use.items():
        table_files.column(table, column, path, what)
    rows, incomplete = list[TextRow](), list[tuple[int, str]]()
    for line, row in progress.shown(table, f"reading {path.name}"):
        if (lacking := _lacking(row, columns)) is not None:
            incomplete.append((line, lacking))
        else:
            try:
                rows.append(_text_row(path, line, row, columns))
            except cells.BadCell as error:
                raise UserError(f"{table_files.place(path, line)}: {error}") from error
    if not incomplete:
        return rows, []
    if columns.missing != "drop":
        raise _missing(path, incomplete, dict(table), columns)
    if not rows:
        raise UserError(f"{path}: every row lacks a value in {_listed({c for _, c in incomplete})}; no row is left")
    lines = _lines(path, [line for line, _ in incomplete])
    return rows, [f"{len(incomplete)} rows of {path.name} left out: a value is missing ({lines})"]


def _lacking(row: Mapping[str, Any], columns: Columns) -> str | None:
    """Return the first column that has no value in a row; None if every cell has one."""
    words = columns.missing != "keep"
    if cells.is_missing(row.get(columns.text), words):
        return columns.text
    if columns.pair and not columns.may_lack_pair and cells.is_missing(row.get(columns.pair), words):
        return columns.pair
    target = row.get(columns.target)
    if isinstance(target, str) and target.strip() in columns.classes:
        return None
    answers = target if isinstance(target, list) and target else [target]
    return columns.target if any(cells.is_missing(answer, words) for answer in answers) else None


def _text_row(path: Path, line: int, row: Mapping[str, Any], columns: Columns) -> TextRow:
    target = row[columns.target]
    targets = target if columns.target_name == "answer" and isinstance(target, list) else [target]
    pair = row.get(columns.pair) if columns.pair else None
    no_pair = columns.pair is None or cells.is_missing(pair, columns.missing != "keep")
    return TextRow(
        path,
        line,
        cells.text(row[columns.text], columns.text),
        None if no_pair else cells.text(pair, str(columns.pair)),
        tuple(cells.text(v, columns.target).strip() for v in targets),
    )


def _missing(
    path: Path, incomplete: Sequence[tuple[int, str]], table: Mapping[int, Mapping[str, Any]], columns: Columns
) -> UserError:
    """Return the error for rows with missing cells: the first in words, the lines of the others."""
    line, column = incomplete[0]
    value = table[line].get(column)
    word = value.strip() if isinstance(value, str) else ""
    content = f"is missing (the word {word!r})" if word else "is empty"
    others = _lines(path, [n for n, _ in incomplete[1:]])
    more = f"; {len(incomplete)} rows in all lack a value: this one and {others}" if others else ""
    keep = ", or missing: keep if such words are text here" if word else ""
    return UserError(
        f"{table_files.place(path, line)}: column {column!r} {content}{more}. Empty text, null, None and NaN are all "
        f"taken for missing; {_FIX}{keep}"
    )


def _lines(path: Path, numbers: Sequence[int]) -> str:
    """Return the first few line numbers in words; nothing for none."""
    if not numbers:
        return ""
    rest = len(numbers) - NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"{table_files.unit(path)}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:NAMED]))}{more}"


def _listed(columns: set[str]) -> str:
    return " or ".join(map(repr, sorted(columns)))
