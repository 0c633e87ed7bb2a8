"""Repeat recorded runs and compare the results with the records.

First `audit` checks every record, which takes seconds. Then a sample of the finished runs is trained again, each with
the device and thread count of its record, and compared field by field (differences.py). The repeats are records in a
separate directory; the verified directory stays as it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.method.catalogue import Catalogue
from peftbench.plan import model_facts
from peftbench.records import record
from peftbench.records.record import Record, TrainingRecord
from peftbench.records.spec import RunSpec, TaskSpec, digest
from peftbench.run import runner
from peftbench.run.view import View
from peftbench.verify.records import bounds, differences, tolerance
from peftbench.verify.records.audit import AuditFinding, audit
from peftbench.verify.records.differences import FieldDifference
from peftbench.verify.records.other_device import draws_differ
from peftbench.verify.records.rounding import ulps

IDENTICAL, WITHIN, DIFFERS, NOT_REPEATED = "identical", "within tolerance", "differs", "not repeated"
DOES_NOT_APPLY = "does not apply"  # no comparison could tell a fault: neither verified nor wrong
VERIFIED = (IDENTICAL, WITHIN)


@dataclass(frozen=True)
class RepeatOutcome:
    """The result of repeating one recorded run.

    Attributes:
        record: the record that was repeated.
        status: IDENTICAL, WITHIN, DIFFERS, NOT_REPEATED or DOES_NOT_APPLY. An identical repeat may differ in the last
            digits of scores.
        differences: the fields that differ.
        environment: the facts of the environment that differ.
        unrecorded: facts of the repeat's environment that the record lacks.
        message: why there is nothing to compare, or how far apart the two are.
    """

    record: TrainingRecord
    status: str
    differences: tuple[FieldDifference, ...] = ()
    environment: tuple[FieldDifference, ...] = ()
    unrecorded: tuple[FieldDifference, ...] = ()
    message: str = ""

    @property
    def rounding(self) -> float:
        """The largest distance of scores that are equal up to rounding, in units in the last place."""
        return max((ulps(d.recorded, d.repeated) for d in self.differences if d.is_rounding), default=0.0)


@dataclass(frozen=True)
class Verification:
    """The result of `verify` for one results directory.

    Attributes:
        records: all records that can be read.
        findings: the findings of the audit.
        other_version: the number of finished runs that are not repeated, by reason: "method lora 1, now 2".
        repeatable: the number of runs that can be repeated.
        outcomes: one for each repeated run.
        interrupted: whether the user stopped it before the last repeat.
    """

    records: Sequence[Record]
    findings: Sequence[AuditFinding]
    other_version: Mapping[str, int]
    repeatable: int
    outcomes: Sequence[RepeatOutcome]
    interrupted: bool = False

    @property
    def code(self) -> int:
        """The exit code: 0 if every repeat agrees with its record, 1 if one does not or nothing could be repeated."""
        if self.interrupted:
            return runner.INTERRUPTED
        compared = [o for o in self.outcomes if o.status != DOES_NOT_APPLY]
        sound = bool(compared) and all(o.status in VERIFIED for o in compared)
        return 0 if sound and not self.findings else 1


@dataclass(frozen=True)
class RepeatRequest:
    """Which runs to repeat, and how.

    Attributes:
        number: the size of the sample; None for every run.
        seed: the seed that chooses the sample.
        data_dir: the folder with data sets such as GLUE's official files.
        plugins: files with methods of the user's own.
        jobs: worker processes.
        device: the device, in place of the one in each record.
        limits: how much a record may ask for (`bounds.LIMITS`).
        view: shows progress; None for none.
        session: the worker's session, as "module:Class".
        more: further arguments of the session.
    """

    number: int | None = None
    seed: int = 0
    data_dir: Path | None = None
    plugins: tuple[Path, ...] = ()
    jobs: int = 1
    device: str | None = None
    limits: Mapping[str, int] = field(default_factory=lambda: bounds.LIMITS)
    view: View | None = None
    session: str = runner.SESSION
    more: Mapping[str, Any] = field(default_factory=dict)


def verify(results_dir: Path, repeats_dir: Path, request: RepeatRequest) -> Verification:
    """Audit all records, repeat a sample of the finished runs, and compare the repeats with the records.

    Args:
        results_dir: the results directory to verify.
        repeats_dir: the directory for the records of the repeats.
        request: which runs to repeat, and how.

    Returns:
        The findings of the audit and the outcome of each repeat.

    Raises:
        UserError: there is nothing to verify, the directories are the same, or a device is missing.
    """
    if repeats_dir.resolve() == results_dir.resolve():
        raise UserError(f"{repeats_dir}: the repeats need a directory of their own; name another for --keep")
    records, findings = audit(results_dir)
    if not records and not findings:
        raise UserError(f"{results_dir / record.FOLDER}: no records here; give a results directory")
    catalogue = Catalogue(request.plugins)
    broken = {f.path for f in findings}
    finished = [r for r in records if isinstance(r, TrainingRecord) and r.is_finished and r.path not in broken]
    outdated = {r.path: why for r in finished if (why := _other_version(r, catalogue))}
    current = [r for r in finished if r.path not in outdated]
    chosen = sample(current, request.number, request.seed)
    data = _DataFingerprints(request.data_dir, catalogue)
    roots = [Path.cwd(), results_dir.resolve().parent]
    unrepeatable = {r.path: why for r in chosen if (why := _unrepeatable(r, data, request.limits, roots))}
    other = {r.path: why for r in chosen if r.path not in unrepeatable and (why := draws_differ(r, request.device))}
    catalogue.save()
    interrupted = _repeat([r for r in chosen if r.path not in {*unrepeatable, *other}], repeats_dir, request)
    repeats = record.readable(repeats_dir)
    outcomes = [
        RepeatOutcome(r, DOES_NOT_APPLY, message=other[r.path])
        if r.path in other
        else _outcome(r, unrepeatable.get(r.path), repeats)
        for r in chosen
    ]
    done = [o for o in outcomes if o is not None]
    return Verification(records, findings, Counter(outdated.values()), len(current), done, interrupted)


def sample(records: Iterable[TrainingRecord], number: int | None, seed: int) -> list[TrainingRecord]:
    """Choose a sample that covers methods first, then tasks, as evenly as possible.

    Args:
        records: the runs to choose from, in any order.
        number: how many to choose; None for all.
        seed: the same records and seed give the same sample.

    Returns:
        The sample; each next run has the method, then the task, that was chosen least often so far.
    """
    left = sorted(records, key=lambda r: hashlib.sha256(f"{seed} {r.spec_id} {r.path.name}".encode()).hexdigest())
    taken: list[TrainingRecord] = []
    methods, tasks = Counter[str](), Counter[str]()
    while left and (number is None or len(taken) < number):
        least = min(left, key=lambda r: (methods[r.spec.method.name], tasks[r.spec.task.name]))
        left.remove(least)
        taken.append(least)
        methods[least.spec.method.name] += 1
        tasks[least.spec.task.name] += 1
    return taken


def _other_version(r: TrainingRecord, catalogue: Catalogue) -> str | None:
    """Return the version that changed if the method's or task's code gives other results now; None if it does not."""
    from peftbench import tasks

    method, task = r.spec.method, r.spec.task
    known = catalogue.methods()
    if method.name in known and method.version != (now := known[method.name].version):
        return f"method {method.name} {method.version}, now {now}"
    try:
        now = tasks.card(task.name).version
    except UserError:  # an unknown task is no other version of one
        return None
    if task.version != now:
        return f"task {task.name} {task.version}, now {now}"
    return None


class _DataFingerprints:
    """Fingerprints of the tasks' data; each task is prepared once."""

    def __init__(self, data_dir: Path | None, catalogue: Catalogue) -> None:
        self.data_dir, self.catalogue, self.known = data_dir, catalogue, dict[str, str]()

    def fingerprint(self, task: TaskSpec) -> str:
        from peftbench import tasks

        key = digest([task.name, task.options])
        if key not in self.known:
            self.known[key] = tasks.open_task(task.name, task.options, self.data_dir).fingerprint
        return self.known[key]


