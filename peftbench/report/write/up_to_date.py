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
from peftbench.records import record
from peftbench.report.write import files

SEAL = ".digest"
DRAWN_BY = ("matplotlib", "numpy", "pandas", "scipy", "seaborn", "tabulate", "wcwidth")


def sources(results_dir: Path | str) -> str:
    """Digest of everything that a report depends on.

    Take it before reading the records, so that a record added meanwhile makes the report outdated.

    Args:
        results_dir: the results directory.

    Returns:
        Hex digest.
    """
    records = record.paths(results_dir)
    versions = [platform.python_version(), *(f"{name} {version(name)}" for name in DRAWN_BY)]
    return _digest([*versions, cache.code_key("report", "records"), *map(_of, records)])


def seal(folder: Path, made_from: str) -> None:
    """Store the digest of the report in `folder`; `made_from` is the digest of its `sources`."""
    files.replace(folder / SEAL, _both(folder, made_from).encode())


def is_current(folder: Path, made_from: str) -> bool:
    """Whether the report in `folder` is complete and its `sources` had the digest `made_from`."""
    try:
        return (folder / SEAL).read_text(encoding="utf-8") == _both(folder, made_from)
    except (OSError, UnicodeDecodeError):  # a file is gone, or there never was a report
        return False


def _both(folder: Path, made_from: str) -> str:
    return _digest([made_from, *(_of(folder / name) for name in sorted(files.listed(folder)))])


def _of(path: Path) -> str:
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
