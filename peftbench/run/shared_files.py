"""Small JSON files on a file system that several machines share, which may have no locks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from peftbench.records import scratch


def create(path: Path, content: Any) -> bool:
    """Create a file that appears under its name whole, and once; False if the name is taken.

    link(2) is atomic on every file system that has it, NFS of all versions included. If the answer of an NFS server is
    lost, the client asks again and is told that the file exists, though the first request made it. The number of names
    of the file tells the truth.
    """
    temporary = scratch.beside(path)
    try:
        with open(temporary, "x") as f:
            json.dump(content, f, default=str)
            f.flush()
            os.fsync(f.fileno())
        try:
            os.link(temporary, path)
        except OSError as error:
            if temporary.stat().st_nlink == 2:
                return True
            if isinstance(error, FileExistsError):
                return False
            raise
        return True
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, content: Any) -> None:
    """Write a file in place of the one that is there; readers see one or the other."""
    temporary = scratch.beside(path)
    try:
        with open(temporary, "x") as f:
            json.dump(content, f, default=str)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Any:
    """The content of a file; None if it is gone, unfinished, or replaced while it is read."""
    for _ in range(2):  # on another machine, a file that is replaced may be stale once
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            continue
    return None