def _unrepeatable(
    r: TrainingRecord, data: _DataFingerprints, limits: Mapping[str, int], roots: Sequence[Path]
) -> str | None:
    """Return why the run cannot be repeated; None if it can.

    It asks for too much or for files elsewhere, has a time budget, or the method, weights or data here are missing or
    others.
    """
    try:
        return (
            bounds.exceeded(r.spec, limits)
            or bounds.outside(r.spec.backbone, r.spec.task, data.data_dir, roots)
            or _differs_here(r, data)
        )
    except UserError as e:  # the others are verified all the same
        return str(e)


def _differs_here(r: TrainingRecord, data: _DataFingerprints) -> str | None:
    """Return how a run would be another one here: a time budget, other weights or data; None if it would not.

    Raises:
        UserError: the method, the model or the data is missing here.
    """
    spec = r.spec
    data.catalogue.hyper(spec.method.name, spec.method.hyper)  # refuses an unknown method, and values out of range
    if spec.train.seconds is not None:
        return f"its length is {spec.train.seconds:g} seconds of steps: how many these are is not repeatable"
    here = model_facts.fingerprint(spec.backbone.model, spec.backbone.pinned_revision)
    if here != spec.backbone.fingerprint:
        there = spec.backbone.fingerprint
        return f"model: the weights of {spec.backbone.model} are {there[:12]} there, {here[:12]} here"
    found = data.fingerprint(spec.task)
    if found != spec.task.fingerprint:
        return f"data: {spec.task.name} is {spec.task.fingerprint[:12]} there, {found[:12]} here"
    return None


