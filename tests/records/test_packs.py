"""Packed records: every reader finds what the files held, writers go on beside them, and a damaged pack is refused."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import factories
import pytest

from peftbench.errors import UserError
from peftbench.records import merging, packs, record
from peftbench.report import assemble, site
from peftbench.report.figures import plots
from peftbench.report.tables import explained
from peftbench.verify.records import audit


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    factories.write_all(folder, [*factories.grid(["full", "lora"]), factories.profile(("full", "lora"))])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: packs.read_bytes(p) for p in record.paths(folder)}


def packed(folder: Path) -> Path:
    return packs.write(folder / "runs")


def test_packed_records_are_read_as_files_are(made: Path) -> None:
    before, table, found = contents(made), assemble.text_table(made), audit.audit(made)[1]
    predictions = [r.predictions for r in record.read_all(made) if isinstance(r, record.RunRecord)]
    assert packed(made) == made / "runs.tar.xz"
    assert sorted(p.name for p in made.iterdir()) == ["runs.tar.xz"]
    assert contents(made) == before
    assert assemble.text_table(made) == table
    assert [(f.field, f.message) for f in audit.audit(made)[1]] == [(f.field, f.message) for f in found]
    assert [r.predictions for r in record.readable(made) if isinstance(r, record.RunRecord)] == predictions


def test_tar_gives_the_files_back_and_the_same_records_make_the_same_pack(made: Path, tmp_path: Path) -> None:
    before = contents(made)
    first = packed(made).read_bytes()
    with tarfile.open(made / "runs.tar.xz") as pack:
        pack.extractall(tmp_path / "back", filter="data")
    assert {p.name: p.read_bytes() for p in (tmp_path / "back" / "runs").iterdir()} == before
    assert packed(tmp_path / "back").read_bytes() == first


def test_what_tar_packs_is_read(made: Path) -> None:
    before = contents(made)
    subprocess.run(["tar", "-cJf", "runs.tar.xz", "runs"], cwd=made, check=True)
    shutil.rmtree(made / "runs")
    assert contents(made) == before


def test_a_writer_goes_on_beside_the_pack_with_the_next_attempt(made: Path) -> None:
    body = factories.run("lora")
    (old,) = (r for r in record.read_all(made) if r.spec_id == body["spec_id"])
    packed(made)
    new = record.write(made, body)
    assert (old.attempt, record.read(new).attempt) == (1, 2)
    assert len(record.read_all(made)) == 6
    before = contents(made)
    packed(made)
    assert contents(made) == before, "packing again keeps what was packed before"


def test_a_file_that_differs_from_the_packed_record_of_its_name_hides_it_from_nobody(made: Path) -> None:
    first = record.paths(made)[0]
    packed(made)
    first.parent.mkdir()
    first.write_bytes(packs._packed(first.parent)[first.name])
    assert len(record.read_all(made)) == 5, "the same content twice is one record"
    first.write_bytes(b"{}")
    for refused in (lambda: packs.write(made / "runs"), lambda: record.read_all(made)):
        with pytest.raises(UserError, match="differs from the record of its name"):
            refused()
    assert [f.path for f in audit.audit(made)[1] if f.field == "file"] == [first]
    assert first.read_bytes() == b"{}"


def test_nothing_to_pack_is_said_and_hidden_files_stay(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".half.json").write_text("{")
    with pytest.raises(UserError, match="no records to pack"):
        packed(tmp_path)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [".half.json"]


def test_a_full_disk_leaves_the_files(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(made)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="Free some space"):
            packed(made)
    assert sorted(p.name for p in made.iterdir()) == ["runs"]
    assert contents(made) == before


def test_packed_records_merge_with_files_in_both_directions(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    factories.write_all(other, [*factories.grid(["lora"]), factories.run("ia3")])
    packed(made)
    (from_pack,) = merging.merge([made], tmp_path / "all")
    assert (from_pack.records, from_pack.copied) == (5, 5)
    assert contents(tmp_path / "all") == contents(made)
    (into_pack,) = merging.merge([tmp_path / "all"], made)
    assert (into_pack.records, into_pack.copied) == (5, 0), "all of them are in the pack"
    (further,) = merging.merge([other], made)
    assert (further.records, further.copied) == (3, 1)


def test_no_page_links_to_a_file_that_is_packed_and_an_explanation_names_the_pack(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "figures", lambda comparison, looks: iter(()))  # they take most of a report's time
    linked = site.write_page(made, tmp_path / "files.html").path.read_text()
    report = (made / "report" / "index.html", assemble.refresh(made, assemble.load(made)))[0]
    assert "set/runs" in linked
    assert "../runs/" in report.read_text()
    packed(made)
    told = "\n".join(explained.text([cell]) for cell in assemble.cells(made, assemble.load(made)))
    assert f"{made / 'runs.tar.xz'}, runs/lora--" in told
    assert "set/runs" not in site.write_page(made, tmp_path / "packed.html").path.read_text()
    assemble.refresh(made, assemble.load(made))
    assert "../runs/" not in report.read_text(), "packing makes the report out of date"
    assert assemble.check(made, None, assemble.load(made)) == []


def test_a_record_is_read_by_its_bare_name_too(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made / "runs")
    (first, *_) = sorted(Path().glob("*.json"))
    assert record.read(first).is_finished
    assert packs.shown(Path("average of two tasks")) == "average of two tasks"


def test_a_message_on_a_packed_record_names_the_pack(made: Path) -> None:
    path = record.paths(made)[0]
    path.write_bytes(path.read_bytes().replace(b'"finished"', b'"diverged"'))
    packed(made)
    with pytest.raises(UserError, match=r"runs\.tar\.xz, runs/.*changed after it was written"):
        record.read_all(made)


def cut_at_a_member(raw: bytes) -> bytes:
    content = lzma.decompress(raw)
    with tarfile.open(fileobj=io.BytesIO(content)) as pack:
        second = pack.getmembers()[1]
    return lzma.compress(content[: second.offset])


def with_a_damaged_header(raw: bytes) -> bytes:
    content = bytearray(lzma.decompress(raw))
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as pack:
        second = pack.getmembers()[1]
    content[second.offset : second.offset + 8] = b"\xff" * 8
    return lzma.compress(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "its end is missing"),
        (lambda raw: b"not a pack", "no pack of records"),
        (lambda raw: lzma.compress(b"not a tar file" * 100), "no pack of records"),
        (lambda raw: b"", "its end is missing"),
        (lambda raw: raw + b"garbage", "no pack of records"),
        (lambda raw: raw + raw, "its end is missing"),  # two archives in one file
        (cut_at_a_member, "its end is missing"),
        (with_a_damaged_header, "no pack of records"),
    ],
)
def test_a_damaged_pack_is_refused_by_name_and_never_taken_for_a_smaller_set(made: Path, damage, said: str) -> None:
    pack = packed(made)
    pack.write_bytes(damage(pack.read_bytes()))
    for read in (record.read_all, record.readable, audit.audit):
        with pytest.raises(UserError, match=said) as refused:
            read(made)
        assert str(pack) in str(refused.value)
    with pytest.raises(UserError, match=said):
        record.write(made, factories.run("lora"))


def test_an_archive_in_several_streams_is_read_whole(made: Path) -> None:
    before, pack = contents(made), packed(made)
    content = lzma.decompress(pack.read_bytes())
    pack.write_bytes(lzma.compress(content[:5_000]) + lzma.compress(content[5_000:]))
    assert contents(made) == before


def test_a_pack_that_is_not_there_any_more_is_no_empty_set(made: Path) -> None:
    pack = packed(made)
    pack.rename(made / "elsewhere")
    pack.symlink_to("nowhere")
    with pytest.raises(UserError, match="cannot be read"):
        record.readable(made)


def test_a_pack_that_grows_beyond_bounds_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = packed(made)
    pack.write_bytes(lzma.compress(b"\0" * 3_000_000))
    monkeypatch.setattr(packs, "LARGEST_BYTES", 2_000_000)
    with pytest.raises(UserError, match="more than 2,000,000 bytes"):
        record.read_all(made)
    monkeypatch.setattr(packs, "MEMORY_BYTES", 100_000)
    pack.write_bytes(lzma.compress(b"\0" * 3_000, preset=9))
    with pytest.raises(UserError, match="no pack of records"):
        record.read_all(made)


def member(name: str, content: bytes = b"{}", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = 0 if facts else len(content)
    for key, value in facts.items():
        setattr(made, key, value)
    return made, content


@pytest.mark.parametrize(
    "other",
    [
        *("runs/../../x.json", "/etc/x.json", "x.json", "results/runs/x.json", "runs/.y.json", "runs/a/x.json"),
        "runs/notes.txt",
    ],
)
def test_what_is_no_record_is_in_no_pack(made: Path, other: str) -> None:
    with tarfile.open(packs.of(made / "runs"), "w:xz") as pack:
        for info, content in (member("runs/one.json"), member(other)):
            pack.addfile(info, io.BytesIO(content))
    with pytest.raises(UserError, match=r"which is no file runs/\*\.json"):
        record.readable(made)


def test_neither_a_link_nor_a_file_with_holes_is_a_record(made: Path) -> None:
    path = packs.of(made / "runs")
    for facts in ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, {"type": tarfile.LNKTYPE, "linkname": "x"}):
        with tarfile.open(path, "w:xz") as pack:
            pack.addfile(member("runs/link.json", **facts)[0])
        with pytest.raises(UserError, match="which is no file"):
            record.readable(made)
    path.unlink()
    with (made / "runs" / "holes.json").open("wb") as file:
        file.truncate(2**33)
    subprocess.run(["tar", "-cSJf", path.name, "runs/holes.json"], cwd=made, check=True)
    (made / "runs" / "holes.json").unlink()
    with pytest.raises(UserError, match="which is no file"):
        record.readable(made)


def test_many_records_are_decompressed_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(made)
    packs._unpacked.cache_clear()
    calls, real = [], packs._decompressed
    monkeypatch.setattr(packs, "_decompressed", lambda path: calls.append(path) or real(path))
    assert sum(r.predictions is not None for r in record.readable(made) if isinstance(r, record.RunRecord)) == 4
    assert len(calls) == 1
