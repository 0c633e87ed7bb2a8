"""Run records: one immutable JSON file for each attempt, written whole or not at all, and checked when read.

Everything that a table or a plot shows comes from these files, so each carries a checksum of its own content: a file
cut short by a crash or changed by hand is refused by name instead of quietly changing a result. The layout is
canonical (sorted keys, one top-level key a line), so the checksum is verified on the bytes and the long list of
predictions is parsed only when somebody asks for it. This module knows neither torch nor pandas.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records.spec import SCHEMA, ProfileSpec, completed, digest

FOLDER = "runs"  # under the results directory
STATUSES = ("finished", "diverged", "oom", "error", "killed", "abandoned")
RETRIED = ("killed", "abandoned")  # repeated by running again; the others only by --retry-failed
REFERENCE = ProfileSpec.reference  # the label that costs and scores are compared with, where no profile names another

_TAIL = ',\n"checksum":"'
_TEXT = ("kind", "spec_id", "env_id", "slug", "status", "experiment", "started", "ended")
_FINISHED = {"run": ("parameters", "curve", "metrics", "predictions"), "profile": ("rows",)}
_LAZY = b'"predictions":'


@dataclass(frozen=True)
class Record:
    """One attempt at one spec. `body` is the file's JSON without its predictions, which are read when asked for."""

    path: Path
    body: Mapping[str, Any] = field(repr=False)

    @property
    def kind(self) -> str:
        return self.body["kind"]

    @property
    def spec_id(self) -> str:
        return self.body["spec_id"]

    @property
    def env_id(self) -> str:
        return self.body["env_id"]

    @property
    def attempt(self) -> int:
        return self.body["attempt"]

    @property
    def status(self) -> str:
        return self.body["status"]

    @property
    def is_finished(self) -> bool:
        return self.status == "finished"

    @property
    def experiment(self) -> str:
        return self.body["experiment"]

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.body["spec"]

    @property
    def order(self) -> tuple[str, int, str]:
        """Sorts attempts by when they began."""
        return self.body["started"], self.attempt, self.env_id

    @property
    def predictions(self) -> dict[str, list] | None:
        """{"ids", "values", "labels"}, one entry an example of the test split; None where the run did not get there."""
        raw = self.path.read_bytes()
        return _parse(raw, self.path, only=_LAZY).get("predictions")


def is_trial(r: Record) -> bool:
    """Whether it is a tuning trial, which no table of final results may count."""
    return r.spec.get("trial") is not None


def env_id(env: Mapping[str, Any]) -> str:
    """16 hex digits of the hash of what ran it: the caller's facts about code, packages, device and threads."""
    return digest(env)[:16]


def file_name(body: Mapping[str, Any]) -> str:
    """The name of the file that holds a record with this body."""
    return f"{_stem(body)}{body['attempt']}.json"


def write(results_dir: Path | str, body: Mapping[str, Any]) -> Path:
    """Write `body` as the next attempt under `results_dir`/runs and return its path; no file is ever overwritten.

    Sets `schema`, `env_id`, `attempt` and `checksum`. Numbers that JSON lacks (NaN, infinities) become null. The bytes
    are on the disk when this returns; a crash before that leaves at most a hidden temporary file, which readers
    ignore. Raises UserError where the directory cannot take the file, and ValueError for a body that is not a record.
    """
    body = {**_finite(body), "schema": SCHEMA, "env_id": env_id(body["env"])}
    body.pop("checksum", None)
    if problem := _problem({"attempt": 1, **body}):
        raise ValueError(f"not a record: {problem}")
    folder = Path(results_dir) / FOLDER
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stem = _stem(body)
        attempt = 1 + max((_attempt(name, stem) for name in os.listdir(folder)), default=0)
        while True:
            path = folder / f"{stem}{attempt}.json"
            try:
                _link(_encode({**body, "attempt": attempt}), path)
                return path
            except FileExistsError:  # another process took this number first
                attempt += 1


