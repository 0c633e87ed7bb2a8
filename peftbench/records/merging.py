"""Bring the results of several machines together in one directory, byte for byte.

The sources are only read, and nothing in the target is ever overwritten: the command can be repeated, and interrupted
at any point. Two files hold one record if their checksums are equal. Two records of one name (equal machines, the same
attempt at the same run) are both kept: the one that started later has its checksum in its name. Attempts keep their
numbers, which the checksum covers.

An adapter's name does not say which attempt trained it. Where its name is taken by another content, the checksum of
the record that it belongs to stands in its name.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftbench.errors import UserError
from peftbench.records import files, packs, record, scratch, user_file
from peftbench.records.record import Record
from peftbench.records.spec import RunSpec

ADAPTERS = "adapters"  # under a results directory
ENDINGS = (".safetensors", ".head.safetensors")  # of an adapter, and of the task head that was trained with it
_ADAPTER = re.compile(r"(?P<stem>.+--(?P<spec>[0-9a-f]{16})(?:\.(?P<checksum>[0-9a-f]{8}))*)(?:\.head)?\.safetensors")


@dataclass
class Source:
    """What one directory gave.

    Attributes:
        folder: the directory.
        records: how many records it has.
        copied: how many of them were not in the target yet.
        adapters: how many files of adapters were not in the target yet.
        beside: the names of copied files whose own name another content has.
        left_out: why each other file is no record or adapter.
    """

    folder: Path
    records: int = 0
    copied: int = 0
    adapters: int = 0
    beside: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """A record that can be trusted, and the directory that has it."""

    source: Source
    record: Record
    checksum: str

    @property
    def name(self) -> str:
        """The name that a record with this content has."""
        body = self.record.body
        names = {"slug": body.slug, "spec_id": body.spec_id, "env_id": body.env_id, "attempt": body.attempt}
        return record.file_name(names)


def merge(sources: Sequence[Path], into: Path) -> list[Source]:
    """Copy the records and adapters of results directories into one that may have some already.

    The caller holds the lock on the target.

    Args:
        sources: the results directories.
        into: the target; it is made if missing.

    Returns:
        What was done, one item for each source.

    Raises:
        UserError: a source is no results directory (nothing is copied then), or a file cannot be read or written.
    """
    check(sources)
    given = [Source(folder) for folder in sources]
    found = [one for source in given for one in _records(source)]
    try:
        for one in sorted(found, key=lambda one: (one.record.body.started, one.checksum)):
            _copy_record(one, into / record.FOLDER)
        for source in given:
            _copy_adapters(source, [one for one in found if one.source is source], into / ADAPTERS)
    except OSError as error:
        raise UserError(
            f"{error.filename or into}: {error.strerror or error}. What was copied stays: free some space, or see to "
            "the permissions, and give the same command again"
        ) from error
    return given


def check(sources: Sequence[Path], into: Path | None = None) -> None:
    """Raise UserError if one of them is no results directory, or is the target of the others."""
    for folder in sources:
        if into is not None and len(sources) > 1 and folder.resolve() == into.resolve():
            raise UserError(f"--into {into}: it is one of the sources, which are not changed; name another directory")
        if not user_file.is_folder(folder / record.FOLDER) and not packs.are_there(folder):
            raise UserError(
                f"{folder}: no results directory, as it has no folder {record.FOLDER}/; "
                "name directories that `peftbench run` has written"
            )


def second_name(name: str, checksum: str) -> str:
    """Return the name of a record or adapter beside another one that has its own name.

    >>> second_name("lora--s0--00aa--1.json", "9f2c41d07b"), second_name("lora--00aa.head.safetensors", "9f2c41d07b")
    ('lora--s0--00aa--1.9f2c41d0.json', 'lora--00aa.9f2c41d0.head.safetensors')
    """
    ending = next((e for e in (*ENDINGS[::-1], ".json") if name.endswith(e)), "")
    return f"{name.removesuffix(ending)}.{checksum[:8]}{ending}"


def _records(source: Source) -> Iterator[_Found]:
    """The records of a source that can be trusted; the source notes the others."""
    for path in record.paths(source.folder):
        try:
            one = record.read(path)
            record.check_predictions(one)
            content = files.checksum(packs.read_bytes(path))
        except UserError as error:
            source.left_out.append(str(error))
        else:
            source.records += 1
            yield _Found(source, one, content)


def _copy_record(one: _Found, target: Path) -> None:
    """Copy a record unless the target has its content, under its own name or its second one."""
    second = second_name(one.name, one.checksum)
    for name in (one.name, second):
        path = target / name
        if not packs.has(path):
            target.mkdir(parents=True, exist_ok=True)
            files.link(packs.read_bytes(one.record.path), path)
            one.source.copied += 1
            if name == second:
                one.source.beside.append(name)
            return
        if _checksum(path) == one.checksum:
            return
    raise UserError(f"{target / second}: another file has this name already; move it away, and give the command again")


def _checksum(path: Path) -> str | None:
    """The checksum of a record in the target; None if the file is damaged, or no record."""
    try:
        raw = packs.read_bytes(path)
        files.decode(raw, path)
    except UserError:
        return None
    return files.checksum(raw)


def _copy_adapters(source: Source, found: Sequence[_Found], target: Path) -> None:
    """Copy the adapters of a source, each with its head."""
    folder = source.folder / ADAPTERS
    stems: dict[str, re.Match[str]] = {}
    for path in sorted(folder.glob("[!.]*")) if folder.is_dir() else []:
        named = _ADAPTER.fullmatch(path.name)
        if named is None:
            source.left_out.append(f"{path}: not named as an adapter that a run has kept")
        else:
            stems.setdefault(named["stem"], named)
    for stem, named in stems.items():
        parts = [(folder / f"{stem}{ending}", ending) for ending in ENDINGS if (folder / f"{stem}{ending}").is_file()]
        for name in _names(stem, named, parts[0][0], found):
            pairs = [(path, target / f"{name}{ending}") for path, ending in parts]
            if all(not there.exists() or filecmp.cmp(path, there, shallow=False) for path, there in pairs):
                new = [(path, there) for path, there in pairs if not there.exists()]
                for path, there in new:
                    _copy(path, there)
                source.adapters += len(new)
                source.beside += [there.name for _, there in new if name != stem]
                break


def _names(stem: str, named: re.Match[str], path: Path, found: Sequence[_Found]) -> Iterator[str]:
    """The names that an adapter may have, without ending: its own, with its record's checksum, with its own one."""
    yield stem
    own = [one for one in found if one.record.spec_id == named["spec"] and one.record.is_finished]
    own = [one for one in own if isinstance(one.record.spec, RunSpec) and one.record.spec.trial is None]
    if named["checksum"] is None and own:  # the newest attempt, which has replaced the file of those before
        yield second_name(stem, max(own, key=lambda one: one.record.order).checksum)
    with path.open("rb") as content:
        yield second_name(stem, hashlib.file_digest(content, "sha256").hexdigest())


def _copy(path: Path, there: Path) -> None:
    """Copy a file to a name that is free; the name appears once the file is whole."""
    there.parent.mkdir(parents=True, exist_ok=True)
    temporary = scratch.beside(there)
    try:
        shutil.copyfile(path, temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.link(temporary, there)
    finally:
        temporary.unlink(missing_ok=True)
