"""`report --check`: a report is what its records give to the byte, or the file that is not is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import factories
import pytest
from commands import Call

from peftbench.records import record
from peftbench.report import assemble


@pytest.fixture
def written(tmp_path: Path) -> Path:
    folder = tmp_path / "r"
    factories.write_all(folder, factories.grid(["full", "lora"]))
    assemble.write(folder)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def one(folder: Path, pattern: str) -> Path:
    return sorted((folder / "report").rglob(pattern))[0]


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a number in a table": (lambda f: edit(one(f, "*.csv"), "lora", "LORA"), ".csv: line "),
    "a figure": (lambda f: one(f, "*.png").write_bytes(b"\x89PNG\xff"), ".png: other bytes (5 kept"),
    "a vector figure": (lambda f: edit(one(f, "*.svg"), "lora", "dora"), ".svg: line "),
    "a file that is gone": (lambda f: one(f, "*.tex").unlink(), ".tex: missing"),
    "a file too many": (lambda f: (f / "report/figures/best.png").write_bytes(b""), "best.png: not made by this"),
    "the page": (lambda f: edit(f / "report/report.md", "lora", "doar"), "report.md: line "),
}


@pytest.mark.slow
def test_a_fresh_report_is_what_its_records_give(written: Path, call: Call) -> None:
    before = {p: p.stat().st_mtime_ns for p in written.rglob("*")}
    done = call("report", str(written), "--check")
    assert (done.code, "every file is what the records give" in done.out) == (0, True)
    assert {p: p.stat().st_mtime_ns for p in written.rglob("*")} == before, "a check writes nothing"


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_is_not_what_the_records_give_is_named(written: Path, call: Call, what: str) -> None:
    spoil, said = BROKEN[what]
    spoil(written)
    done = call("report", str(written), "--check")
    assert done.code == 1
    assert said in done.out
    assert len(done.out.splitlines()) == 1


@pytest.mark.slow
def test_a_record_added_since_is_noticed(written: Path) -> None:
    record.write(written, factories.run("dora"))
    said = assemble.check(written, None, assemble.load(written))
    assert any(".csv" in line for line in said)
