"""One runner at a time on a results directory.

The lock is the operating system's (flock) on an open file that the runner's workers inherit: it is free exactly when
the runner and all its workers are gone, however they went. A runner killed with kill -9 therefore leaves nothing to
clean up, and its successor does not start while an orphaned worker is still finishing a record.

Some file systems of clusters have no locks. Executors whose jobs inherit nothing need none: their lock is then a file
that names its holder. The holder of this machine is known to be gone by its process; that of another machine is not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import scratch
from peftbench.run import shared_files

NAME = ".lock"
POLL_SECONDS = 0.05
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # of file systems that have none
WAIT_FIX = "Wait until it is done, or choose another --results."


@contextmanager
def hold(results_dir: Path, patience_seconds: float = 15, needs_locks: bool = True) -> Iterator[int | None]:
    """Hold the lock on a results directory.

    Args:
        results_dir: made if missing.
        patience_seconds: how long to wait where the holder is dead but its workers have not noticed yet.
        needs_locks: whether a file system without locks is refused.

    Yields:
        The file descriptor of the lock, for workers to inherit; None on a file system without locks.

    Raises:
        UserError: another runner holds the lock (at once while it lives), or the directory cannot be written.
    """
    deadline = time.monotonic() + patience_seconds
    path = results_dir / NAME
    try:
        while (fd := _try(path)) is None:
            holder = shared_files.read(path)
            if not _is_dead(holder) or time.monotonic() > deadline:
                raise _taken(results_dir, holder)
            time.sleep(POLL_SECONDS)
    except _NoLocks as error:
        if needs_locks:
            fix = "Choose a --results on a local disk."
            raise UserError(f"{path}: this file system has no locks ({error}). {fix}") from error
        fd = None
    if fd is None:
        with _held_by_name(results_dir):
            yield None
        return
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds, though it does not say whose it is
            os.ftruncate(fd, 0)
            os.write(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield fd
    finally:
        path.unlink(missing_ok=True)  # while it is held: `_try` sees that the file has no name any more
        os.close(fd)


class _NoLocks(Exception):
    """The file system has no locks."""


def _try(path: Path) -> int | None:
    """The locked file's descriptor, or None if another process has the lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)  # a link's target would be emptied
    except OSError as e:
        fix = "Choose a --results that you may write to."
        raise UserError(f"{path.parent}: cannot be written ({e.strerror}). {fix}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same_file(fd, path):
            return fd
    except BlockingIOError:
        pass
    except OSError as e:
        os.close(fd)
        if e.errno in NO_LOCKS:
            path.unlink(missing_ok=True)
            raise _NoLocks(e.strerror) from e
        fix = "Choose a --results on a local disk."
        raise UserError(f"{path}: this file system has no locks ({e.strerror}). {fix}") from e
    os.close(fd)
    return None


@contextmanager
def _held_by_name(results_dir: Path) -> Iterator[None]:
    """Hold the lock by a file that names this process.

    The file is made before those of others are looked for, so that of two processes at least one sees the other. Both
    may, and then neither gets the lock.

    Raises:
        UserError: another process has such a file and may live.
    """
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "start": scratch.start_of(os.getpid())}
    mine = results_dir / f"{NAME}-{secrets.token_hex(8)}.json"
    shared_files.replace(mine, facts)
    try:
        for path in results_dir.glob(f"{NAME}-*.json"):
            if path == mine or (holder := shared_files.read(path)) is None:
                continue
            if _is_dead(holder):
                path.unlink(missing_ok=True)
                continue
            elsewhere = holder["host"] != socket.gethostname()
            fix = f" If that process is gone, remove {path}." if elsewhere else ""
            raise _taken(results_dir, holder, fix)
        yield
    finally:
        mine.unlink(missing_ok=True)


def _is_same_file(fd: int, path: Path) -> bool:
    """Whether the path still leads to the locked file: its last holder removes it before releasing the lock."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _is_dead(holder: dict[str, Any] | None) -> bool:
    """Whether the holder's process is gone; True also while nobody is named, as the next attempt finds out."""
    if holder is None:
        return True
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it lives, as another user
    start = scratch.start_of(holder["pid"])
    return start is None or start != holder.get("start", start)


def _taken(results_dir: Path, holder: dict[str, Any] | None, fix: str = "") -> UserError:
    if holder is None:
        who = "another run"
    elif _is_dead(holder):
        who = f"the workers of a run that has ended (process {holder['pid']})"
    else:
        who = f"another run (process {holder['pid']} on {holder['host']})"
    return UserError(f"{results_dir}: {who} is using this directory. {WAIT_FIX}{fix}")
