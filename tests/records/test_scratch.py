"""Temporary files: those of processes that are gone are swept, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import family
import pytest

from peftbench import cache
from peftbench.records import scratch

KILLED = """
import os, sys
from pathlib import Path
from peftbench.records import scratch
scratch.tempfile.tempdir = sys.argv[1]
folder = Path(sys.argv[1])
scratch.beside(folder / "a.json").write_text("half")
kept = scratch.folder("verify")
kept.__enter__()
made = scratch.part_of(folder / "model")
(made.__enter__() / "weights").write_text("half")
print(scratch._owner(), flush=True)
if "wait" in sys.argv:
    sys.stdin.read()
os._exit(9)
"""


def left_by(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A process that has made one temporary thing of each kind in a folder."""
    command = [sys.executable, "-c", KILLED, str(folder), *words]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_what_a_killed_process_left_is_swept_and_other_files_stay(tmp_path: Path) -> None:
    left_by(tmp_path).communicate()
    assert len(list(tmp_path.iterdir())) == 3
    for name in ("record.json", ".hidden", ".lock", "peftbench-notes", "mine.tmp"):
        (tmp_path / name).write_text("")
    scratch.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".hidden",
        ".lock",
        "mine.tmp",
        "peftbench-notes",
        "record.json",
    ]


def test_what_a_living_process_uses_stays_however_old_it_is(tmp_path: Path) -> None:
    process = left_by(tmp_path, "wait")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    scratch.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    process.communicate()
    scratch.sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_an_ended_process_left_is_swept_though_nobody_asks_for_its_exit_code(tmp_path: Path) -> None:
    process = left_by(tmp_path)
    family.wait_until_ended(process.pid)
    scratch.sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    process.communicate()


def test_a_later_process_with_the_same_number_protects_nothing(tmp_path: Path) -> None:
    machine, pid, start, _ = scratch._owner().split("-")
    ours, earlier = (tmp_path / f".{machine}-{pid}-{when}-{'0' * 16}.tmp" for when in (start, int(start) - 1))
    for path in (ours, earlier):
        path.write_text("")
    scratch.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [ours]


@pytest.mark.parametrize(
    "name",
    [
        ".0badc0de-1-1-00ff.tmp",
        ".model.part-0badc0de-1-1-abcd_123",
        "peftbench-0badc0de-1-1-abcd_123",
        ".123-abc.tmp",  # the rest as release 0.1 named them
        "tmpab_c1234.safetensors",
        "tmpab_c1234.tmp",
        ".model.part-ab_c1234",
        "peftbench-verify-ab_c1234",
    ],
)
def test_what_another_machine_made_stays_for_a_day(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("")
    scratch.sweep(tmp_path)
    assert path.exists()
    os.utime(path, (time.time() - scratch.DAY_SECONDS - 60,) * 2)
    scratch.sweep(tmp_path)
    assert not path.exists()


def test_every_folder_of_the_cache_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path))
    folders = [tmp_path / name for name in ("answers", "snapshots", "tokens")]
    for folder in (tmp_path, *folders):
        folder.mkdir(exist_ok=True)
        left_by(folder).communicate()
    cache.sweep()
    assert sorted(tmp_path.iterdir()) == folders
    assert not [p for folder in folders for p in folder.iterdir()]


def test_a_new_temporary_folder_sweeps_those_of_killed_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by(tmp_path).communicate()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch.folder() as made:
        assert list(tmp_path.iterdir()) == [made]
    assert not list(tmp_path.iterdir())


def test_nothing_in_the_package_names_a_temporary_file_by_itself() -> None:
    names = ("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryDirectory", '.tmp"')
    sources = [p for p in cache.ENGINE.rglob("*.py") if p.name != "scratch.py"]
    found = [f"{p}: {name}" for p in sources for name in names if name in p.read_text(encoding="utf-8")]
    assert not found, "use peftbench.records.scratch, so that what a killed process leaves is swept"
