"""Writes the files of a report atomically, and removes those left from an earlier report.

A results directory may come from a stranger. So nothing is written, read or removed through a symbolic link in it, and
its list of files counts only as far as it has names that reports give.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peftbench.errors import UserError
from peftbench.records import scratch, user_file

LIST = "files.txt"  # names of the files written, so that the next report can remove outdated ones
FOLDERS = ("tables", "figures")  # of a report
LARGEST_BYTES = 2**28  # of a file of a report; the largest has a few million

_IN_FOLDERS = rf"(?:{'|'.join(FOLDERS)})/\w[\w.-]*--[\w.-]+\.(?:md|csv|tex|png|svg|pdf)"
_NAMES = re.compile(rf"report\.md|index\.html|verdict\.json|{_IN_FOLDERS}", re.ASCII)


def write(folder: Path, contents: Iterable[tuple[str, bytes]], root: Path | None = None) -> list[Path]:
    """Write files under a folder, and remove files of the earlier report that are not among them.

    Args:
        folder: folder of the report; created if missing.
        contents: (path under `folder`, content) of each file.
        root: `folder` or a folder above it: the one that the user named, which may be a symbolic link.

    Returns:
        The paths, in the order of `contents`.

    Raises:
        UserError: if a file cannot be written, or a folder below `root` is a symbolic link.
    """
    refuse_links(folder, root or folder, FOLDERS)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        before = listed(folder)
        scratch.sweep(folder, *(folder / name for name in FOLDERS))
        names = []
        for name, content in contents:
            replace(folder / name, content)
            names.append(name)
        replace(folder / LIST, "".join(f"{n}\n" for n in sorted(names)).encode())
        for name in before - set(names):
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in names]


def refuse_links(folder: Path, root: Path, inside: Iterable[str] = ()) -> None:
    """Refuse symbolic links in place of folders below the one that the user named.

    What a report removes or replaces behind a link would be someone's own files.

    Args:
        folder: folder of the files.
        root: `folder` or a folder above it, which may itself be a link: the user chose it.
        inside: names of folders in `folder`.

    Raises:
        UserError: one is a link.
    """
    below = [path for path in (folder, *folder.parents) if path != root and path.is_relative_to(root)]
    for path in (*reversed(below), *(folder / name for name in inside)):
        if path.is_symlink():
            raise UserError(
                f"{path}: a symbolic link, and files are written and removed only in a folder's own folders. "
                "Remove the link, or name another folder with --out."
            )


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an OSError within the block into a UserError that names the folder and the fix."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"{folder}: the report could not be written ({e.strerror}). Make room for it there or choose another "
            "directory, and run the report again; the records are not touched."
        ) from e


def listed(folder: Path) -> set[str]:
    """Names of the files of the earlier report: those that a report gives; empty without a list that can be read."""
    lines = (content(folder / LIST) or b"").decode(errors="replace").split("\n")
    return {line for line in lines if _NAMES.fullmatch(line)}


def content(path: Path) -> bytes | None:
    """The content of a file of a report; None for what no report writes: a link, a pipe, a device, a huge file."""
    try:
        return None if path.is_symlink() else user_file.read(path, LARGEST_BYTES, "remove it")
    except UserError:
        return None


def replace(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step. A link there is replaced; what it leads to stays."""
    path.parent.mkdir(exist_ok=True)
    temporary = scratch.beside(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
