"""Results of several machines in one directory: the same bytes, each attempt once, nothing lost."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import factories
import pytest

from peftbench.errors import UserError
from peftbench.records import files, merging, record
from peftbench.records.retries import Retries
from peftbench.verify.records import audit

CPU = factories.ENV
OTHER = {**CPU, "cpu": {"model": "another processor", "capability": "AVX512"}}


def made(folder: Path, *bodies: Mapping[str, Any]) -> Path:
    factories.write_all(folder, list(bodies))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ids(folder: Path) -> list[tuple[str, str]]:
    return sorted((r.spec_id, r.body.started) for r in record.read_all(folder))


def misnamed(folder: Path) -> list[audit.AuditFinding]:
    """The records whose names do not fit their content; scores of these fixtures do not follow from predictions."""
    return [finding for finding in audit.audit(folder)[1] if finding.field in ("file", "file name")]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two machines that ran different parts of a grid, and one run both."""
    a = made(tmp_path / "a", *factories.grid(["full", "lora"]), factories.run("ia3"))
    b = made(tmp_path / "b", *factories.grid(["dora"], env=OTHER), factories.run("ia3", env=OTHER))
    return a, b


def test_records_are_copied_byte_for_byte_under_their_names(two: tuple[Path, Path], tmp_path: Path) -> None:
    before = [content(folder) for folder in two]
    done = merging.merge(two, tmp_path / "all")
    assert [(s.records, s.copied, s.beside, s.left_out) for s in done] == [(5, 5, [], []), (3, 3, [], [])]
    assert content(tmp_path / "all") == before[0] | before[1]
    assert [content(folder) for folder in two] == before, "the sources are as they were"
    assert misnamed(tmp_path / "all") == []


