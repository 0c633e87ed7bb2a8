"""Data files that are no files, never end, or unpack to more than a machine has: refused at once, in one message."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from peftbench.errors import LONGEST_MESSAGE, UserError
from peftbench.tasks import cells, local, separated, table_files
from peftbench.tasks.dataset import TaskCard


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        table_files.read(path)
    assert len(str(caught.value)) <= LONGEST_MESSAGE
    return str(caught.value)


def bomb(start: bytes, megabytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    blocks = [packer.compress(b" " * (1 << 20)) for _ in range(megabytes)]
    return packer.compress(start) + b"".join(blocks) + packer.flush()


@pytest.mark.parametrize("suffix", table_files.FORMATS)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    pipe, device, loop = (tmp_path / f"{name}{suffix}" for name in ("pipe", "device", "loop"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    (tmp_path / f"folder{suffix}").mkdir()
    assert "is a pipe, not a file" in refusal(pipe)
    assert "is a device, not a file" in refusal(device)
    assert "cannot be read" in refusal(loop)
    assert "is a directory, not a file" in refusal(tmp_path / f"folder{suffix}")
    for name in ("pipe", "device", "loop", "folder"):
        with pytest.raises(UserError, match=r"not a file|no file|cannot be"):
            local.files({"train": str(tmp_path / f"{name}{suffix}")}, None)


@pytest.mark.parametrize("suffix", table_files.FORMATS)
def test_a_file_of_a_terabyte_is_not_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "1,099,511,627,776 bytes, and at most 536,870,912" in refusal(path)
    with pytest.raises(UserError, match="at most 536,870,912"):  # before its content is hashed
        local.files_of(TaskCard("local", "", ("x",), "", "", ""), {"train": str(path)}, None)


def test_a_file_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(bomb(b"text,label\n", 100))
    assert "unpacks to more than 67,108,864" in refusal(path)


def test_a_packed_file_may_have_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\na,b\n") + gzip.compress(b"c,d\n"))
    assert [row["text"] for _, row in table_files.read(path)] == ["a", "c"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", lambda: b"text\n" + b"x" * (cells.LONGEST + 1), "field larger than field limit"),
        ("a.csv", lambda: b",".join(b"c%d" % i for i in range(10**6)), "1,000,000 columns, and at most 10,000"),
        ("a.csv", lambda: b"c," * 5_000 + b"\n", "column 'c' is there twice"),
        ("a.csv", lambda: b"\0" * (1 << 20), "line 1: a NUL character"),
        ("a.csv", lambda: b"text\n" + b"a\n" * (table_files.MOST_ROWS + 1), "10,000,002 lines, and at most 10,000,000"),
        ("a.csv", lambda: b"x y " * 5_000 + b",b\n1\n", "1 fields where the header has 2"),
        ("a.json", lambda: b"[" * 10**6, "too deep"),
        ("a.jsonl", lambda: b'{"a":' * 10**6, "too deep"),
        ("a.jsonl", lambda: b'{"a": 1' + b"0" * 10_000 + b"}", "too many digits"),
        (
            "a.jsonl",
            lambda: b"{" + b",".join(b'"k%d":1' % i for i in range(10**5)) + b',"k99999":1}',
            "'k99999' is there",
        ),
        ("a.parquet", lambda: b"PAR1" + b"\xff" * 1000 + b"PAR1", "no readable Parquet"),
        ("a.parquet", lambda: b"", "no readable Parquet"),
    ],
)
def test_a_table_beyond_any_use_is_refused(tmp_path: Path, name: str, content: Callable[[], bytes], said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content())
    assert said in refusal(path)


def test_a_parquet_file_of_few_bytes_for_many_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = table_files.MOST_ROWS + 1
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.nulls(rows, pyarrow.string())}), path)
    assert path.stat().st_size < 100_000
    assert f"{rows:,} rows, and at most" in refusal(path)


@pytest.mark.slow
def test_a_parquet_file_of_few_bytes_for_long_texts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 10_000, pyarrow.int32()), ["x" * 100_000])
    table = pyarrow.table({"text": text})
    pyarrow.parquet.write_table(table.replace_schema_metadata(None), path, store_schema=False)
    assert path.stat().st_size < 1_000_000
    assert "unpacks to more than 536,870,912 bytes" in refusal(path)


def test_a_long_cell_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        cells.BadCell, match="column 'text' has a text of 10,000,001 characters, and at most 10,000,000"
    ):
        cells.text("x" * (cells.LONGEST + 1), "text")


def test_lines_of_csv_end_as_the_csv_module_ends_them() -> None:
    assert list(separated._lines("a\nb\r\nc\rd\x85e\u2028\n\n")) == ["a\n", "b\r\n", "c\r", "d\x85e\u2028\n", "\n"]
    assert list(separated._lines("a")) == ["a"]
    assert list(separated._lines("")) == []
