"""Superseded records are kept whole: scripts/archive.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import yaml

from peftbench.records import record
from tests.helpers import factories

ROOT = Path(__file__).resolve().parents[2]


def test_archived_records_come_back_byte_for_byte_and_pack_to_the_same_bytes(tmp_path: Path, monkeypatch) -> None:
    spec = importlib.util.spec_from_file_location("archive_script", ROOT / "scripts" / "archive.py")
    archive = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(archive)
    monkeypatch.setattr(archive, "ARCHIVE", tmp_path / "archive")
    old = tmp_path / "old"
    factories.write_all(old, factories.grid(["full", "lora"]))
    (old / "about.yaml").write_text("what: Two methods.\ncommand: python -m peftbench run x.yaml\n")
    before = {p.name: p.read_bytes() for p in (old / "runs").glob("*.json")}
    archive.pack(old / "runs", tmp_path / "again.tar.xz")
    kept = archive.move(old, "Superseded by new.")
    assert not old.exists()
    assert yaml.safe_load((kept / "about.yaml").read_text())["what"] == "Superseded by new. Two methods."
    assert (kept / archive.PACK).read_bytes() == (tmp_path / "again.tar.xz").read_bytes()
    back = archive.unpack(kept, tmp_path / "back")
    assert {p.name: p.read_bytes() for p in (back / "runs").glob("*.json")} == before
    assert len(record.read_all(back)) == len(before) > 0
