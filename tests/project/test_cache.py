"""The cache: built once and whole, however many ask and whatever breaks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from peftbench import cache
from peftbench.errors import UserError


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
