"""The user's cache directory: unpacked models and tokenised data, each built once and whole.

Several workers start at the same moment and want the same thing. One of them builds it under a file lock, in a
temporary place beside the final one, and renames it; the others wait and then read. What lies under its final name is
therefore always complete, also after a crash or a full disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records.spec import digest

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


ENGINE = Path(__file__).parent


def code_key(*packages: str, files: Iterable[Path] = ()) -> str:
    """The sha256 of all sources of these packages of peftbench, and of further `files`: what a cached answer rests on.

    A package is a room ("backbones"), a room inside one ("method/layers"), a single module ("cache"), or "methods",
    the folder of the method files. One changed, added, renamed or removed file gives another key.

    Raises ValueError for a package without files: its key would cover nothing.
    """
    found: dict[str, Path] = {str(p): p for p in files}
    for package in packages:
        inside = [p for p in _folder(package).rglob("*") if p.suffix in (".py", ".json")]
        module = ENGINE / f"{package}.py"
        sources = inside or ([module] if module.is_file() else [])
        if not sources:
            raise ValueError(f"no package {package!r} of peftbench: a cache key over it would cover nothing")
        found |= {f"{package}:{p.relative_to(_folder(package)) if inside else p.name}": p for p in sources}
    hashes = {name: _sha256(path) for name, path in found.items() if path.is_file()}
    return digest(hashes)


def _folder(package: str) -> Path:
    return method_folder() if package == "methods" else ENGINE / package


def method_folder() -> Path:
    """The folder of the method files, found without importing them."""
    found = find_spec("peftbench.methods")
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        raise UserError("peftbench.methods is not there; install peftbench (in a checkout: pip install -e .)")
    return Path(places[0])


def file_hashes(files: Iterable[Path]) -> dict[str, str]:
    """sha256 by path; files that are gone are left out."""
    return {p.as_posix(): _sha256(p) for p in sorted(set(files)) if p.is_file()}


def versions(*packages: str) -> dict[str, str | None]:
    """The installed version of each package; None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Stores:
    """The open answer files of one process, saved together."""

    folder: Path = field(default_factory=lambda: root() / "answers")
    _open: dict[str, Store] = field(default_factory=dict)

    def open(self, kind: str, key: str) -> Store:
        """The answers of a kind that rest on what `key` hashes."""
        name = f"{kind} {key}"
        if name not in self._open:
            self._open[name] = Store(self.folder, kind, key)
        return self._open[name]

    def save(self) -> None:
        """Write what was learned. Raises UserError where the cache cannot be written."""
        for store in self._open.values():
            store.save()


class Store:
    """One cache file: answers by question. Written whole or not at all; not trusted unless its checksum fits."""

    def __init__(self, folder: Path, kind: str, key: str) -> None:
        self.key, self.path, self.changed = key, folder / f"{kind}-{key[:24]}.json", False
        self.answers = self._read()

    def get(self, question: str, ask: Callable[[], Any]) -> Any:
        if question not in self.answers:
            self.answers[question] = json.loads(json.dumps(ask()))
            self.changed = True
        return self.answers[question]

    def put(self, question: str, answer: Any) -> None:
        """Keep an answer that is there already, unless one is kept."""
        self.get(question, lambda: answer)

    def save(self) -> None:
        if not self.changed:
            return
        answers = {**self._read(), **self.answers}  # another process may have learned something meanwhile
        content = json.dumps({"checksum": digest(answers), "answers": answers}).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(content)
                os.replace(temporary, self.path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as e:
            raise UserError(
                f"cannot write the cache at {self.path.parent}: {e.strerror}. Free some space there or give another "
                "directory in the environment variable PEFTBENCH_CACHE."
            ) from e
        self.changed = False

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_bytes())
            return content["answers"] if content["checksum"] == digest(content["answers"]) else {}
        except (OSError, ValueError, KeyError, TypeError):  # absent, cut short or foreign: made again
            return {}
