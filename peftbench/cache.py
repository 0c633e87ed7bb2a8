"""The user's cache directory: models, tokenised data and computed answers, each built once.

Several workers may need the same entry at the same moment. One of them builds it under a file lock and in a temporary
directory, then renames it. The others wait and read. So an entry under its final name is always complete, even after a
crash or on a full disk.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import scratch, user_file
from peftbench.records.spec import digest

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EFBIG}


Check = Callable[[Path], object]  # raises UserError for an entry that is damaged


def root() -> Path:
    """Return the cache directory: $PEFTBENCH_CACHE, or `peftbench` in the user's cache directory on this platform."""
    chosen = os.environ.get("PEFTBENCH_CACHE")
    if chosen:
        return user_file.expanded(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "peftbench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "peftbench"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "peftbench"


def check() -> None:
    """Check that the cache directory is there or can be made, before work begins whose answers it is to keep.

    Raises:
        UserError: it is a file, or cannot be made.
    """
    folder = root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def sweep() -> None:
    """Remove what processes that were killed left in the cache."""
    inside = root()
    scratch.sweep(*(f for f in (inside, *inside.glob("*")) if f.is_dir()))


def directory(final: Path, build: Callable[[Path], None], check: Check | None = None) -> Path:
    """Return the directory `final`; build it first if it does not exist.

    Only one process builds it; the others wait.

    Args:
        final: the path of the finished directory.
        build: fills an empty directory that it gets as its argument.
        check: raises UserError if the directory is damaged; it is then built once more.

    Raises:
        UserError: the cache cannot be written, or what was just built does not pass the check. Any error of `build`
            passes through, and `final` does not exist then.
    """
    return _sound(final, build, check, directory=True)


def file(final: Path, write: Callable[[Path], None], check: Check | None = None) -> Path:
    """Return the file `final`; write it first if it does not exist.

    Args:
        final: the path of the finished file.
        write: creates a file at the path that it gets as its argument.
        check: raises UserError if the file is damaged; it is then written once more.

    Raises:
        UserError: the cache cannot be written, or what was just written does not pass the check. Any error of `write`
            passes through, and `final` does not exist then.
    """
    return _sound(final, write, check, directory=False)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path`. The system releases it if the process dies.

    The empty file of the lock stays: once it is removed, two processes could hold locks of one name.
    """
    from filelock import FileLock

    with _writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.name}.lock"))
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _sound(final: Path, make: Callable[[Path], None], check: Check | None, *, directory: bool) -> Path:
    """Return an entry that passes its check. A damaged one is never used: it is made anew."""
    _once(final, make, directory=directory)
    if check is None:
        return final
    try:
        check(final)
        return final
    except UserError:
        _discard(final, check)
    _once(final, make, directory=directory)
    check(final)
    return final


def _discard(final: Path, check: Check) -> None:
    """Remove an entry that does not pass its check, unless another process has just made it anew."""
    with lock(final):
        try:
            check(final)
        except UserError:
            with _writable(final.parent), scratch.part_of(final) as inside:
                os.replace(final, inside / final.name)  # at once, for those who are about to open it


def _once(final: Path, make: Callable[[Path], None], *, directory: bool) -> Path:
    if final.exists():
        return final
    with lock(final):
        if final.exists():  # another process built it while this one waited
            return final
        for stale in final.parent.glob(f".{glob.escape(final.name)}.part-*"):
            shutil.rmtree(stale, ignore_errors=True)  # the process that made it has died, because the lock is ours
        with _writable(final.parent), scratch.part_of(final) as inside:
            part = inside / final.name
            if directory:
                part.mkdir()
            make(part)
            os.replace(part, final)
    return final


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into a UserError that names the path and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:  # e.g. a network error of `build`, which is not the fault of the cache
            raise
        name = error.filename or folder
        raise _cannot_write(name, error) from error


def _cannot_write(path: str | Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write the cache at {path}: {error.strerror}. Free some space there or give another directory in "
        "the environment variable PEFTBENCH_CACHE."
    )


ENGINE = Path(__file__).parent


def code_key(*packages: str, files: Iterable[Path] = ()) -> str:
    """Return a hash of the code that a cached answer depends on.

    One changed, added, renamed or removed file gives another key.

    Args:
        packages: packages of peftbench. Each is a package ("backbones"), a package inside one ("method/layers"), a
            module ("cache"), or "methods", the folder of the method files.
        files: further files.

    Returns:
        The sha256 as 64 hex digits.

    Raises:
        ValueError: a package has no files, so that its key would cover nothing.
    """
    covered: dict[str, Path] = {str(p): p for p in files}
    for package in packages:
        inside = [p for p in _folder(package).rglob("*") if p.suffix in (".py", ".json")]
        module = ENGINE / f"{package}.py"
        sources = inside or ([module] if module.is_file() else [])
        if not sources:
            raise ValueError(f"no package {package!r} of peftbench: a cache key over it would cover nothing")
        covered |= {f"{package}:{p.relative_to(_folder(package)) if inside else p.name}": p for p in sources}
    hashes = {name: _sha256(path) for name, path in covered.items() if path.is_file()}
    return digest(hashes)


def _folder(package: str) -> Path:
    return method_folder() if package == "methods" else ENGINE / package


def method_folder() -> Path:
    """Return the folder of the method files without importing them.

    Raises:
        UserError: peftbench is not installed.
    """
    spec = find_spec("peftbench.methods")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise UserError("peftbench.methods is not there; install peftbench (in a checkout: pip install -e .)")
    return Path(folders[0])


def file_hashes(files: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of each file by its path. Files that do not exist are left out."""
    return {p.as_posix(): _sha256(p) for p in sorted(set(files)) if p.is_file()}


def versions(*packages: str) -> dict[str, str | None]:
    """Return the installed version of each package, or None for a package that is not installed."""
    installed: dict[str, str | None] = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    return installed


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Stores:
    """The stores that one process has opened. They are saved together."""

    folder: Path = field(default_factory=lambda: root() / "answers")
    _open: dict[str, Store] = field(default_factory=dict)

    def open(self, kind: str, key: str) -> Store:
        """Return the store of one kind of answers.

        Args:
            kind: the kind of answers, such as "sites"; it begins the file's name.
            key: a hash of everything that the answers depend on. Another key opens another file.
        """
        name = f"{kind} {key}"
        if name not in self._open:
            self._open[name] = Store(self.folder, kind, key)
        return self._open[name]

    def save(self) -> None:
        """Write every store that has new answers.

        Raises:
            UserError: the cache cannot be written.
        """
        for store in self._open.values():
            store.save()


class Store:
    """One cache file: JSON values by question.

    The file is replaced as a whole. If its checksum does not match, the store is empty.
    """

    def __init__(self, folder: Path, kind: str, key: str) -> None:
        self.key, self.path, self.changed = key, folder / f"{kind}-{key[:24]}.json", False
        self.answers = self._read()

    def get(self, question: str, compute: Callable[[], Any]) -> Any:
        """Return the stored answer to a question; compute and store it first if there is none."""
        if question not in self.answers:
            self.answers[question] = json.loads(json.dumps(compute()))
            self.changed = True
        return self.answers[question]

    def put(self, question: str, answer: Any) -> None:
        """Store an answer, unless the question has one."""
        self.get(question, lambda: answer)

    def save(self) -> None:
        """Write the file if there are new answers.

        Raises:
            UserError: the cache cannot be written.
        """
        if not self.changed:
            return
        answers = {**self._read(), **self.answers}  # another process may have added answers since we read the file
        content = json.dumps({"checksum": digest(answers), "answers": answers}).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch.sweep(self.path.parent)
            temporary = scratch.beside(self.path)
            try:
                temporary.write_bytes(content)
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.path.parent, error) from error
        self.changed = False

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_bytes())
            return content["answers"] if content["checksum"] == digest(content["answers"]) else {}
        except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: the answers are computed again
            return {}
