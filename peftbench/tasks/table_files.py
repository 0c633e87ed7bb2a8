"""Read table files with the line of each row, so that messages can name a bad row.

A file is CSV, TSV, JSONL (one object in each line), JSON (an array of objects) or Parquet. A text file may be
compressed with gzip. CSV and TSV have a header and are read as Python's `csv` module writes them. Texts are UTF-8, with
or without a byte-order mark, unless a `Dialect` says otherwise. GLUE's own files have unbalanced quotes; `tsv_records`
reads them.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, shown, unknown
from peftbench.records import lookalike, user_file
from peftbench.tasks import separated
from peftbench.tasks.separated import PLAIN, SEPARATORS, Dialect, Row

TEXTS = (*SEPARATORS, ".jsonl", ".json")
FORMATS = (*TEXTS, ".parquet", *(f"{suffix}.gz" for suffix in TEXTS))
LARGEST_FILE = 1 << 29  # bytes, unpacked; the rows of a file are held in memory, where they take several times as many
MOST_ROWS = 10**7
LARGEST_RATIO = 100  # of a packed file: text packs five to twenty times
SMALL_FILE = 1 << 26  # bytes that may pack better
PARQUET_ROWS = 1_024  # rows that are unpacked at once
_FIX = "give a smaller file, such as a sample of its rows"
_EXPECTED = 'each line must be one JSON object, e.g. {"text": "...", "label": "..."}'
_KINDS = {"list": "a list", "str": "a text", "int": "a number", "float": "a number", "bool": "true or false"}


def read(path: Path, dialect: Dialect = PLAIN) -> list[Row]:
    """Read all rows of a file; its suffix decides the format.

    Args:
        path: the file.
        dialect: how a text file is written.

    Raises:
        UserError: the file cannot be read or is not valid; the message names the line.
    """
    suffix = suffix_of(path)
    if suffix not in FORMATS:
        raise UserError(f"{path}: unknown format {shown(suffix)}; valid: {', '.join(FORMATS)}")
    suffix = suffix.removesuffix(".gz")
    dialect.check_fits(path, suffix)
    if suffix == ".parquet":
        return _parquet(path)
    content = text(path, dialect.encoding)
    if suffix == ".jsonl":
        return list(_jsonl(path, content))
    if suffix == ".json":
        return list(_json(path, content))
    return separated.rows(path, content, dialect, dialect.separator or SEPARATORS[suffix])


def suffix_of(path: Path) -> str:
    """Return the suffix that decides the format, in lower case: ".csv", ".csv.gz"."""
    suffixes = path.suffixes
    return "".join(suffixes[-2:] if path.suffix.lower() == ".gz" else suffixes[-1:]).lower()


def place(path: Path, number: int) -> str:
    """Return the place of a row, to begin a message with."""
    return f"{path}, {unit(path)} {number}"


def has_header(path: Path) -> bool:
    """Whether the first line of a file names the columns."""
    return suffix_of(path).removesuffix(".gz") in SEPARATORS


def unit(path: Path) -> str:
    """Return what the numbers of a file's rows count: lines, or rows where many may share a line."""
    return "row" if suffix_of(path).removesuffix(".gz") in (".json", ".parquet") else "line"


def text(path: Path, encoding: str | None = None) -> str:
    """Read the text of a file, which may be compressed with gzip.

    Args:
        path: the file.
        encoding: the text's encoding; None: UTF-8.

    Raises:
        UserError: the file cannot be read, is not text in that encoding, or has a NUL character.
    """
    raw = raw_bytes(path)
    if encoding is None and not raw.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in raw:  # UTF-16 is told below
        raise _nul(path, raw[: raw.index(b"\0")].count(b"\n"))
    try:
        decoded = raw.decode(encoding or "utf-8").removeprefix("\ufeff")
    except (UnicodeError, AssertionError) as error:  # Python's own idna and punycode assert
        start, reason = (error.start, error.reason) if isinstance(error, UnicodeDecodeError) else (0, str(error))
        line = raw[:start].count(b"\n") + 1
        fix = "save the file as UTF-8, or give its encoding (encoding: ...)"
        raise UserError(f"{path}, line {line}: not {encoding or 'UTF-8'} ({reason}); {fix}") from error
    if "\0" in decoded:
        raise _nul(path, decoded[: decoded.index("\0")].count("\n"))
    if (lines := decoded.count("\n")) > MOST_ROWS:
        raise UserError(f"{path} has {lines:,} lines, and at most {MOST_ROWS:,} are read; {_FIX}")
    return decoded


def _nul(path: Path, lines_before: int) -> UserError:
    hint = "is the file damaged, or in another encoding (encoding: utf-16)?"
    return UserError(f"{path}, line {lines_before + 1}: a NUL character; {hint}")


def raw_bytes(path: Path) -> bytes:
    """Read the bytes of a file, without the compression of `.gz`.

    Raises:
        UserError: the file cannot be read, is too large, or its compression is damaged.
    """
    raw = user_file.read(path, LARGEST_FILE, _FIX)
    try:
        return _unpacked(path, raw) if path.suffix.lower() == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file ({error}); is it cut off, or not compressed?") from error


