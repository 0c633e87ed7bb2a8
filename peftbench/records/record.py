"""Run records: one immutable JSON file for each attempt, written whole or not at all, and checked when read.

Everything that a table or a plot shows comes from these files. files.py has their bytes and checksum, upgrades.py their
format. This module knows neither torch nor pandas.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import check, files, upgrades
from peftbench.records.spec import ProfileSpec, completed, digest

FOLDER = "runs"  # under the results directory
RETRIED = ("killed", "abandoned")  # repeated by running again; the others only by --retry-failed
REFERENCE = ProfileSpec.reference  # the label that costs and scores are compared with, where no profile names another


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
        return files.decode_predictions(files.read_bytes(self.path), self.path)

    def raw(self) -> dict[str, Any]:
        """The file's JSON in today's format, predictions included: to be compared field by field."""
        return files.decode(files.read_bytes(self.path), self.path, predictions=True)


def is_trial(r: Record) -> bool:
    """Whether it is a tuning trial, which no table of final results may count."""
    return r.spec.get("trial") is not None


def env_id(env: Mapping[str, Any]) -> str:
    """16 hex digits of the hash of what ran it: the caller's facts about code, packages, device and threads."""
    return digest(env)[:16]


def file_name(body: Mapping[str, Any]) -> str:
    """The name of the file that holds a record with this body."""
    return f"{files.stem(body)}{body['attempt']}.json"


def write(results_dir: Path | str, body: Mapping[str, Any]) -> Path:
    """Write `body` as the next attempt under `results_dir`/runs and return its path; no file is ever overwritten.

    Sets `schema`, `env_id`, `attempt` and `checksum`. Numbers that JSON lacks (NaN, infinities) become null. The bytes
    are on the disk when this returns; a crash before that leaves at most a hidden temporary file, which readers
    ignore. Raises UserError where the directory cannot take the file, and ValueError for a body that is not a record.
    """
    body = {k: v for k, v in _plain(body).items() if k not in ("checksum", "attempt")}
    try:
        check.complete({**body, "env_id": "", "attempt": 1})
    except ValueError as e:
        raise ValueError(f"not a record: {e}") from e
    body |= {"schema": upgrades.FORMAT, "env_id": env_id(body["env"])}
    folder = Path(results_dir) / FOLDER
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stem = files.stem(body)
        attempt = 1 + max((files.attempt_in(name, stem) for name in os.listdir(folder)), default=0)
        while True:
            path = folder / f"{stem}{attempt}.json"
            try:
                files.link(files.encode({**body, "attempt": attempt}), path)
                return path
            except FileExistsError:  # another process took this number first
                attempt += 1


def read(path: Path | str) -> Record:
    """The record at `path`. Raises UserError naming the file and the fix where it is cut short, edited or foreign."""
    path = Path(path)
    body = files.decode(files.read_bytes(path), path)
    try:
        check.typed(body)
    except ValueError as e:
        raise UserError(f"{path}: {e}. {files.FOREIGN_FIX}") from e
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


def _plain(value: Any) -> Any:
    """The value as JSON can say it: NaN and infinities as null, bytes in a text that are no UTF-8 as "?"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # a path may hold such bytes, as surrogates
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
