"""The GPU session: it fits its time, its parts exist, one that fails stops no other, and what it has is kept."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from peftbench.plan import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    made = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu" / "check.py")
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    sys.modules["gpu_check"] = module
    made.loader.exec_module(module)
    return module


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_parts_fit_the_time_and_write_records_first(check: ModuleType, device: str, tmp_path: Path) -> None:
    parts = check.parts(device, tmp_path)
    assert len({p.name for p in parts}) == len(parts)
    assert sum(p.seconds for p in parts) <= check.TOTAL
    assert parts[-1].name == "tests", "records come first"


def test_each_parts_experiment_is_valid(check: ModuleType, tmp_path: Path) -> None:
    planned = 0
    for part in check.parts("cuda", tmp_path):
        if part.command[2:3] != ("run",):
            continue
        options = part.command[4:]
        overrides = [value for option, value in itertools.pairwise(options) if option == "--set"]
        assert read.load(ROOT / part.command[3], overrides=overrides).methods
        planned += 1
    assert planned >= 4


def test_a_part_that_fails_or_hangs_stops_no_other(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        check.Part("fails", ("-c", "raise SystemExit(3)"), 30, ""),
        check.Part("hangs", ("-c", "import time; time.sleep(600)"), 1, ""),
        check.Part("works", ("-c", "print('done')"), 30, ""),
    ]
    monkeypatch.setattr(check, "parts", lambda device, work: parts)
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(check, "CPU_FACTOR", 6)
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 1
    said = capsys.readouterr().out
    assert "failed (3)" in said
    assert "out of time (6 s)" in said
    assert "1 of 3 parts are well" in said
    with tarfile.open(tmp_path / "gpu.tar.gz") as archive:
        assert {"gpu/fails.log", "gpu/works.log", "gpu/summary.txt"} <= set(archive.getnames())


def test_the_script_lists_its_parts_without_running_them() -> None:
    done = subprocess.run(
        ["bash", "scripts/gpu_check.sh", "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "verify" in done.stdout
    assert "480 s" in done.stdout
