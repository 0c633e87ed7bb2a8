"""Records: one immutable JSON file for each attempt, written atomically, and checked when read.

Every number in a table or figure comes from these files. files.py defines their bytes and checksum, upgrades.py their
format, packs.py one file that holds many. This module imports neither torch nor pandas.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from peftbench.errors import SetAside, UserError
from peftbench.records import check, consistency, files, packs, upgrades
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
from peftbench.records.consistency import env_id
from peftbench.records.costs import Parameters, ProfileRow
from peftbench.records.spec import ProfileSpec, RunSpec, Spec

FOLDER = packs.RUNS  # under the results directory
CHECKPOINTS = "checkpoints"  # of unfinished runs, beside it; each is named after its spec_id
RETRIED = ("killed", "abandoned", "interrupted")  # statuses that running again repeats (retries.py has the rule)
REFERENCE = ProfileSpec.reference  # the label that costs and scores are compared with by default

SHOWN, MESSAGE = 5, 370  # bad files that one message names, and characters of each

T = TypeVar("T")
R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """One attempt at one spec; always an instance of a subclass below. Predictions are read on first use."""

    path: Path
    body: Body = field(repr=False)

    @property
    def kind(self) -> str:
        """What was attempted: "run" (a tuning trial too) or "profile"."""
        return self.body.kind

    @property
    def spec_id(self) -> str:
        """16 hex digits of the spec's hash, without fields at their defaults."""
        return self.body.spec_id

    @property
    def env_id(self) -> str:
        """16 hex digits of the environment's hash."""
        return self.body.env_id

    @property
    def attempt(self) -> int:
        """The number of the attempt at this spec, from 1. Older records count those of each environment."""
        return self.body.attempt

    @property
    def status(self) -> str:
        """How it ended; `bodies.Status` lists the statuses."""
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
    def order(self) -> tuple[int, str, str]:
        """The key that sorts attempts: by number, as a clock may be set back; then by start."""
        return self.attempt, self.body.started, self.env_id

    def raw(self) -> dict[str, Any]:
        """Read the whole content of the file in the current format, predictions included, as JSON values.

        Raises:
            UserError: the file is damaged, edited or foreign.
        """
        return files.decode(packs.read_bytes(self.path), Path(packs.shown(self.path)), predictions=True)

    def _measured(self, value: T | None, name: str) -> T:
        """Return a value that only some attempts have; raise ValueError if this one lacks it."""
        if value is None:
            raise ValueError(f"{self.path.name} has no {name}: it ended as {self.status}")
        return value


@dataclass(frozen=True)
class TrainingRecord(Record):
    """An attempt at training: a final run or a tuning trial.

    The properties `parameters`, `curve` and `metrics` raise ValueError if the attempt failed before it measured them.
    """

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
    """A final run: trained and tested."""

    body: RunBody = field(repr=False)

    @property
    def metrics(self) -> Metrics:
        return self._measured(self.body.metrics, "metrics")

    @property
    def predictions(self) -> Predictions | None:
        """The predictions on the test split, read from the file; None if the run failed before.

        Raises:
            UserError: the file is damaged, edited or foreign.
        """
        raw = files.decode_predictions(packs.read_bytes(self.path), Path(packs.shown(self.path)))
        try:
            return None if raw is None else check.typed_predictions(raw)
        except ValueError as e:
            raise UserError(f"{self.path}: {e}. {files.FOREIGN_FIX}") from e


@dataclass(frozen=True)
class TrialRecord(TrainingRecord):
    """A tuning trial. Tables of final results leave it out."""

    body: TrialBody = field(repr=False)


@dataclass(frozen=True)
class ProfileRecord(Record):
    """A profile pass, or several processes' parts of one that a report has joined."""

    body: ProfileBody = field(repr=False)
    processes: int = 1  # the number of processes that took the pass, one after another

    @property
    def spec(self) -> ProfileSpec:
        return self.body.spec

    @property
    def rows(self) -> list[ProfileRow]:
        """The measurements, one row for each configuration; empty if the pass did not finish."""
        return self.body.rows or []


_CLASSES: dict[type, type[Record]] = {RunBody: RunRecord, TrialBody: TrialRecord, ProfileBody: ProfileRecord}


def of(path: Path | str, body: Mapping[str, Any]) -> Record:
    """Make the record of a body in the current format, from the file `path`.

    Raises:
        ValueError: the body does not fit its type; the message names the field.
    """
    made = check.typed(body)
    return _CLASSES[type(made)](Path(path), made)


def file_name(body: Mapping[str, Any]) -> str:
    """Return the name of the file for a record with this body."""
    return f"{files.stem(body)}{body['attempt']}.json"


def write(results_dir: Path | str, body: Mapping[str, Any]) -> Path:
    """Write a body as the next attempt under `results_dir`/runs. No file is ever overwritten.

    The function sets `schema`, `env_id`, `attempt` and `checksum`. NaN and infinities become null. The bytes are on the
    disk when it returns; a crash before that leaves at most a hidden temporary file, which readers ignore.

    Args:
        results_dir: the results directory; it is created if needed.
        body: the content of the record.

    Returns:
        The path of the new file.

    Raises:
        UserError: the directory cannot be written to.
        ValueError: the body is not that of a record.
    """
    body = {k: v for k, v in files.plain(body).items() if k not in ("checksum", "attempt")}
    try:
        check.complete({**body, "env_id": "", "attempt": 1})
    except ValueError as e:
        raise ValueError(f"not a record: {e}") from e
    body |= {"schema": upgrades.FORMAT, "env_id": env_id(body["env"])}
    folder = Path(results_dir) / FOLDER
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stem = files.stem(body)
        there = {*os.listdir(folder), *packs.names(folder)}
        attempt = 1 + max((files.attempt_in(name, body["spec_id"]) for name in there), default=0)
        while True:
            path = folder / f"{stem}{attempt}.json"
            try:
                files.link(files.encode({**body, "attempt": attempt}), path)
                return path
            except FileExistsError:  # another process took this number first
                attempt += 1


