"""The cache: built once and whole, however many ask and whatever breaks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from peftbench import cache
from peftbench.errors import UserError
from peftbench.estimate.run import calibrate, run_memory
from peftbench.estimate.run.calibrate import Place
from peftbench.method.catalogue import Catalogue


def _build(final: Path, log: Path) -> None:
    def build(target: Path) -> None:
        with log.open("a") as f:
            f.write("built\n")
        time.sleep(0.2)  # long enough for the others to arrive
        (target / "whole").write_text("yes")

    assert (cache.directory(final, build) / "whole").read_text() == "yes"


def test_concurrent_processes_build_a_directory_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_build, args=(tmp_path / "a" / "model", tmp_path / "log")) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(30)
    assert [w.exitcode for w in workers] == [0, 0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        (target / "half").write_text("")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        cache.directory(tmp_path / "model", fail)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []
    assert cache.directory(tmp_path / "model", lambda target: None).is_dir()


def test_leftovers_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".model.part-dead" / "model"
    stale.mkdir(parents=True)
    cache.directory(tmp_path / "model", lambda target: None)
    assert not stale.parent.exists()


def test_a_full_disk_is_one_message_with_the_way_out(tmp_path: Path) -> None:
    def full(part: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))

    with pytest.raises(UserError, match=r"No space left on device.*PEFTBENCH_CACHE"):
        cache.file(tmp_path / "tokens.npz", full)


def test_a_missing_source_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cache.file(tmp_path / "x", lambda part: part.write_bytes((tmp_path / "nowhere").read_bytes()) and None)


def test_the_root_is_the_variable_or_the_users_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path))
    assert cache.root() == tmp_path
    monkeypatch.delenv("PEFTBENCH_CACHE")
    assert cache.root().name == "peftbench"
    assert cache.root() != tmp_path


ROOMS = sorted(p.name for p in cache.ENGINE.iterdir() if p.is_dir() and list(p.glob("*.py")))


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that a test may change."""
    shutil.copytree(cache.ENGINE, tmp_path / "peftbench", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "ENGINE", tmp_path / "peftbench")
    return tmp_path / "peftbench"


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_a_key_moves_with_one_byte_in_any_file_of_its_package_and_only_of_its_own(copied: Path, room: str) -> None:
    others = {r: cache.code_key(r) for r in ROOMS if r != room}
    for file in sorted((copied / room).rglob("*.py")):
        before, content = cache.code_key(room), file.read_bytes()
        file.write_bytes(content + b"#")
        assert cache.code_key(room) != before, file
        file.write_bytes(content)
        assert cache.code_key(room) == before
    assert {r: cache.code_key(r) for r in others} == others


def test_a_key_moves_with_a_new_renamed_or_removed_file(copied: Path) -> None:
    keys = [cache.code_key("tasks")]
    (copied / "tasks" / "more.py").write_text("")
    keys.append(cache.code_key("tasks"))
    (copied / "tasks" / "more.py").rename(copied / "tasks" / "most.py")
    keys.append(cache.code_key("tasks"))
    (copied / "tasks" / "most.py").unlink()
    assert len(set(keys)) == 3
    assert cache.code_key("tasks") == keys[0]


def test_a_key_covers_the_method_files_and_plugins(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("a = 1\n")
    before = cache.code_key("methods", files=[plugin])
    plugin.write_text("a = 2\n")
    assert cache.code_key("methods", files=[plugin]) != before
    assert cache.code_key("methods") not in (before, cache.code_key("method"))


def test_a_key_over_a_package_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no package 'report/judge'"):
        cache.code_key("report", "report/judge")


@pytest.mark.slow
@pytest.mark.parametrize("room", ["backbones", "tasks", "method", "measure", "run", "estimate"])
def test_calibrations_and_simulated_peaks_rest_on_every_package_that_a_step_runs_through(
    copied: Path, tmp_path: Path, room: str
) -> None:
    def keys() -> list[str]:
        catalogue = Catalogue(stores=cache.Stores(tmp_path / "answers"))
        return [calibrate._store(catalogue, Place("cpu", 1, 1)).key, run_memory._store(catalogue).key]

    before = keys()
    with open(next((copied / room).glob("[a-z]*.py")), "a") as f:
        f.write("\n")
    assert not set(keys()) & set(before)


def test_what_the_network_is_made_of_decides_what_is_known_of_its_sites_and_methods(
    copied: Path, tmp_path: Path
) -> None:
    def key() -> str:
        return Catalogue(stores=cache.Stores(tmp_path / "answers"))._key

    for room in ("method", "backbones"):
        before = key()
        with open(next((copied / room).glob("[a-z]*.py")), "a") as f:
            f.write("\n")
        assert key() != before
