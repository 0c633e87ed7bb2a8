"""Temporary files and directories, named after the process that owns them, so that a later command can remove them.

A process that is killed leaves its temporary files. Their names say on which machine and by which process they were
made. A sweep removes those of processes of this machine that are gone. What another machine made, which may share the
folder, is removed only once it has not changed for a day.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil

DAY_SECONDS = 86_400  # after which what an unknown process made is taken to be left
FOLDERS = "peftbench-"  # how the names of temporary directories begin

_OWNER = r"(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-"
_NAMES = (  # the last two are those of release 0.1
    re.compile(rf"\.{_OWNER}[0-9a-f]+\.tmp"),
    re.compile(rf"(?:\..+\.part-|{FOLDERS}(?:[a-z]+-)?){_OWNER}\w+"),
    re.compile(r"\.\d+-[0-9a-f]+\.tmp|tmp\w{8}\.(?:tmp|safetensors)"),
    re.compile(rf"\..+\.part-\w{{8}}|{FOLDERS}(?:verify-)?\w{{8}}"),
)


def beside(path: Path) -> Path:
    """Return a new hidden name in the folder of `path`, for a file that is renamed to `path` once it is whole."""
    return path.with_name(f".{_owner()}{secrets.token_hex(8)}.tmp")


@contextmanager
def folder(what: str = "") -> Iterator[Path]:
    """Make a directory for temporary files, and remove it in the end.

    Args:
        what: a word of lower-case letters for its name.

    Yields:
        The directory.
    """
    sweep_system()
    prefix = f"{FOLDERS}{what}{'-' * bool(what)}{_owner()}"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as made:
        yield Path(made)


@contextmanager
def part_of(final: Path) -> Iterator[Path]:
    """Make a hidden directory beside `final`, in which that is built; remove the directory in the end."""
    with tempfile.TemporaryDirectory(
        prefix=f".{final.name}.part-{_owner()}", dir=final.parent, ignore_cleanup_errors=True
    ) as made:
        yield Path(made)


def sweep(*folders: Path) -> None:
    """Remove the temporary files and directories directly in these folders whose processes are gone."""
    for inside in folders:
        for path in _listed(inside):
            if _is_left(path):
                with suppress(OSError):  # another process removes it at the same moment, or owns it
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def sweep_system() -> None:
    """Remove the temporary directories of processes that are gone from the system's folder for them."""
    sweep(Path(tempfile.gettempdir()))


def start_of(pid: int) -> int | None:
    """When a process started, which tells it apart from a later one of its number; None if it has ended.

    One that has ended keeps its number until its parent asks for its exit code, and some parents never do. Linux
    counts from its own start, as setting the clock changes the time that it says processes started at.
    """
    try:
        facts = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if facts[0] in b"ZX" else int(facts[19])
    except OSError:
        pass
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * 1000)
    except psutil.NoSuchProcess:
        return None


def _listed(inside: Path) -> list[Path]:
    try:
        names = os.listdir(inside)
    except OSError:
        return []
    return [inside / name for name in names if _named(name) is not None]


def _named(name: str) -> re.Match[str] | None:
    return next((found for pattern in _NAMES if (found := pattern.fullmatch(name))), None)


def _is_left(path: Path) -> bool:
    """Whether the process that made `path` is gone."""
    named = _named(path.name)
    assert named is not None
    owner = named.groupdict()
    if owner.get("machine") == _machine():
        return start_of(int(owner["pid"])) != int(owner["start"])
    try:
        return time.time() - path.lstat().st_mtime > DAY_SECONDS
    except OSError:
        return False


def _owner() -> str:
    """The part of a name that says whose it is."""
    return f"{_machine()}-{os.getpid()}-{start_of(os.getpid())}-"


@cache
def _machine() -> str:
    """Eight hex digits that tell apart the machines and containers in which process numbers mean different processes.

    Another start of the machine counts as another one, as numbers begin anew.
    """
    facts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            facts.append(read())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