def _unpacked(path: Path, raw: bytes) -> bytes:
    most = min(LARGEST_FILE, max(SMALL_FILE, LARGEST_RATIO * len(raw)))
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
        content = packed.read(most + 1)
    if len(content) > most:
        raise UserError(
            f"{path} has {len(raw):,} bytes and unpacks to more than {most:,}; at most {LARGEST_FILE:,} are read, and "
            f"beyond {SMALL_FILE:,} at most {LARGEST_RATIO} times the file's own; {_FIX}"
        )
    return content


def check(path: Path) -> None:
    """Check that a path is a file that can be read, without reading it.

    Raises:
        UserError: it is a directory, a pipe or a device, or too large.
    """
    try:
        user_file.check_regular(path, path.stat(), LARGEST_FILE, _FIX)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({user_file.reason(error)})") from error


def tsv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields of each line of one of GLUE's TSV files that is not blank; quotes are text.

    Only \\n ends a line, because texts may contain other line separators.
    """
    return separated.raw_records(text(path), "\t")


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
    if rows and not any(name in row for _, row in rows):  # objects of JSON may lack keys
        names = list(rows[0][1])
        if mistake := lookalike.mistaken(f"column for {what}", name, names):
            raise UserError(f"{path}: {mistake}")
        error = unknown(f"column for {what}", name, names, where=str(path))
        others = [s for s in ";,\t|" if len(names) == 1 and s in names[0]]
        if not others:
            raise error
        raise UserError(f"{error}. The header has one column: is the separator another one (separator: {others[0]!r})?")


class _Reader:
    """Reads JSON, and keeps which objects have a key twice."""

    def __init__(self) -> None:
        self.repeated: dict[int, tuple[dict[str, Any], str]] = {}  # by id; the object stays, so that its id does
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def read(self, content: str) -> Any:
        try:
            return self.decoder.decode(content)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists in lists without end
            raise json.JSONDecodeError(_beyond(error), content, 0) from error

    def row(self, place: str, value: Any, expected: str) -> dict[str, Any]:
        """Return a value that is a row: an object that has each key once."""
        if not isinstance(value, dict):
            raise UserError(f"{place}: {_kind(value)}; {expected}")
        if id(value) in self.repeated:
            raise UserError(f"{place}: key {self.repeated[id(value)][1]!r} is there twice; names must differ")
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            self.repeated[id(made)] = made, next(name for name, n in Counter(names).items() if n > 1)
        return made


def _jsonl(path: Path, content: str) -> Iterator[Row]:
    is_empty, reader = True, _Reader()
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        is_empty = False
        try:
            value = reader.read(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({error.msg} at character {error.pos + 1}); {_EXPECTED}"
            ) from error
        yield number, reader.row(f"{path}, line {number}", value, _EXPECTED)
    if is_empty:
        raise UserError(f"{path} is empty; it needs one JSON object a line")


def _json(path: Path, content: str) -> Iterator[Row]:
    expected = 'the file must be one JSON array of objects, e.g. [{"text": "...", "label": "..."}]'
    reader = _Reader()
    try:
        values = reader.read(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); {expected}") from error
    if not isinstance(values, list):
        raise UserError(f"{path}: {'an object' if isinstance(values, dict) else _kind(values)}; {expected}")
    for number, value in enumerate(values, start=1):
        yield number, reader.row(f"{path}, row {number}", value, expected)


def _beyond(error: Exception) -> str:
    what = "values inside values, too deep" if isinstance(error, RecursionError) else "a number of too many digits"
    return f"{what} to read; a row is one flat object of texts and numbers"


def _kind(value: Any) -> str:
    return _KINDS.get(type(value).__name__, "null")


def _parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    check(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_parquet(path, names, file.metadata.num_rows)
            columns = _parquet_columns(path, names, file.iter_batches(batch_size=PARQUET_ROWS))
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # pyarrow's errors derive from these
        raise UserError(f"{path} is no readable Parquet file ({(str(error) or '?').splitlines()[0]})") from error
    return [(i, dict(zip(names, row, strict=True))) for i, row in enumerate(zip(*columns, strict=True), start=1)]


def _check_parquet(path: Path, names: Sequence[str], rows: int) -> None:
    separated.check_columns(f"{path}", names)
    if rows > MOST_ROWS:
        raise UserError(f"{path} has {rows:,} rows, and at most {MOST_ROWS:,} are read; {_FIX}")


def _parquet_columns(path: Path, names: Sequence[str], batches: Iterator[Any]) -> list[list[Any]]:
    """Return the values of each column. Few bytes of a file may stand for many: they are counted as they are read."""
    columns, unpacked = [list[Any]() for _ in names], 0
    for batch in batches:
        unpacked += batch.nbytes
        if unpacked > LARGEST_FILE:
            raise UserError(f"{path} unpacks to more than {LARGEST_FILE:,} bytes; {_FIX}")
        for name, values, column in zip(names, columns, batch.columns, strict=True):
            try:
                values += column.to_pylist()
            except (ValueError, OverflowError) as error:  # times beyond Python's, unknown time zones, damaged texts
                raise UserError(
                    f"{path}: column {name!r} cannot be read ({error}); write the file without it"
                ) from error
    return columns
