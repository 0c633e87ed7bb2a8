"""Writes the files of a report atomically, and removes those left from an earlier report."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from peftbench.errors import UserError
from peftbench.records import scratch

LIST = "files.txt"  # names of the files written, so that the next report can remove outdated ones


def write(folder: Path, contents: Iterable[tuple[str, bytes]]) -> list[Path]:
    """Write files under a folder, and remove files of the earlier report that are not among them.

    Args:
        folder: folder of the report; created if missing.
        contents: (path under `folder`, content) of each file.

    Returns:
        The paths, in the order of `contents`.

    Raises:
        UserError: if a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = listed(folder)
        scratch.sweep(folder, *{(folder / name).parent for name in before})
        names = []
        for name, content in contents:
            replace(folder / name, content)
            names.append(name)
        replace(folder / LIST, "".join(f"{n}\n" for n in sorted(names)).encode())
        for name in before - set(names):
            (folder / name).unlink(missing_ok=True)
    except OSError as e:
        raise UserError(
            f"{folder}: the report could not be written ({e.strerror}). Make room for it there or choose another "
            "directory, and run the report again; the records are not touched."
        ) from e
    return [folder / name for name in names]


def listed(folder: Path) -> set[str]:
    """Names of the files of the earlier report, without absolute paths or paths that leave the folder."""
    try:
        lines = (folder / LIST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return set()
    return {n for n in lines if n and not Path(n).is_absolute() and ".." not in Path(n).parts}


def replace(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step."""
    path.parent.mkdir(exist_ok=True)
    temporary = scratch.beside(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
