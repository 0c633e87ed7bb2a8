"""Users' files in every format: what is written is what is read, and a bad row is named with file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from peftbench import tasks
from peftbench.errors import UserError
from peftbench.tasks import progress, table_files

ROWS = [(f'he said "{i}", twice;\tand é ü 😀\nwith a second line', "yes" if i % 2 else "no") for i in range(40)]
OPTIONS = {"text": "body", "label": "stars"}


def _written(path: Path, rows: Sequence[tuple[str, str]] = ROWS, separator: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator).writerows([("body", "stars"), *rows])
    return path


def _open(path: Path, **options: Any) -> tasks.Dataset:
    return tasks.open_task("local", {"train": str(path), **OPTIONS, **options})


def _objects(rows: Sequence[tuple[Any, Any]] = ROWS) -> list[dict[str, Any]]:
    return [{"body": text, "stars": label} for text, label in rows]


def test_every_format_gives_the_same_data(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    files = [_written(tmp_path / "d.csv"), _written(tmp_path / "d.tsv", separator="\t")]
    for name, content in (
        ("d.jsonl", "".join(json.dumps(o) + "\n" for o in _objects())),
        ("d.json", json.dumps(_objects())),
        ("pretty.json", "\ufeff" + json.dumps(_objects(), indent=2, ensure_ascii=False)),
    ):
        files.append(tmp_path / name)
        files[-1].write_text(content, encoding="utf-8")
    for path in list(files):
        files.append(path.with_name(f"{path.name}.gz"))
        files[-1].write_bytes(gzip.compress(path.read_bytes()))
    files.append(tmp_path / "d.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_objects()), files[-1])
    opened = {path.name: _open(path) for path in files}
    assert {name: d.fingerprint for name, d in opened.items()} == dict.fromkeys(opened, opened["d.csv"].fingerprint)
    assert {d.name for d in opened.values()} == {"local/d", "local/pretty"}
    assert {e.text for d in opened.values() for s in (d.train, d.validation, d.test) for e in s} == {t for t, _ in ROWS}


def test_a_tsv_is_read_as_pythons_csv_module_writes_it(tmp_path: Path) -> None:
    rows = table_files.read(_written(tmp_path / "quoted.tsv", separator="\t"))
    assert [(row["body"], row["stars"]) for _, row in rows] == ROWS
    assert [line for line, _ in rows[:3]] == [2, 4, 6]


def test_separator_and_encoding_are_options(tmp_path: Path) -> None:
    rows = [(f"caf\u00e9 {i}", str(i % 2)) for i in range(40)]
    plain = _open(_written(tmp_path / "plain.csv", rows))
    odd = _written(tmp_path / "odd.csv", rows, ";", "cp1252")
    assert _open(odd, separator=";", encoding="cp1252").fingerprint == plain.fingerprint
    wide = _written(tmp_path / "wide.tsv", rows, "\t", "utf-16")
    assert _open(wide, encoding="utf-16").fingerprint == plain.fingerprint


def test_quotes_are_text_where_the_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "raw.tsv"
    path.write_text("body\tstars\n" + "".join(f'"open {i}\t{i % 2}\n' for i in range(40)))
    d = _open(path, quotes="none")
    assert d.train[0].text.startswith('"open')
    with pytest.raises(UserError, match=r"raw\.tsv, line 2: .*quotes: none"):
        _open(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": "tab"}, "separator must be one character"),
        ({"separator": ""}, "separator must be one character"),
        ({"separator": 5}, "separator must be one character"),
        ({"separator": '"'}, "separator must be one character"),
        ({"separator": "\\t"}, "separator must be one character"),
        ({"encoding": "utf8000"}, "unknown encoding 'utf8000'"),
        ({"encoding": "base64"}, "unknown encoding 'base64'"),
        ({"encoding": 8}, "unknown encoding 8"),
        ({"quotes": "nonne"}, "did you mean 'none'"),
        ({"missing": "dropp"}, "did you mean 'drop'"),
    ],
)
def test_a_wrong_way_to_read_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _open(_written(tmp_path / "a.csv"), **options)


@pytest.mark.parametrize("options", [{"separator": ";"}, {"quotes": "none"}])
def test_what_a_format_has_not_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(o) + "\n" for o in _objects()))
    with pytest.raises(UserError, match=r"a\.jsonl: (separator|quotes) is for CSV and TSV"):
        _open(path, **options)


def test_a_header_in_one_piece_points_at_the_separator(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Valid: body;stars.*is the separator another one \(separator: ';'\)"):
        _open(_written(tmp_path / "a.csv", [("a", "b")], ";"))


def test_a_long_field_is_read(tmp_path: Path) -> None:
    long = "word " * 40_000
    rows = table_files.read(_written(tmp_path / "a.csv", [(long, "yes")]))
    assert rows[0][1]["body"] == long


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[]", r"a\.json has no rows"),
        ("a.json", b'{"data": []}', r"a\.json: an object; the file must be one JSON array"),
        ("a.json", b'[{"body": "a", "stars": 1},\n 5]', "row 2: a number"),
        ("a.json", b'[{"body": "a", "stars": 1}\n {"body"', "line 2: not JSON"),
        ("a.csv.gz", b"body,stars\n", r"a\.csv\.gz is no whole gzip file"),
        ("a.csv.gz", gzip.compress(b"body,stars\na,1\n" * 9, mtime=0)[:-12], r"a\.csv\.gz is no whole gzip file"),
        ("a.parquet", b"PAR1 or not", r"a\.parquet is no readable Parquet file"),
        ("a.zip", b"", r"unknown format '\.zip'; valid: \.csv, \.tsv, \.jsonl, \.json, \.parquet"),
        ("a.csv", b"body,stars\nfine,1\nb\0ad,2\n", r"a\.csv, line 3: a NUL character"),
        ("a.csv", "body,stars\nfine,1\n".encode("utf-16"), "not UTF-8.*encoding"),
        (
            "a.jsonl",
            b'{"body": "a", "stars": 1}\n{"body": "b\\u0000", "stars": 2}\n',
            "line 2: column 'body' has a NUL",
        ),
        (
            "a.jsonl",
            b'{"body": "a", "stars": 1}\n{"body": "b\\ud83d", "stars": 2}\n',
            r"line 2: .*'body' has half a char",
        ),
        (
            "a.jsonl",
            b'{"body": "a", "stars": 1}\n{"body": "b", "stars": "\\udc00"}\n',
            r"line 2: .*'stars' has half a ch",
        ),
        ("a.json", b'[{"body": "a", "stars": 1}, {"body": "b\\udfff", "stars": 2}]', r"row 2: .*half a character"),
        (
            "a.jsonl",
            b'{"body": "a", "stars": 1}\n{"body": "b", "stars": 2, "stars": 3}\n',
            "line 2: key 'stars' is there",
        ),
        ("a.json", b'[{"body": "a", "stars": 1},\n{"x": 1, "body": "b", "x": 2}]', "row 2: key 'x' is there twice"),
        ("a.jsonl", b'{"body": "a", "stars": %s}\n' % (b"1" * 5000), "line 1: not JSON"),
        ("a.jsonl", b'{"body": "a", "stars": %s}\n' % (b"[" * 99_999), "line 1: not JSON"),
        ("a.csv", b"body,stars\nfine,1\nb\xff,2\n", r"a\.csv, line 3: not UTF-8"),
        ("a.csv", b"body,stars\nfine,1\nb\xed\xa0\x80,2\n", r"a\.csv, line 3: not UTF-8"),  # a surrogate's bytes
    ],
)
def test_bad_text_and_bad_files_are_named_at_reading(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        _open(tmp_path / name)


MISSING = [None, float("nan"), "", "  \t", "NaN", "nan", "null", "NULL", "None"]


@pytest.mark.parametrize("column", ["body", "stars"])
@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_every_way_to_write_no_value_is_missing(tmp_path: Path, value: object, column: str) -> None:
    objects = _objects()
    objects[3][column] = objects[5][column] = value
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(o) + "\n" for o in objects))
    with pytest.raises(UserError, match=rf"line 4: column '{column}' is .*2 rows in all.* and line 6.*missing: drop"):
        _open(path)
    d = _open(path, missing="drop")
    assert len([*d.train, *d.validation, *d.test]) == len(objects) - 2
    assert d.notes[0] == "2 rows of a.jsonl left out: a value is missing (lines 4, 6)"


def test_a_missing_key_and_a_missing_parquet_value_are_missing_too(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.jsonl"
    path.write_text('{"stars": "no"}\n' + "".join(json.dumps(o) + "\n" for o in _objects()))
    with pytest.raises(UserError, match="line 1: column 'body' is empty"):
        _open(path)
    objects = _objects()
    objects[2]["body"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 3: column 'body' is empty"):
        _open(tmp_path / "a.parquet")


def test_words_for_no_value_may_be_text_or_a_class(tmp_path: Path) -> None:
    rows = [(f"text {i}", "None" if i % 2 else "some") for i in range(40)]
    path = _written(tmp_path / "a.csv", rows)
    with pytest.raises(UserError, match=r"the word 'None'.*missing: keep"):
        _open(path)
    assert _open(path, missing="keep").labels == ("None", "some")
    assert _open(path, labels=["some", "None"]).labels == ("some", "None")
    with pytest.raises(UserError, match="line 2: column 'body' is empty"):
        _open(_written(tmp_path / "b.csv", [("", "None"), *rows]), missing="keep")


def test_a_file_without_one_whole_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every row lacks a value in 'body' or 'stars'"):
        _open(_written(tmp_path / "a.csv", [("", "x"), ("y", "")]), missing="drop")


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_at_a_terminal_sees_how_far_reading_is(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    screen = FakeTerminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    rows = list(range(progress.MANY))
    assert list(progress.shown(rows, "reading a.csv")) == rows
    assert ("reading a.csv" in screen.getvalue()) == terminal
    assert list(progress.shown(rows[:9], "few")) == rows[:9]
    assert "few" not in screen.getvalue()


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("a.jsonl", '{"body": "a", "stars": ' + "1" * 5000 + "}", "line 1: not JSON .a number of too many digits"),
        ("a.json", '[{"body": "a", "stars": ' + "1" * 5000 + "}]", "a number of too many digits"),
        ("a.jsonl", "[" * 200_000, "too deep to read"),
        ("a.json", "[" * 200_000, "too deep to read"),
    ],
)
def test_numbers_and_brackets_beyond_any_data_are_named(tmp_path: Path, name: str, body: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(body)
    with pytest.raises(UserError, match=said):
        table_files.read(path)


@pytest.mark.parametrize("encoding", ["punycode", "undefined"])
def test_an_encoding_that_fails_in_its_own_way_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("body,stars\ncafé-x,1\n".encode())
    with pytest.raises(UserError, match=encoding):
        table_files.text(path, encoding)


@pytest.mark.parametrize("times", [([2**62], None), ([1], "Foo/Bar")])
def test_a_parquet_column_that_python_cannot_hold_is_named(tmp_path: Path, times: tuple[list[int], str | None]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    when = pyarrow.array(times[0], pyarrow.timestamp("us", tz=times[1]))
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "when": when}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'when' cannot be read"):
        table_files.read(tmp_path / "a.parquet")
