"""Reading CSV, TSV and JSONL with the line of every row, so that a bad row can be named.

CSV: comma, double quotes, header. TSV: tab, header, quoting off (GLUE's files have unbalanced quotes). JSONL: one
object a line. All UTF-8, with or without a byte-order mark.
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
_WANTED = 'each line must be one JSON object, e.g. {"text": "...", "label": "..."}'
_KINDS = {"list": "a list", "str": "a text", "int": "a number", "float": "a number", "bool": "true or false"}
Row = tuple[int, dict[str, Any]]  # line in the file (1-based), column -> value


def read(path: Path) -> list[Row]:
    """All rows of a CSV, TSV or JSONL file, by its suffix. Raises UserError naming file and line."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return list(_jsonl(path))
    if suffix == ".csv":
        return list(_with_header(path, _csv_records(path)))
    if suffix == ".tsv":
        return list(_with_header(path, tsv_records(path)))
    raise UserError(f"{path}: unknown format {suffix!r}; valid: {', '.join(FORMATS)}")


def text(path: Path) -> str:
    """The file's text; UserError where it cannot be read or is not UTF-8."""
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
    """(line, fields) of every line that is not blank; split at \\n alone, as texts may hold other line separators."""
    for number, line in enumerate(text(path).split("\n"), start=1):
        if line.strip("\r\n "):
            yield number, line.rstrip("\r").split("\t")


def column(rows: Sequence[Row], name: str, path: Path, what: str) -> None:
    """Raise UserError with the columns there are unless the table has the column `name`."""
    if rows and name not in rows[0][1]:
        raise unknown(f"column for {what}", name, rows[0][1], where=str(path))


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    while True:
        start = reader.line_num + 1  # a quoted field may span lines: name the row's first
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
    twice = sorted({c for c in header if header.count(c) > 1})
    if twice:
        raise UserError(f"{path}, line 1: column {twice[0]!r} is there twice; names must differ")
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
                f"{path}, line {number}: not JSON ({error.msg} at character {error.pos + 1}); {_WANTED}"
            ) from error
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number}: {_KINDS.get(type(value).__name__, 'null')}; {_WANTED}")
        first = first if first is not None else value
        yield number, value
    if first is None:
        raise UserError(f"{path} is empty; it needs one JSON object a line")
