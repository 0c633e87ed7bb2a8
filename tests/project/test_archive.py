"""Superseded records are kept whole: scripts/archive.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftbench.records import packs, record
from tests.helpers import factories

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("archive_script", ROOT / "scripts" / "archive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ARCHIVE", tmp_path / "archive")
    return module


@pytest.mark.parametrize("other", ["other.json", "runs/deeper/other.json"])
def test_what_an_archive_would_lose_is_not_archived(tmp_path: Path, archive: Any, other: str) -> None:
    old = tmp_path / "old"
    factories.write_all(old, factories.grid(["lora"]))
    (old / "about.yaml").write_text("what: One method.\ncommand: python -m peftbench run x.yaml\n")
    (old / other).parent.mkdir(exist_ok=True)
    (old / other).write_text("{}")
    with pytest.raises(SystemExit, match="would be lost"):
        archive.move(old, "Superseded by new.")
    assert (old / other).is_file()
    assert not archive.ARCHIVE.exists()


@pytest.mark.parametrize("packed_before", [False, True])
def test_archived_records_come_back_byte_for_byte(tmp_path: Path, archive: Any, packed_before: bool) -> None:
    old = tmp_path / "old"
    factories.write_all(old, factories.grid(["full", "lora"]))
    (old / "about.yaml").write_text("what: Two methods.\ncommand: python -m peftbench run x.yaml\n")
    before = {p.name: p.read_bytes() for p in (old / "runs").glob("*.json")}
    if packed_before:
        packs.write(old / "runs")
    kept = archive.move(old, "Superseded by new.")
    assert not old.exists()
    assert yaml.safe_load((kept / "about.yaml").read_text())["what"] == "Superseded by new. Two methods."
    assert sorted(p.name for p in kept.iterdir()) == ["about.yaml", "runs.tar.xz"]
    assert {p.name: packs.read_bytes(p) for p in record.paths(kept)} == before
    assert len(record.read_all(kept)) == len(before) > 0
