"""The bytes of a record file: canonical layout, checksum, and atomic creation.

Each file contains a checksum of its content, so that a truncated or edited file is an error and never changes a result
silently. The layout is canonical: sorted keys, one top-level key on each line. So the checksum is verified on the bytes
as written, and the long list of predictions is decoded on request only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from peftbench.errors import UserError
from peftbench.records import scratch, upgrades

CONTRADICTION_FIX = (
    "Restore the file from a copy, or delete it and run the experiment again: only this run is repeated."
)
FOREIGN_FIX = "Read it with the version of peftbench that wrote it, or move it out of the results directory."

LARGEST_BYTES = 2**30  # of a file; the largest that a run writes has a few million
DEEPEST = 40  # levels of lists and mappings in each other

_TAIL = ',\n"checksum":"'
_PREDICTIONS = b'\n"predictions":'  # a line of their own: no text in JSON has such a line break in it


class _Checksum(msgspec.Struct):
    """The one key of a file that tells its content from all others."""

    checksum: str


def encode(body: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file: sorted keys, one top-level key on each line, and the checksum of the rest last."""
    text = _canonical(body)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{text[:-2]}{_TAIL}{checksum}"\n}}\n'.encode()


def plain(value: Any) -> Any:
    """Return the value as JSON values: NaN and infinities become null, invalid UTF-8 in a text becomes "?"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # a path may hold such bytes, as surrogates
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as f:
            facts = os.fstat(f.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_BYTES:
                raise UserError(f"{path}: {facts.st_size:,} bytes, or no regular file: not a record. Move it away.")
            return f.read()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}). Make the file readable, or move it away.") from e


def decode(raw: bytes, path: Path, predictions: bool = False) -> dict[str, Any]:
    """Check and decode the content of a record file, and upgrade it to the current format.

    Args:
        raw: the file's bytes.
        path: the file, for messages.
        predictions: whether to decode the predictions too.

    Raises:
        UserError: the bytes are truncated, edited, or no record of a known format. The message names the fix.
    """
    head, intact = _checked(raw)
    if intact and not predictions:
        start, end = _predictions(head)
        head = (head[:start] + head[end:]).rstrip(b",")
    body = _json(head + b"\n}" if intact else raw, path)
    if problem := upgrades.problem(body) or _odd(body, head if intact else None):
        raise UserError(f"{path}: {problem}. {FOREIGN_FIX}")
    if not intact:
        _refuse_edited(body, path)
        if not predictions:
            body.pop("predictions", None)
    try:
        return upgrades.upgraded(body)
    except ValueError as e:
        raise UserError(f"{path}: {e}. {FOREIGN_FIX}") from e


def checksum(raw: bytes) -> str:
    """Return the checksum that stands in the bytes of a record, which `decode` has checked; "" if there is none."""
    try:
        return msgspec.json.decode(raw, type=_Checksum).checksum
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def decode_predictions(raw: bytes, path: Path) -> dict[str, Any] | None:
    """Check a record file and decode its predictions only; None if it has none.

    Raises:
        UserError: as for `decode`.
    """
    head, intact = _checked(raw)
    if not intact:
        return decode(raw, path, predictions=True).get("predictions")
    start, end = _predictions(head)
    found: dict[str, Any] | None = _json(b"{" + head[start:end].rstrip(b",") + b"}", path).get("predictions")
    return found


def stem(body: Mapping[str, Any]) -> str:
    """Return the file name up to the attempt. A long slug is cut, because file names have at most 255 bytes."""
    return f"{readable(body['slug'])}--{body['spec_id']}--{body['env_id'][:8]}--"


def readable(slug: str) -> str:
    """Return the part of a file name that people read; an identifier follows that tells files apart."""
    return re.sub(r"[^\w.=-]", "_", slug).encode()[:150].decode(errors="ignore").lstrip(".")


def attempt_in(name: str, spec_id: str) -> int:
    """Return the attempt at a spec that a file name has; 0 for other files.

    Every write calls it for all names, so it is cheap.
    """
    parts = name.removesuffix(".json").rsplit("--", 3) if name.endswith(".json") else []
    is_of_spec = len(parts) == 4 and parts[1] == spec_id
    return int(parts[3]) if is_of_spec and parts[3].isascii() and parts[3].isdigit() else 0


def link(content: bytes, path: Path) -> None:
    """Create a file atomically.

    Args:
        content: the file's bytes.
        path: the new file.

    Raises:
        FileExistsError: the name is taken. No temporary file remains.
    """
    temporary = scratch.beside(path)
    try:
        with open(temporary, "xb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk; else a power failure may lose new ones."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an OSError within the block into a UserError that names the directory and the fix."""
    try:
        yield
    except FileExistsError as e:
        raise UserError(
            f"{folder}: a file is in the way of this directory. Move it, or choose another --results."
        ) from e
    except OSError as e:
        fixes = {
            errno.ENOSPC: "Free some space, or choose another --results",
            errno.EDQUOT: "Free some of your quota, or choose another --results",
            errno.EPERM: "Choose a --results on a file system with hard links that you may write to",
        }
        fix = fixes.get(e.errno or 0, "Choose a --results directory that you may write to")
        raise UserError(
            f"{folder}: the record could not be written ({e.strerror}). {fix}, and run again to resume."
        ) from e