def _repeat(chosen: Sequence[TrainingRecord], folder: Path, request: RepeatRequest) -> bool:
    """Train the chosen runs again into `folder`. Return whether the user interrupted it."""
    groups: dict[tuple[str, int | None, bool], list[RunSpec]] = defaultdict(list)
    for r in chosen:
        where = request.device or r.env.device, r.env.threads, r.env.deterministic
        groups[where].append(r.spec)
    for (device, threads, deterministic), specs in sorted(groups.items(), key=str):
        session = {
            "device": device,
            "data_dir": None if request.data_dir is None else str(request.data_dir),
            "plugins": [str(p) for p in request.plugins],
            "adapters": None,
            **({"deterministic": True} if deterministic else {}),
            **request.more,
        }
        outcome = runner.run(
            lambda _, specs=specs: specs,  # type: ignore[misc]
            folder,
            experiment="verify",
            session=request.session,
            session_kwargs=session,
            jobs=request.jobs,
            threads=threads,
            again=True,
            view=request.view,
        )
        if outcome.code == runner.INTERRUPTED:
            return True
    return False


def _outcome(r: TrainingRecord, unrepeatable: str | None, repeats: Sequence[Record]) -> RepeatOutcome | None:
    """Compare a record with its repeat; None if the repeat was interrupted."""
    if unrepeatable is not None:
        return RepeatOutcome(r, NOT_REPEATED, message=unrepeatable)
    threads = r.env.threads
    made = [m for m in repeats if m.spec_id == r.spec_id and threads in (None, m.env.threads)]
    if not made:
        return None
    again = max(made, key=lambda m: m.order)
    if not again.is_finished:
        if again.status in record.RETRIED:
            return None
        message = f"the repeat ended as {again.status}: {again.body.reason or 'no reason recorded'}"
        return RepeatOutcome(r, DIFFERS, message=message)
    one, other = r.raw(), again.raw()
    environment, may_differ = differences.environments(one["env"], other["env"])
    found, message = differences.compare(one, other), ""
    if all(d.is_rounding for d in found):
        status = IDENTICAL
    else:
        if may_differ:
            tolerated = tolerance.apply_tolerance(one, other, found)
            found, message = tolerated.differences, tolerated.message
        status = WITHIN if all(d.within for d in found) else DIFFERS
    unrecorded = differences.unrecorded(one["env"], other["env"])
    return RepeatOutcome(r, status, tuple(found), tuple(environment), tuple(unrecorded), message)
