"""Read a file that a user names: a regular file of a bounded size, and nothing that waits or never ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from peftbench.errors import UserError

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def read(path: Path, largest: int, fix: str) -> bytes:
    """Return the content of a user's file.

    Opening a pipe waits for its other end, and a device such as /dev/zero has no end. Both are refused unread.

    Args:
        path: the path of the file.
        largest: the most bytes that the file may have.
        fix: what the user gives instead; it ends the message.

    Raises:
        UserError: the file cannot be read, is no regular file, or is too large.
    """
    try:
        check_regular(path, path.stat(), largest, fix)
        with open(path, "rb", opener=_without_waiting) as file:
            check_regular(path, os.fstat(file.fileno()), largest, fix)  # what was a file may be a pipe by now
            content = file.read(largest + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UserError(f"{path}: cannot be read ({reason(error)}); check its path and permissions") from error
    if len(content) > largest:  # it has grown since
        raise _too_large(path, len(content), largest, fix)
    return content


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_regular(path: Path, status: os.stat_result, largest: int, fix: str) -> None:
    """Raise a UserError for what is no regular file, or is larger than `largest` bytes.

    Args:
        path: the path of the file, for the message.
        status: what the system says about the file.
        largest: the most bytes that the file may have.
        fix: what the user gives instead; it ends the message.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(status.st_mode)), "no regular file")
        raise UserError(f"{path} is {kind}, not a file; {fix}")
    if status.st_size > largest:
        raise _too_large(path, status.st_size, largest, fix)


def reason(error: Exception) -> str:
    """Return the cause of an error of the system in words."""
    return getattr(error, "strerror", None) or str(error)


def _too_large(path: Path, size: int, largest: int, fix: str) -> UserError:
    return UserError(f"{path} has {size:,} bytes, and at most {largest:,} are read; {fix}")


def expanded(path: str | Path) -> Path:
    """Return a path with the home directory in place of `~`.

    Raises:
        UserError: the system knows no home directory for it, or no file can have such a name.
    """
    if "\0" in str(path):
        raise UserError(f"{path}: a path cannot have a NUL character")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no home directory that ~ stands for; write the path in full") from error


def resolved(path: Path) -> Path:
    """Return the absolute path behind all symbolic links.

    Raises:
        UserError: the links lead round in a circle, or the working directory is gone.
    """
    try:
        return expanded(path).resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: the path cannot be followed ({reason(error)}); write it in full") from error


_COPIES: dict[str, str] = {}  # by the path that an experiment names


def use_copies(copies: Mapping[str, str]) -> None:
    """Read copies in place of the files and folders that specifications name, on a machine that lacks those.

    Args:
        copies: the path of each copy, by the path that specifications have. It replaces what was set before.
    """
    _COPIES.clear()
    _COPIES.update(copies)


def here(path: str | Path) -> Path:
    """Return the path at which this machine has a file or folder that a specification names.

    Raises:
        UserError: as for `expanded`.
    """
    return expanded(_COPIES.get(str(path), path))


def exists(path: Path) -> bool:
    """Whether there is anything at a path that can be reached: a file, a directory, a pipe."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, a folder that cannot be entered
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a directory at a path that can be reached."""
    return exists(path) and path.is_dir()