def read(path: Path | str, consistent: bool = True) -> Record:
    """Read a record and check it.

    Args:
        path: the file.
        consistent: whether one that contradicts itself is refused.

    Raises:
        UserError: the file is truncated, edited or foreign, or contradicts itself. The message names the file and the
            fix.
    """
    path = Path(path)
    shown = Path(packs.shown(path))
    body = files.decode(packs.read_bytes(path), shown)
    try:
        made = of(path, body)
    except ValueError as e:
        raise UserError(f"{shown}: {short(e)}. {files.FOREIGN_FIX}") from e
    if consistent and (wrong := next(consistency.contradictions(made.body, body["env"]), None)):
        raise UserError(f"{shown}: {wrong.field}: {short(wrong.message)}. {files.CONTRADICTION_FIX}")
    return made


def read_all(results_dir: Path | str) -> list[Record]:
    """Read every record under a results directory, packed ones too. Temporary files of interrupted writes are ignored.

    Returns:
        The records, sorted by file name; empty if the directory does not exist.

    Raises:
        UserError: files are truncated, edited or foreign. One message names them.
    """
    records, errors = _read_all(results_dir)
    if errors:
        raise UserError(brief(errors))
    return records


def readable(results_dir: Path | str) -> list[Record]:
    """Read every record under a results directory that can be trusted, predictions too, and set the other files aside.

    A file that is set aside is no record: what it says was run is not done, and no table shows it. A warning of the
    class SetAside names such files, in at most 2,000 characters.

    Returns:
        The records, sorted by file name; empty if the directory does not exist.
    """
    records, errors = _read_all(results_dir, predictions=True)
    if errors:
        warnings.warn(f"set aside, neither done nor in tables: {brief(errors)}", SetAside, stacklevel=1)
    return records


def paths(results_dir: Path | str) -> list[Path]:
    """Return the files that may be records, and the paths that packed ones had, sorted by name.

    Temporary files of interrupted writes are left out. `packs.read_bytes` reads both.

    Raises:
        UserError: the pack of the records is damaged.
    """
    folder = Path(results_dir) / FOLDER
    loose = [p for p in folder.glob("*.json") if not p.name.startswith(".")] if folder.is_dir() else []
    return sorted({*loose, *(folder / name for name in packs.names(folder))})


def brief(messages: Sequence[str]) -> str:
    """Return the first messages and the number of the others, in at most 1,900 characters."""
    shown = [short(m, MESSAGE) for m in messages[:SHOWN]]
    more = [f"... and {len(messages) - SHOWN} more such files"] if len(messages) > SHOWN else []
    return "\n".join([*shown, *more])


def _read_all(results_dir: Path | str, predictions: bool = False) -> tuple[list[Record], list[str]]:
    """Return the records under a results directory, and why the other files are none."""
    records, errors = [], []
    for path in paths(results_dir):
        try:
            r = read(path)
            if predictions:
                check_predictions(r)
            records.append(r)
        except UserError as e:
            errors.append(str(e))
    return records, errors


def check_predictions(r: Record) -> None:
    """Raise UserError if a run's predictions do not fit their type or each other, or a finished run has none."""
    if not isinstance(r, RunRecord):
        return
    made = r.predictions
    if made is None and r.is_finished:
        raise UserError(f"{r.path}: predictions: there are none, and a finished run has them. {files.FOREIGN_FIX}")
    if made is not None and not len(made.ids) == len(made.values) == len(made.labels):
        lengths = f"{len(made.ids)} ids, {len(made.values)} values and {len(made.labels)} labels"
        raise UserError(f"{r.path}: predictions: {lengths}. {files.CONTRADICTION_FIX}")


def short(message: object, most: int = 300) -> str:
    """Return a message in one line of at most so many characters: its beginning and its end."""
    text = " ".join(str(message).split())
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def finished(records: Iterable[R]) -> dict[str, R]:
    """Return the finished record that counts for each spec_id. Specs without a finished record are left out."""
    return {spec: r for spec, r in latest(records).items() if r.is_finished}


def discard_checkpoints(results_dir: Path | str, records: Iterable[Record]) -> None:
    """Remove the checkpoints of specs that have a finished record: a process may have died between the two."""
    folder, done = Path(results_dir) / CHECKPOINTS, {r.spec_id for r in records if r.is_finished}
    for path in folder.glob("*.pt") if folder.is_dir() else ():
        if path.stem in done:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    with suppress(OSError):  # unless it has others
        folder.rmdir()


def latest(records: Iterable[R]) -> dict[str, R]:
    """Return the record that counts for each spec_id: the first finished attempt, else the last failed one.

    The first one counts, not the best or the newest: repeating a run until it looks good must not change a table.
    """
    counts: dict[str, R] = {}
    for r in sorted(records, key=lambda r: r.order):
        if r.spec_id not in counts or not counts[r.spec_id].is_finished:
            counts[r.spec_id] = r
    return counts


def newest(records: Iterable[R]) -> dict[str, R]:
    """Return the attempt that started last for each spec_id, whatever its status."""
    return {r.spec_id: r for r in sorted(records, key=lambda r: r.order)}
