"""A packed set: the records of a results directory in one compressed file, byte for byte.

Records of one experiment repeat much of each other (the examples' ids, the environment), so a complete set needs a
tenth of its space or less as `runs.tar.xz`, beside `runs/`. Readers find a packed record at the path that it had;
writers go on in `runs/`. `tar -xJf runs.tar.xz` gives the files back; `tar -cJf runs.tar.xz runs` packs them too.
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

ENDING = ".tar.xz"
LARGEST_BYTES = 2**30  # of a pack's content
MEMORY_BYTES = 2**28  # that its decompression may take
FIX = "Restore the file from a copy, or move it out of the results directory."


def of(folder: Path) -> Path:
    """Return the path of the pack that belongs to a folder of records.

    >>> of(Path("results/quickstart/runs")).as_posix()
    'results/quickstart/runs.tar.xz'
    """
    return folder.with_name(folder.name + ENDING)


def names(folder: Path) -> list[str]:
    """Return the names of the packed records of a folder; none if it has no pack.

    Raises:
        UserError: the pack is damaged or too large.
    """
    return sorted(_packed(folder))


def has(path: Path) -> bool:
    """Whether there is a record at this path, packed or not."""
    return os.path.lexists(path) or path.name in _packed(path.parent)


def shown(path: Path) -> str:
    """Return where a person finds a record: its path, or its pack and the name in there."""
    return str(path) if os.path.lexists(path) or not has(path) else f"{of(path.parent)}, {path.parent.name}/{path.name}"


def read_bytes(path: Path) -> bytes:
    """Return the content of a record: of the file at this path, or of the packed one that had it.

    Raises:
        UserError: there is neither, or it cannot be read.
    """
    packed = None if os.path.lexists(path) else _packed(path.parent).get(path.name)
    return files.read_bytes(path) if packed is None else packed


def write(folder: Path) -> Path:
    """Pack the records of a folder, those packed before included; then remove the files. Same records, same bytes.

    Nothing may run in the results directory meanwhile.

    Raises:
        UserError: there are no records to pack, or two of one name differ.
    """
    loose = {p.name: files.read_bytes(p) for p in sorted(folder.glob("*.json"))}
    before = _packed(folder)
    if not loose:
        raise UserError(f"{folder}: no records to pack; give the folder of a finished experiment's records")
    if apart := sorted(name for name, content in loose.items() if before.get(name, content) != content):
        raise UserError(f"{folder / apart[0]}: differs from the packed record of its name; move one of them away")
    target, content = of(folder), _packing(folder.name, {**before, **loose})
    temporary = scratch.beside(target)
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    if {name: _packed(folder)[name] for name in loose} != loose:
        raise UserError(f"{target}: does not hold what was packed; the files in {folder} stay")
    for name in loose:
        (folder / name).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    return target


def _packing(folder: str, records: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:xz", preset=9) as pack:
        for name in sorted(records):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode = len(records[name]), 0o644
            pack.addfile(member, io.BytesIO(records[name]))
    return made.getvalue()


def _packed(folder: Path) -> Mapping[str, bytes]:
    """The content of each packed record by name."""
    path = of(folder)
    try:
        facts = path.stat()
    except OSError:
        return {}
    return _unpacked(path, folder.name, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=8)
def _unpacked(path: Path, folder: str, changed: int, size: int) -> Mapping[str, bytes]:
    content = _decompressed(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as pack:
            found = {}
            for member in pack:
                inside, _, name = member.name.removeprefix("./").rpartition("/")
                if inside == folder and name.endswith(".json") and not name.startswith(".") and member.isfile():
                    file = pack.extractfile(member)
                    found[name] = b"" if file is None else file.read()
    except (tarfile.TarError, OSError, ValueError, EOFError) as e:
        raise UserError(f"{path}: half-written or damaged: no pack of records ({e}). {FIX}") from e
    if not found:
        raise UserError(f"{path}: holds no file {folder}/*.json, so it packs no records. {FIX}")
    return found


def _decompressed(path: Path) -> bytes:
    raw = files.read_bytes(path)
    try:
        stream = lzma.LZMADecompressor(memlimit=MEMORY_BYTES)
        content = stream.decompress(raw, max_length=LARGEST_BYTES + 1)
    except lzma.LZMAError as e:
        raise UserError(f"{path}: half-written or damaged: no pack of records ({e}). {FIX}") from e
    if len(content) > LARGEST_BYTES or not stream.eof:
        said = f"more than {LARGEST_BYTES:,} bytes" if len(content) > LARGEST_BYTES else "its end is missing"
        raise UserError(f"{path}: half-written or damaged: {said}. {FIX}")
    return content
