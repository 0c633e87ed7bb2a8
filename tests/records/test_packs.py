"""Packed records: every reader finds what the files held, writers go on beside them, and a damaged pack is refused."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import factories
import pytest

from peftbench.errors import UserError
from peftbench.records import merging, packs, record
from peftbench.report import assemble, site
from peftbench.report.tables import explained
from peftbench.report.write import up_to_date
from peftbench.verify.records import audit


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    factories.write_all(folder, [*factories.grid(["full", "lora"]), factories.profile(("full", "lora"))])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: packs.read_bytes(p) for p in record.paths(folder)}


def test_packed_records_are_read_as_files_are(made: Path) -> None:
    before, table, found = contents(made), assemble.text_table(made), audit.audit(made)[1]
    predictions = [r.predictions for r in record.read_all(made) if isinstance(r, record.RunRecord)]
    digest = up_to_date.sources(made)
    pack = packs.write(made / "runs")
    assert pack == made / "runs.tar.xz"
    assert sorted(p.name for p in made.iterdir()) == ["runs.tar.xz"]
    assert contents(made) == before
    assert assemble.text_table(made) == table
    assert audit.audit(made)[1] == found
    assert [r.predictions for r in record.readable(made) if isinstance(r, record.RunRecord)] == predictions
    assert up_to_date.sources(made) == digest, "a report stays what it was"


def test_tar_gives_the_files_back_and_the_same_records_make_the_same_pack(made: Path, tmp_path: Path) -> None:
    before = contents(made)
    first = packs.write(made / "runs").read_bytes()
    with tarfile.open(made / "runs.tar.xz") as pack:
        pack.extractall(tmp_path / "back", filter="data")
    assert {p.name: p.read_bytes() for p in (tmp_path / "back" / "runs").iterdir()} == before
    assert packs.write(tmp_path / "back" / "runs").read_bytes() == first


def test_a_writer_goes_on_beside_the_pack_with_the_next_attempt(made: Path) -> None:
    body = factories.run("lora")
    (old,) = (r for r in record.read_all(made) if r.spec_id == body["spec_id"])
    packs.write(made / "runs")
    new = record.write(made, body)
    assert (old.attempt, record.read(new).attempt) == (1, 2)
    assert len(record.read_all(made)) == 6
    before = contents(made)
    packs.write(made / "runs")
    assert contents(made) == before, "packing again keeps what was packed before"


def test_two_records_of_one_name_are_not_packed_into_one(made: Path) -> None:
    first = record.paths(made)[0]
    packs.write(made / "runs")
    first.parent.mkdir()
    first.write_bytes(b"{}")
    with pytest.raises(UserError, match="differs from the packed record of its name"):
        packs.write(made / "runs")
    assert first.read_bytes() == b"{}"


def test_nothing_to_pack_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records to pack"):
        packs.write(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_packed_records_merge_with_files_in_both_directions(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    factories.write_all(other, [*factories.grid(["lora"]), factories.run("ia3")])
    packs.write(made / "runs")
    (from_pack,) = merging.merge([made], tmp_path / "all")
    assert (from_pack.records, from_pack.copied) == (5, 5)
    assert contents(tmp_path / "all") == contents(made)
    (into_pack,) = merging.merge([tmp_path / "all"], made)
    assert (into_pack.records, into_pack.copied) == (5, 0), "all of them are in the pack"
    (further,) = merging.merge([other], made)
    assert (further.records, further.copied) == (3, 1)


def test_an_explanation_and_a_page_lead_to_the_pack(made: Path, tmp_path: Path) -> None:
    linked = site.write_page(made, tmp_path / "files.html").path.read_text()
    packs.write(made / "runs")
    told = "\n".join(explained.text([cell]) for cell in assemble.cells(made, assemble.load(made)))
    assert f"{made / 'runs.tar.xz'}, runs/lora--" in told
    page = site.write_page(made, tmp_path / "packed.html").path.read_text()
    assert "set/runs" in linked
    assert "set/runs" not in page, "no link leads to a file that is not there"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "its end is missing"),
        (lambda raw: b"not a pack", "no pack of records"),
        (lambda raw: lzma.compress(b"not a tar file" * 100), "no pack of records"),
        (lambda raw: b"", "its end is missing"),
    ],
)
def test_a_damaged_pack_is_refused_by_name_and_never_taken_for_an_empty_set(made: Path, damage, said: str) -> None:
    pack = packs.write(made / "runs")
    pack.write_bytes(damage(pack.read_bytes()))
    for read in (record.read_all, record.readable, audit.audit):
        with pytest.raises(UserError, match=said) as refused:
            read(made)
        assert str(pack) in str(refused.value)
    with pytest.raises(UserError, match=said):
        record.write(made, factories.run("lora"))


def test_a_pack_that_grows_beyond_bounds_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = packs.write(made / "runs")
    pack.write_bytes(lzma.compress(b"\0" * 3_000_000))
    monkeypatch.setattr(packs, "LARGEST_BYTES", 2_000_000)
    with pytest.raises(UserError, match="more than 2,000,000 bytes"):
        record.read_all(made)
    monkeypatch.setattr(packs, "MEMORY_BYTES", 100_000)
    pack.write_bytes(lzma.compress(b"\0" * 3_000, preset=9))
    with pytest.raises(UserError, match="no pack of records"):
        record.read_all(made)


def test_only_files_of_the_folder_of_records_are_records(made: Path) -> None:
    target, content = packs.of(made / "runs"), b"{}"
    ours, others = ["runs/one.json", "./runs/two.json"], ["runs/../../x.json", "/etc/x.json", "x.json", "runs/.y.json"]
    names = [*ours, *others, "runs/a/x.json", "runs/x.txt"]
    with tarfile.open(target, "w:xz") as pack:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            pack.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("runs/link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        pack.addfile(link)
    assert packs.names(made / "runs") == ["one.json", "two.json"]


def test_a_pack_of_something_else_is_refused_and_never_taken_for_an_empty_set(made: Path) -> None:
    with tarfile.open(packs.of(made / "runs"), "w:xz") as pack:
        pack.add(made / "runs", "results/runs")
    with pytest.raises(UserError, match=r"holds no file runs/\*\.json"):
        record.readable(made)


@pytest.mark.parametrize("given", ["runs", "./runs"])
def test_what_tar_packs_is_read(made: Path, given: str) -> None:
    before = contents(made)
    subprocess.run(["tar", "-cJf", "runs.tar.xz", given], cwd=made, check=True)
    shutil.rmtree(made / "runs")
    assert contents(made) == before
