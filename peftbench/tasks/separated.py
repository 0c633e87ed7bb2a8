"""CSV and TSV: how such files are written, and their rows with line numbers."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, shown, unknown
from peftbench.tasks import cells

SEPARATORS = {".csv": ",", ".tsv": "\t"}
QUOTES = ("double", "none")
MOST_COLUMNS = 10_000
Row = tuple[int, dict[str, Any]]  # line in the file (1-based), column -> value; for JSON and Parquet, the row's number


@dataclass(frozen=True)
class Dialect:
    """How a text file is written.

    Attributes:
        separator: the character between the fields of CSV and TSV; None: comma for .csv, tab for .tsv.
        encoding: the text's encoding; None: UTF-8.
        quotes: "double": a field may stand in double quotes; "none": quotes are text; None: "double".
    """

    separator: str | None = None
    encoding: str | None = None
    quotes: str | None = None

    def check(self, where: str) -> None:
        """Check the values as a user wrote them.

        Args:
            where: the place, to begin the message with.

        Raises:
            UserError: a value is not valid.
        """
        separator, encoding = self.separator, self.encoding
        if separator is not None and (not isinstance(separator, str) or len(separator) != 1 or separator in '"\r\n\0'):
            raise UserError(f'{where}: separator must be one character, such as ";" or "\\t", not {shown(separator)}')
        if self.quotes is not None and self.quotes not in QUOTES:
            raise unknown("value of quotes", self.quotes, QUOTES, where=where)
        if encoding is not None and not _is_text_encoding(encoding):
            raise UserError(
                f"{where}: unknown encoding {shown(encoding)}; valid are Python's text encodings, such as utf-8, "
                "utf-16, cp1252 or latin-1"
            )

    def check_fits(self, path: Path, suffix: str) -> None:
        """Refuse what a format has not."""
        if suffix not in SEPARATORS:
            for name, value in (("separator", self.separator), ("quotes", self.quotes)):
                if value is not None:
                    raise UserError(f"{path}: {name} is for CSV and TSV files; leave it out for {suffix}")
        if suffix == ".parquet" and self.encoding is not None:
            raise UserError(f"{path}: a Parquet file has no encoding to choose; leave the option out")


PLAIN = Dialect()


def rows(path: Path, content: str, dialect: Dialect, separator: str) -> list[Row]:
    """Return the rows of a text with a header.

    Args:
        path: the file, to begin messages with.
        content: its text.
        dialect: how it is written.
        separator: the character between fields.

    Raises:
        UserError: the text is not valid; the message names the line.
    """
    if dialect.quotes == "none":
        return list(_with_header(path, raw_records(content, separator), separator))
    return list(_with_header(path, _quoted_records(path, content, separator), separator))


def _is_text_encoding(name: object) -> bool:
    if not isinstance(name, str):
        return False
    try:
        b"a".decode(name)
    except LookupError:  # unknown, or from bytes to bytes
        return False
    except ValueError:  # such as UTF-16, where one byte is no character
        return "\0" not in name
    return True


def _lines(content: str) -> Iterator[str]:
    """Yield the lines of a text with their ends, as the csv module wants them, without a copy of the whole."""
    return (line[0] for line in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", content))


def raw_records(content: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields of each line that is not blank; quotes are text."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip("\r\n "):
            yield number, line.rstrip("\r").split(separator)


def _quoted_records(path: Path, content: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    with _long_fields():
        reader = csv.reader(_lines(content), delimiter=separator, strict=True)
        while True:
            start = reader.line_num + 1  # a quoted field may span lines; the row's first line counts
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(
                    f"{path}, line {start}: {error}; check the quotes of this row (a quote within quotes is doubled), "
                    "or write quotes: none if quotes are text in this file"
                ) from error
            if fields and (len(fields) > 1 or fields[0].strip(" ")):
                yield start, fields


def check_columns(where: str, names: Sequence[str]) -> None:
    """Check the names of a table's columns.

    Args:
        where: the place, to begin the message with.
        names: the names.

    Raises:
        UserError: two columns have one name, or there are too many.
    """
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{where}: {len(names):,} columns, and at most {MOST_COLUMNS:,} are read; leave some out")
    if repeated := sorted(name for name, times in Counter(names).items() if times > 1):
        raise UserError(f"{where}: column {shown(repeated[0])} is there twice; names must differ")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Replace the csv module's limit of 131,072 characters in a field by that of all tables."""
    before = csv.field_size_limit(cells.LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _with_header(path: Path, records: Iterable[tuple[int, list[str]]], separator: str) -> Iterator[Row]:
    records = iter(records)
    _, header = next(records, (0, []))
    if not header:
        raise UserError(f"{path} is empty; it needs a header line with the columns' names")
    check_columns(f"{path}, line 1", header)
    for number, fields in records:
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(fields)} fields where the header has {len(header)} "
                f"({', '.join(header)}); is the row cut off, or a separator {shown(separator)} inside a field?"
            )
        yield number, dict(zip(header, fields, strict=True))
