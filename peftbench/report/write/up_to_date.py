"""Is the report up to date?

A digest next to the report covers its records, the code and libraries that draw it, and its own files. Any change, even
of a figure edited by hand, changes the digest.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from peftbench import cache
from peftbench.errors import UserError
from peftbench.records import packs, record
from peftbench.report.web.template import ASSETS
from peftbench.report.write import files

SEAL = ".digest"
DRAWN_BY = ("altair", "jinja2", "matplotlib", "numpy", "pandas", "scipy", "seaborn", "tabulate", "vl-convert-python",
            "wcwidth")  # fmt: skip


def sources(results_dir: Path | str) -> str:
    """Digest of everything that a report depends on.

    Take it before reading the records, so that a record added meanwhile makes the report outdated.

    Args:
        results_dir: the results directory.

    Returns:
        Hex digest.
    """
    records, packed = record.paths(results_dir), packs.are_there(results_dir)
    versions = [platform.python_version(), *(f"{name} {version(name)}" for name in DRAWN_BY)]
    return _digest(
        [
            *versions,
            cache.code_key("report", "records", files=ASSETS),
            *(["packed"] if packed else []),
            *map(_of, records),
        ]
    )


def seal(folder: Path, made_from: str) -> None:
    """Store the digest of the report in `folder`; `made_from` is the digest of its `sources`."""
    with files.explained(folder):
        files.replace(folder / SEAL, _both(folder, made_from).encode())


def is_current(folder: Path, made_from: str) -> bool:
    """Whether the report in `folder` is complete and its `sources` had the digest `made_from`."""
    return files.content(folder / SEAL) == _both(folder, made_from).encode()


def _both(folder: Path, made_from: str) -> str:
    return _digest([made_from, *(_line(name, files.content(folder / name)) for name in sorted(files.listed(folder)))])


def _of(path: Path) -> str:
    """The line of a file of a record; what is no regular file, or is too large, is no record."""
    try:
        return _line(path.name, packs.read_bytes(path))
    except UserError:
        return _line(path.name, None)


def _line(name: str, content: bytes | None) -> str:
    return f"{name} {None if content is None else hashlib.sha256(content).hexdigest()}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
