"""Read table files (CSV, TSV, JSONL) with the line of each row, so that messages can name a bad row.

CSV has commas, double quotes and a header. TSV has tabs and a header but no quoting, because GLUE's files have
unbalanced quotes. JSONL has one object in each line. All are UTF-8, with or without a byte-order mark.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, unknown

FORMATS = (".csv", ".tsv", ".jsonl")
_EXPECTED = 'each line must be one JSON object, e.g. {"text": "...", "label": "..."}'
_KINDS = {"list": "a list", "str": "a text", "int": "a number", "float": "a number", "bool": "true or false"}
Row = tuple[int, dict[str, Any]]  # line in the file (1-based), column -> value


def read(path: Path) -> list[Row]:
    """Read all rows of a CSV, TSV or JSONL file; its suffix decides the format.

    Raises:
        UserError: the file cannot be read or is not valid; the message names the line.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return list(_jsonl(path))
    if suffix == ".csv":
        return list(_with_header(path, _csv_records(path)))
    if suffix == ".tsv":
        return list(_with_header(path, tsv_records(path)))
    raise UserError(f"{path}: unknown format {suffix!r}; valid: {', '.join(FORMATS)}")


def text(path: Path) -> str:
    """Read the text of a file.

    Raises:
        UserError: the file cannot be read or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def tsv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields of each line that is not blank.

    Only \\n ends a line, because texts may contain other line separators.
    """
    for number, line in enumerate(text(path).split("\n"), start=1):
        if line.strip("\r\n "):
            yield number, line.rstrip("\r").split("\t")


def column(rows: Sequence[Row], name: str, path: Path, what: str) -> None:
    """Check that a table has a column.

    Args:
        rows: the rows of the table.
        name: the name of the column.
        path: the file, to begin the message with.
        what: what the column is for.

    Raises:
        UserError: the table does not have the column; the message lists its columns.
    """
    if rows and name not in rows[0][1]:
        raise unknown(f"column for {what}", name, rows[0][1], where=str(path))


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    while True:
        start = reader.line_num + 1  # a quoted field may span lines; the row's first line counts
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}, line {start}: {error}; check the quotes of this row") from error
        if fields:
            yield start, fields


def _with_header(path: Path, records: Iterable[tuple[int, list[str]]]) -> Iterator[Row]:
    records = iter(records)
    _, header = next(records, (0, []))
    if not header:
        raise UserError(f"{path} is empty; it needs a header line with the columns' names")
    repeated = sorted({c for c in header if header.count(c) > 1})
    if repeated:
        raise UserError(f"{path}, line 1: column {repeated[0]!r} is there twice; names must differ")
    for number, fields in records:
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(fields)} fields where the header has {len(header)} "
                f"({', '.join(header)}); is the row cut off, or a separator inside a field?"
            )
        yield number, dict(zip(header, fields, strict=True))


def _jsonl(path: Path) -> Iterator[Row]:
    first: dict[str, Any] | None = None
    for number, line in enumerate(text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({error.msg} at character {error.pos + 1}); {_EXPECTED}"
            ) from error
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number}: {_KINDS.get(type(value).__name__, 'null')}; {_EXPECTED}")
        first = first if first is not None else value
        yield number, value
    if first is None:
        raise UserError(f"{path} is empty; it needs one JSON object a line")
