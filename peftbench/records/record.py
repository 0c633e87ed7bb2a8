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
from typing import Any, TypeVar

from peftbench.errors import UserError
from peftbench.records import check, files, upgrades
from peftbench.records.bodies import (
    Body,
    Curve,
    Environment,
    Metrics,
    Predictions,
    ProfileBody,
    RunBody,
    TrialBody,
    ValidationMetrics,
)
from peftbench.records.costs import Parameters, ProfileRow
from peftbench.records.spec import ProfileSpec, RunSpec, Spec, digest

FOLDER = "runs"  # under the results directory
RETRIED = ("killed", "abandoned")  # repeated by running again; the others only by --retry-failed
REFERENCE = ProfileSpec.reference  # the label that costs and scores are compared with, where no profile names another

T = TypeVar("T")
R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """One attempt at one spec; always one of the subclasses below. Predictions are read when asked for."""

    path: Path
    body: Body = field(repr=False)

    @property
    def kind(self) -> str:
        return self.body.kind

    @property
    def spec_id(self) -> str:
        return self.body.spec_id

    @property
    def env_id(self) -> str:
        return self.body.env_id

    @property
    def attempt(self) -> int:
        return self.body.attempt

    @property
    def status(self) -> str:
        return self.body.status

    @property
    def is_finished(self) -> bool:
        return self.status == "finished"

    @property
    def experiment(self) -> str:
        return self.body.experiment

    @property
    def spec(self) -> Spec:
        return self.body.spec

    @property
    def env(self) -> Environment:
        return self.body.env

    @property
    def order(self) -> tuple[str, int, str]:
        """Sorts attempts by when they began."""
        return self.body.started, self.attempt, self.env_id

    def raw(self) -> dict[str, Any]:
        """The file's JSON in today's format, predictions included: to be compared field by field."""
        return files.decode(files.read_bytes(self.path), self.path, predictions=True)

    def _measured(self, value: T | None, name: str) -> T:
        if value is None:
            raise ValueError(f"{self.path.name} has no {name}: it ended as {self.status}")
        return value


@dataclass(frozen=True)
class TrainingRecord(Record):
    """An attempt at training: a final run or a tuning trial. What only finished ones have raises ValueError."""

    body: RunBody | TrialBody = field(repr=False)

    @property
    def spec(self) -> RunSpec:
        return self.body.spec

    @property
    def parameters(self) -> Parameters:
        return self._measured(self.body.parameters, "parameters")

    @property
    def curve(self) -> Curve:
        return self._measured(self.body.curve, "curve")

    @property
    def metrics(self) -> ValidationMetrics:
        return self._measured(self.body.metrics, "metrics")


@dataclass(frozen=True)
class RunRecord(TrainingRecord):
    """A final run."""

    body: RunBody = field(repr=False)

    @property
    def metrics(self) -> Metrics:
        return self._measured(self.body.metrics, "metrics")

    @property
    def predictions(self) -> Predictions | None:
        """One entry an example of the test split; None where the run did not get there."""
        raw = files.decode_predictions(files.read_bytes(self.path), self.path)
        try:
            return None if raw is None else check.typed_predictions(raw)
        except ValueError as e:
            raise UserError(f"{self.path}: {e}. {files.FOREIGN_FIX}") from e


@dataclass(frozen=True)
class TrialRecord(TrainingRecord):
    """A tuning trial, which no table of final results may count."""

    body: TrialBody = field(repr=False)


@dataclass(frozen=True)
class ProfileRecord(Record):
    """A profile pass, or several processes' parts of one that a report has put together."""

    body: ProfileBody = field(repr=False)
    processes: int = 1  # that took the pass, one after another

    @property
    def spec(self) -> ProfileSpec:
        return self.body.spec

    @property
    def rows(self) -> list[ProfileRow]:
        """What was measured, one a configuration; none where the pass did not finish."""
        return self.body.rows or []


_CLASSES: dict[type, type[Record]] = {RunBody: RunRecord, TrialBody: TrialRecord, ProfileBody: ProfileRecord}


def of(path: Path | str, body: Mapping[str, Any]) -> Record:
    """The record that a file with this body holds, in today's format. Raises ValueError where it does not fit."""
    made = check.typed(body)
    return _CLASSES[type(made)](Path(path), made)


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
        return of(path, body)
    except ValueError as e:
        raise UserError(f"{path}: {e}. {files.FOREIGN_FIX}") from e


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


def finished(records: Iterable[R]) -> dict[str, R]:
    """By spec_id, the finished record that counts; specs without one are left out."""
    return {spec: r for spec, r in latest(records).items() if r.is_finished}


def latest(records: Iterable[R]) -> dict[str, R]:
    """By spec_id, the record that counts: the first finished attempt, else the last failed one.

    The first, not the best or the newest: repeating a run until it looks good must not change a table.
    """
    counts: dict[str, R] = {}
    for r in sorted(records, key=lambda r: r.order):
        if r.spec_id not in counts or not counts[r.spec_id].is_finished:
            counts[r.spec_id] = r
    return counts


def newest(records: Iterable[R]) -> dict[str, R]:
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