def read(path: Path | str) -> Record:
    """The record at `path`. Raises UserError naming the file and the fix where it is cut short, edited or foreign."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}). Make the file readable, or move it away.") from e
    body = _parse(raw, path, skip=_LAZY)
    return Record(path, {**body, "spec": completed(body["kind"], body["spec"])})


def read_all(results_dir: Path | str) -> list[Record]:
    """Every record under `results_dir`, sorted by file name; none where the directory does not exist yet.

    Temporary files of writers that died are ignored. Raises one UserError that names all the files it cannot trust.
    """
    folder = Path(results_dir) / FOLDER
    records, errors = [], []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        try:
            records.append(read(path))
        except UserError as e:
            errors.append(str(e))
    if errors:
        more = f"\n... and {len(errors) - 5} more such files" if len(errors) > 5 else ""
        raise UserError("\n".join(errors[:5]) + more)
    return records


def finished(records: Iterable[Record]) -> dict[str, Record]:
    """By spec_id, the finished record that counts; specs without one are left out."""
    return {spec: r for spec, r in latest(records).items() if r.is_finished}


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """By spec_id, the record that counts: the first finished attempt, else the last failed one.

    The first, not the best or the newest: repeating a run until it looks good must not change a table.
    """
    counts: dict[str, Record] = {}
    for r in sorted(records, key=lambda r: r.order):
        if r.spec_id not in counts or not counts[r.spec_id].is_finished:
            counts[r.spec_id] = r
    return counts


def newest(records: Iterable[Record]) -> dict[str, Record]:
    """By spec_id, the attempt that began last, however it ended."""
    return {r.spec_id: r for r in sorted(records, key=lambda r: r.order)}


def _problem(body: Any) -> str | None:
    """What keeps `body` from being a record of this schema; None where nothing does."""
    if not isinstance(body, Mapping) or "schema" not in body:
        return "it is not a peftbench record"
    if body["schema"] != SCHEMA:
        return f"it has schema {body['schema']!r} and this version reads schema {SCHEMA}"
    if wrong := [k for k in _TEXT if not isinstance(body.get(k), str)]:
        return f"{', '.join(wrong)} must be text"
    if body["kind"] not in _FINISHED:
        return f"kind {body['kind']!r} is neither run nor profile"
    if body["status"] not in STATUSES:
        return f"status {body['status']!r} is none of {', '.join(STATUSES)}"
    if not isinstance(body.get("attempt"), int):
        return "attempt must be a whole number"
    if wrong := [k for k in ("spec", "env", "seconds") if not isinstance(body.get(k), Mapping)]:
        return f"{', '.join(wrong)} must be objects"
    needed = [k for k in _FINISHED[body["kind"]] if k != "predictions" or body["spec"].get("trial") is None]
    if body["status"] == "finished" and (wrong := [k for k in needed if body.get(k) is None]):
        return f"a finished {body['kind']} must have {', '.join(wrong)}"
    return None


def _encode(body: Mapping[str, Any]) -> bytes:
    """The file's bytes: sorted keys, one top-level key a line, the checksum of the rest last."""
    text = _canonical(body)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{text[:-2]}{_TAIL}{checksum}"\n}}\n'.encode()


def _canonical(body: Mapping[str, Any]) -> str:
    lines = (f"{json.dumps(k)}:{_compact(body[k])}" for k in sorted(body))
    return "{\n" + ",\n".join(lines) + "\n}"


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _parse(raw: bytes, path: Path, skip: bytes | None = None, only: bytes | None = None) -> dict[str, Any]:
    """The checked content of a file; if the layout is our own, without the top-level line that starts with `skip`, or
    that which starts with `only` alone."""
    head, tail, rest = raw.rpartition(_TAIL.encode())
    intact = bool(tail) and hashlib.sha256(head + b"\n}").hexdigest().encode() + b'"\n}\n' == rest
    if intact and only:
        line = next((line for line in head.split(b"\n") if line.startswith(only)), b"")
        return json.loads(b"{" + line.rstrip(b",") + b"}")
    if intact and skip:
        head = b"\n".join(line for line in head.split(b"\n") if not line.startswith(skip)).rstrip(b",")
    try:
        body = json.loads(head + b"\n}" if intact else raw)
    except ValueError as e:
        raise UserError(
            f"{path}: half-written or damaged: it is not valid JSON ({e}). Restore the file from a copy, or delete it "
            "and run the experiment again: only this run is repeated."
        ) from e
    if not intact:
        if not isinstance(body, dict) or body.get("schema") != SCHEMA:
            raise UserError(f"{path}: {_problem(body)}. {_FOREIGN_FIX}")
        _refuse_edited(body, path)
        if skip:
            body.pop("predictions", None)
    problem = _problem({"predictions": {}, **body})
    if problem:
        raise UserError(f"{path}: {problem}. {_FOREIGN_FIX}")
    return body


_FOREIGN_FIX = "Read it with the version of peftbench that wrote it, or move it out of the results directory."


def _refuse_edited(body: dict[str, Any], path: Path) -> None:
    """Raise unless the content still has its checksum; a file that was only laid out anew passes."""
    checksum = body.pop("checksum", None)
    if checksum != hashlib.sha256(_canonical(body).encode()).hexdigest():
        raise UserError(
            f"{path}: changed after it was written: its content does not match its checksum. Records are never edited: "
            "restore the file from a copy, or delete it and run the experiment again: only this run is repeated."
        )


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as null, which is what JSON can say of them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def _stem(body: Mapping[str, Any]) -> str:
    """The file name up to the attempt. A long slug is cut: the ids identify the record, and names have 255 bytes."""
    readable = re.sub(r"[^\w.=-]", "_", body["slug"]).encode()[:150].decode(errors="ignore").lstrip(".")
    return f"{readable}--{body['spec_id']}--{body['env_id'][:8]}--"


def _attempt(name: str, stem: str) -> int:
    """The attempt that a file of this name holds; 0 for other files. Every write asks it of all names."""
    number = name[len(stem) : -len(".json")] if name.startswith(stem) and name.endswith(".json") else ""
    return int(number) if number.isdigit() else 0


def _link(content: bytes, path: Path) -> None:
    """Put `content` at `path` in one step. Raises FileExistsError if the name is taken; leaves nothing behind then."""
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or the new name may be lost with the power
    finally:
        os.close(folder)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn an operating system's refusal into the directory and the fix."""
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