def _canonical(body: Mapping[str, Any]) -> str:
    lines = (f"{json.dumps(k)}:{_compact(body[k])}" for k in sorted(body))
    return "{\n" + ",\n".join(lines) + "\n}"


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checked(raw: bytes) -> tuple[bytes, bool]:
    """Return the bytes before the checksum, and whether the layout is canonical and the checksum matches."""
    head, tail, rest = raw.rpartition(_TAIL.encode())
    return head, bool(tail) and hashlib.sha256(head + b"\n}").hexdigest().encode() + b'"\n}\n' == rest


def _predictions(head: bytes) -> tuple[int, int]:
    """Where the line of the predictions begins and ends; both are the end where there is none."""
    start = head.find(_PREDICTIONS)
    end = head.find(b"\n", start + 1)
    return (start, end if end >= 0 else len(head)) if start >= 0 else (len(head), len(head))


def _odd(body: dict[str, Any], head: bytes | None) -> str | None:
    """Return why no peftbench wrote a body, whatever its checksum; None if one may have.

    Args:
        body: the decoded body.
        head: its bytes before the checksum, without predictions unless the body has them; None for another layout.
    """
    if (number := _deepest(body)) > DEEPEST:
        return f"its lists and mappings stand in each other {number} levels deep or more, and records have {DEEPEST}"
    if head is not None and _canonical(body)[:-2].encode() != head:
        return "a key stands in it twice, or it is not laid out as its checksum says"
    return None


def _deepest(body: Any) -> int:
    """Return how many levels of lists and mappings stand in each other; one more than DEEPEST for any that are more."""
    level, depth = [body], 0
    while level and depth <= DEEPEST:
        inside = (value.values() if type(value) is dict else value for value in level)
        level = [v for values in inside for v in values if type(v) is dict or type(v) is list]
        depth += 1
    return depth


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to does not block."""
    return os.open(path, flags | os.O_NONBLOCK)


def _json(raw: bytes, path: Path) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(
            f"{path}: half-written or damaged: it is not valid JSON ({e}). Restore the file from a copy, or delete it "
            "and run the experiment again: only this run is repeated."
        ) from e


def _refuse_edited(body: dict[str, Any], path: Path) -> None:
    """Raise UserError unless the content matches its checksum; a file with only another layout passes."""
    checksum = body.pop("checksum", None)
    if checksum != hashlib.sha256(_canonical(body).encode()).hexdigest():
        raise UserError(
            f"{path}: changed after it was written: its content does not match its checksum. Records are never edited: "
            "restore the file from a copy, or delete it and run the experiment again: only this run is repeated."
        )
