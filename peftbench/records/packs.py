"""A packed set: the records of a results directory in one compressed file, byte for byte.

Records of one experiment repeat much of each other (the examples' ids, the environment), so a complete set needs a
tenth of its space or less as `runs.tar.xz`, beside `runs/`. Readers find a packed record at the path that it had;
writers go on in `runs/`. `tar -xJf runs.tar.xz` gives the files back.

A pack is read whole or refused: no part of one is ever taken for a smaller set.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from peftbench.errors import UserError
from peftbench.records import files, scratch

RUNS = "runs"  # the folder of records, under the results directory
ENDING = ".tar.xz"
LARGEST_BYTES = 2**29  # of a pack's content: some 20,000 records
MEMORY_BYTES = 2**28  # that its decompression may take
KEPT = 32  # packs in memory: as many sets as one command reads at a time
FIX = "Restore the file from a copy, or move it out of the results directory."


def of(folder: Path) -> Path:
    """Return the path of the pack that belongs to a folder of records.

    >>> of(Path("results/quickstart/runs")).as_posix()
    'results/quickstart/runs.tar.xz'
    """
    return folder.with_name(folder.name + ENDING)


def are_there(results_dir: Path | str) -> bool:
    """Whether records of a results directory are packed."""
    return os.path.lexists(of(Path(results_dir) / RUNS))


def names(folder: Path) -> list[str]:
    """Return the names of the packed records of a folder; none if it has no pack.

    Raises:
        UserError: the pack is damaged, too large, or holds something else.
    """
    return sorted(_packed(folder))


def has(path: Path) -> bool:
    """Whether there is a record at this path, packed or not. Raises UserError for a damaged pack."""
    return os.path.lexists(path) or path.name in _packed(path.parent)


def shown(path: Path) -> str:
    """Return where a person finds a record: its path, or its pack and the name in there."""
    return str(path) if os.path.lexists(path) or not has(path) else f"{of(path.parent)}, {path.parent.name}/{path.name}"


def read_bytes(path: Path) -> bytes:
    """Return the content of a record: of the file at this path, or of the packed one that had it.

    Raises:
        UserError: there is neither, it cannot be read, or the two differ.
    """
    try:
        content = files.read_bytes(path)
    except UserError:
        packed = None if os.path.lexists(path) else _packed(path.parent).get(path.name)
        if packed is None:
            raise
        return packed
    if _packed(path.parent).get(path.name, content) != content:
        raise UserError(
            f"{path}: differs from the record of its name in {of(path.parent).name}. Move one of them away."
        )
    return content


def write(folder: Path) -> Path:
    """Pack the records of a folder, those packed before included; then remove the files. Same records, same bytes.

    The caller holds the lock on the results directory, so that nothing else writes there.

    Raises:
        UserError: there are no records to pack, two of one name differ, or the pack cannot be written.
    """
    paths = [p for p in sorted(folder.glob("*.json")) if not p.name.startswith(".")]
    loose = {p.name: read_bytes(p) for p in paths}
    if not loose:
        raise UserError(f"{folder}: no records to pack")
    target = of(folder)
    content = _packing(folder.name, {**_packed(folder), **loose})
    if len(content) > LARGEST_BYTES:
        raise UserError(f"{folder}: {len(content):,} bytes of records; a pack has at most {LARGEST_BYTES:,}")
    temporary = scratch.beside(target)
    with files.explained(target.parent):
        try:
            with open(temporary, "xb") as file:
                file.write(lzma.compress(content, preset=9))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        files.sync(target.parent)  # the pack is on the disk before a file is gone
    packed = _packed(folder)
    if any(packed.get(name) != kept for name, kept in loose.items()):
        raise UserError(f"{target}: does not hold what was packed; the files in {folder} stay")
    for path in paths:
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
    return target


def _packing(folder: str, records: Mapping[str, bytes]) -> bytes:
    """A tar archive of the records, the same bytes for the same records."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:") as pack:
        for name in sorted(records):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode = len(records[name]), 0o644
            pack.addfile(member, io.BytesIO(records[name]))
    return made.getvalue()


def _packed(folder: Path) -> Mapping[str, bytes]:
    """The content of each packed record by name; other folders than that of the records have no pack."""
    if folder.name != RUNS or not os.path.lexists(path := of(folder)):
        return {}
    try:
        facts = path.stat()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}). {FIX}") from e
    return _unpacked(path, folder.name, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=KEPT)
def _unpacked(path: Path, folder: str, changed: int, size: int) -> Mapping[str, bytes]:
    content, found = _decompressed(path), {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as pack:
            for member in pack:
                inside, _, name = member.name.rpartition("/")
                if member.isdir() and member.name == folder:
                    continue  # the folder itself, as tar lists it
                is_record = inside == folder and name.endswith(".json") and not name.startswith(".")
                file = pack.extractfile(member) if is_record and member.isreg() and not member.issparse() else None
                if file is None:
                    raise UserError(f"{path}: holds {member.name!r}, which is no file {folder}/*.json. {FIX}")
                found[name] = file.read()
            rest = content[pack.offset :]
    except (tarfile.TarError, OSError, ValueError, EOFError) as e:
        raise _damaged(path, str(e)) from e
    if len(rest) < 2 * tarfile.BLOCKSIZE or rest.strip(b"\0"):  # tarfile itself takes any end for the end
        raise _damaged(path, "its end is missing")
    if not found:
        raise UserError(f"{path}: holds no file {folder}/*.json, so it packs no records. {FIX}")
    return found


def _decompressed(path: Path) -> bytes:
    """The archive; some programs compress one in several streams."""
    rest, content = files.read_bytes(path), b""
    while rest or not content:
        stream = lzma.LZMADecompressor(memlimit=MEMORY_BYTES)
        try:
            content += stream.decompress(rest, max_length=LARGEST_BYTES + 1 - len(content))
        except lzma.LZMAError as e:
            raise _damaged(path, str(e)) from e
        if len(content) > LARGEST_BYTES:
            raise UserError(f"{path}: more than {LARGEST_BYTES:,} bytes of content. {FIX}")
        if not stream.eof:
            raise _damaged(path, "its end is missing")
        rest = stream.unused_data
    return content


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path}: half-written or damaged: no pack of records ({why}). {FIX}")
