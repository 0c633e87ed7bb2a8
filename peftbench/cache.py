"""The user's cache directory: unpacked models and tokenised data, each built once and whole.

Several workers start at the same moment and want the same thing. One of them builds it under a file lock, in a
temporary place beside the final one, and renames it; the others wait and then read. What lies under its final name is
therefore always complete, also after a crash or a full disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peftbench.errors import UserError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EFBIG}


def root() -> Path:
    """The cache directory: $PEFTBENCH_CACHE, or `peftbench` in the platform's cache directory of this user."""
    given = os.environ.get("PEFTBENCH_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "peftbench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "peftbench"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "peftbench"


def directory(final: Path, build: Callable[[Path], None]) -> Path:
    """`final`, built by `build(empty directory)` unless it is there; built once, however many processes ask.

    Raises UserError where the cache cannot be written; what `build` raises passes through and leaves nothing behind.
    """
    return _once(final, build, directory=True)


def file(final: Path, write: Callable[[Path], None]) -> Path:
    """`final`, written by `write(path of a file to create)` unless it is there; like `directory`, for one file."""
    return _once(final, write, directory=False)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`; freed by the system when its process dies."""
    from filelock import FileLock

    with _writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.name}.lock"))
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _once(final: Path, make: Callable[[Path], None], *, directory: bool) -> Path:
    if final.exists():
        return final
    with lock(final):
        if final.exists():  # another process built it while this one waited
            return final
        prefix = f".{final.name}.part-"
        for stale in final.parent.glob(f"{prefix}*"):  # of a process that died: nobody else holds the lock
            shutil.rmtree(stale, ignore_errors=True)
        with _writable(final.parent), tempfile.TemporaryDirectory(prefix=prefix, dir=final.parent) as inside:
            part = Path(inside) / final.name
            if directory:
                part.mkdir()
            make(part)
            os.replace(part, final)
    return final


@contextmanager
def _writable(place: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into a message that names the place and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:  # a build's own trouble (a network, a missing source) is not the disk's
            raise
        name = error.filename or place
        raise UserError(
            f"cannot write the cache at {name}: {error.strerror}. Free some space there or give another directory in "
            "the environment variable PEFTBENCH_CACHE."
        ) from error