def test_merging_again_and_merging_a_directory_with_itself_change_nothing(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    into = tmp_path / "all"
    merging.merge(two, into)
    before = {p: p.stat().st_mtime_ns for p in into.rglob("*.json")}
    for sources in (two, two[::-1], (two[0], two[0]), (into,), (into, two[1])):
        assert [s.copied for s in merging.merge(sources, into)] == [0] * len(sources)
    assert {p: p.stat().st_mtime_ns for p in into.rglob("*.json")} == before


def test_an_attempt_that_two_directories_have_is_one(tmp_path: Path) -> None:
    a = made(tmp_path / "a", factories.run("lora"))
    shutil.copytree(a, tmp_path / "b")
    made(tmp_path / "b", factories.run("full"))
    merging.merge([a, tmp_path / "b"], tmp_path / "all")
    assert ids(tmp_path / "all") == ids(tmp_path / "b")


def clash(tmp_path: Path) -> list[Path]:
    """Equal machines that made the first attempt at the same run, one on each day."""
    return [
        made(tmp_path / f"node{day}", factories.run("lora", score=0.7 + day / 100, started=f"2026-01-0{day}T00:00:00Z"))
        for day in (2, 1, 3)
    ]


def test_different_records_of_one_name_are_all_kept_and_readable(tmp_path: Path) -> None:
    nodes = clash(tmp_path)
    (own,) = (p.name for p in (nodes[1] / "runs").iterdir())
    done = merging.merge(nodes, tmp_path / "all")
    assert [len(s.beside) for s in done] == [1, 0, 1], "the one that started first has the name"
    records = record.read_all(tmp_path / "all")
    assert sorted(r.body.started[:10] for r in records) == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert {r.attempt for r in records} == {1}, "no attempt is renumbered: its checksum covers the number"
    assert content(tmp_path / "all")[f"runs/{own}"] == content(nodes[1])[f"runs/{own}"]
    assert misnamed(tmp_path / "all") == []
    assert record.latest(records)[records[0].spec_id].body.started.startswith("2026-01-01")


def test_the_order_of_the_directories_does_not_matter(tmp_path: Path) -> None:
    nodes = clash(tmp_path)
    merged = []
    for i, order in enumerate(itertools.permutations(nodes)):
        merging.merge(order, tmp_path / str(i))
        merged.append(content(tmp_path / str(i)))
    assert all(one == merged[0] for one in merged)


def test_a_clash_with_what_the_target_has_leaves_it_its_name(tmp_path: Path) -> None:
    late, early, _ = clash(tmp_path)
    before = content(late)
    merging.merge([early], late)
    merging.merge([early], late)
    assert content(late).items() > before.items()
    assert len(record.read_all(late)) == 2


def test_the_next_attempt_after_a_clash_has_a_number_of_its_own(tmp_path: Path) -> None:
    merging.merge(clash(tmp_path), tmp_path / "all")
    new = record.write(tmp_path / "all", factories.run("lora", started="2026-01-09T00:00:00Z"))
    assert record.read(new).attempt == 2


def test_a_run_that_one_machine_has_finished_is_done_in_the_merged_set(tmp_path: Path) -> None:
    a = made(tmp_path / "a", factories.run("lora", status="killed", reason="the node went down"))
    b = made(tmp_path / "b", factories.run("lora", env=OTHER), factories.run("full", env=OTHER))
    merging.merge([a, b], tmp_path / "all")
    retries = Retries(record.read_all(tmp_path / "all"))
    assert not any(retries.is_open(spec_id) for spec_id, _ in ids(b))


@pytest.mark.parametrize("damage", ["cut", "edited", "foreign"])
def test_a_damaged_file_is_named_and_left_out_and_the_others_come(
    two: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    victim = sorted((two[0] / "runs").iterdir())[0]
    raw = victim.read_bytes()
    changed = {"cut": raw[:-40], "edited": raw.replace(b'"finished"', b'"diverged"'), "foreign": b"{}"}
    victim.write_bytes(changed[damage])
    first, second = merging.merge(two, tmp_path / "all")
    assert [str(victim) in why for why in first.left_out] == [True]
    assert (first.copied, second.copied) == (4, 3)
    assert not (tmp_path / "all" / "runs" / victim.name).exists()
    assert victim.read_bytes() == changed[damage]


def test_a_damaged_file_in_the_target_does_not_stand_for_the_whole_one(tmp_path: Path) -> None:
    a = made(tmp_path / "a", factories.run("lora"))
    merging.merge([a], tmp_path / "all")
    (victim,) = (tmp_path / "all" / "runs").iterdir()
    victim.write_bytes(victim.read_bytes().replace(b'"finished"', b'"diverged"'))
    merging.merge([a], tmp_path / "all")
    with pytest.warns(UserWarning, match="set aside"):
        assert len(record.readable(tmp_path / "all")) == 1


def test_a_directory_without_records_is_refused_before_anything_is_copied(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no results directory, as it has no folder runs/"):
        merging.merge([two[0], tmp_path], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def adapter(folder: Path, name: str, content: bytes, head: bytes | None = None) -> None:
    (folder / "adapters").mkdir(exist_ok=True)
    (folder / "adapters" / f"{name}.safetensors").write_bytes(content)
    if head is not None:
        (folder / "adapters" / f"{name}.head.safetensors").write_bytes(head)


def test_adapters_come_along_and_one_whose_name_is_taken_has_its_records_checksum(tmp_path: Path) -> None:
    a = made(tmp_path / "a", factories.run("lora"))
    b = made(tmp_path / "b", factories.run("lora", env=OTHER), factories.run("full", env=OTHER))
    of_b = next(r for r in record.read_all(b) if r.spec.method.label == "lora")
    name = f"lora--embedded_question_type--s0--{of_b.spec_id}"
    adapter(a, name, b"of a", b"head of a")
    adapter(b, name, b"of b", b"head of b")
    suffix = files.checksum(of_b.path.read_bytes())[:8]
    for _ in range(2):
        merging.merge([a, b], tmp_path / "all")
        kept = {k: v for k, v in content(tmp_path / "all").items() if k.startswith("adapters/")}
        assert kept == {
            f"adapters/{name}.safetensors": b"of a",
            f"adapters/{name}.head.safetensors": b"head of a",
            f"adapters/{name}.{suffix}.safetensors": b"of b",
            f"adapters/{name}.{suffix}.head.safetensors": b"head of b",
        }
    merging.merge([tmp_path / "all"], tmp_path / "copy")
    assert content(tmp_path / "copy") == content(tmp_path / "all")


def test_an_adapter_of_no_record_is_kept_too_and_other_files_are_named(tmp_path: Path) -> None:
    a, b = (made(tmp_path / name, factories.run("full")) for name in "ab")
    for folder in (a, b):
        adapter(folder, "x--0123456789abcdef", folder.name.encode())
    (b / "adapters" / "notes.txt").write_text("mine")
    done = merging.merge([a, b], tmp_path / "all")
    assert sorted(p.read_bytes() for p in (tmp_path / "all" / "adapters").iterdir()) == [b"a", b"b"]
    assert done[0].left_out == []
    assert ["notes.txt" in why for why in done[1].left_out] == [True]


def test_an_interrupted_merge_leaves_whole_files_and_is_completed_by_the_next(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.link, itertools.count()

    def full(source: Path, target: Path) -> None:
        if next(calls) == 3:
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(UserError, match=r"No space left on device.*give the same command again"):
        merging.merge(two, tmp_path / "all")
    assert len(record.read_all(tmp_path / "all")) == 3
    assert len(list((tmp_path / "all" / "runs").iterdir())) == 3, "nothing half-written stays"
    merging.merge(two, tmp_path / "all")
    assert content(tmp_path / "all") == content(two[0]) | content(two[1])


def test_a_source_is_not_the_target_of_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "runs").mkdir(parents=True)
    with pytest.raises(UserError, match="one of the sources, which are not changed"):
        merging.check([tmp_path / "a", tmp_path / "b"], tmp_path / "b")
