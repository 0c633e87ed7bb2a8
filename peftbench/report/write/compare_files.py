"""Compares the files of a report with those that its records give today, byte for byte."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from peftbench.report.write import files

# A repository of results may leave these out: they hold nothing that other files do not.
DERIVED = re.compile(r"index\.html|figures/.*\.svg")


def differences(folder: Path, contents: Iterable[tuple[str, bytes]], root: Path | None = None) -> list[str]:
    """Compare a report on disk with its expected files.

    Args:
        folder: folder of the report.
        contents: (path under `folder`, expected content) of each file.
        root: as for `files.write`.

    Returns:
        One line per file that differs, is missing or does not belong, sorted by name. The page `index.html` and
        figures as SVG may be missing.

    Raises:
        UserError: if a folder below `root` is a symbolic link.
    """
    files.refuse_links(folder, root or folder, files.FOLDERS)
    made = dict(contents)
    kept = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")}
    lines = [f"{name}: not made by this report" for name in kept - set(made) - {files.LIST}]
    for name, content in made.items():
        path = folder / name
        if DERIVED.fullmatch(name) and not os.path.lexists(path):
            continue
        if (kept_bytes := files.content(path)) is None:
            lines.append(f"{name}: {'no file of a report' if os.path.lexists(path) else 'missing'}")
        elif kept_bytes != content:
            lines.append(f"{name}: {_where(kept_bytes, content)}")
    return sorted(lines)


def _where(kept: bytes, made: bytes) -> str:
    """The first line in which two texts differ; for other content, the two lengths."""
    try:
        lines = list(zip(kept.decode().splitlines(), made.decode().splitlines(), strict=False))
    except UnicodeDecodeError:
        return f"other bytes ({len(kept)} kept, {len(made)} made)"
    for number, (old, new) in enumerate(lines, start=1):
        if old != new:
            return f"line {number}: {old[:60]!r} kept, {new[:60]!r} made"
    return "another length"
