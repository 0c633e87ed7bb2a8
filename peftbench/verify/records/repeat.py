"""Run again what records say, and compare: are these results what this code computes?

First every record is audited (audit.py), which takes seconds. Then a sample of the finished runs is trained again, each
with the device and the number of threads that its record names, and compared field by field (differences.py). The
repeats are records too, in a directory of their own; what is verified is never touched.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, unknown_method
from peftbench.method.catalogue import Catalogue
from peftbench.plan import model_facts
from peftbench.records import record
from peftbench.records.record import Record, TrainingRecord
from peftbench.records.spec import RunSpec, TaskSpec, digest
from peftbench.run import runner
from peftbench.run.view import View
from peftbench.verify.records import differences, tolerance
from peftbench.verify.records.audit import Finding, audit
from peftbench.verify.records.differences import Difference
from peftbench.verify.records.rounding import ulps

IDENTICAL, WITHIN, DIFFERS, NOT_REPEATED = "identical", "within tolerance", "differs", "not repeated"
VERIFIED = (IDENTICAL, WITHIN)


@dataclass(frozen=True)
class Outcome:
    """What came of one record: `status`, the fields that differ, and what ran the two, where that is not the same.

    An identical repeat may differ in the last digits of scores. `unrecorded` is what ran the repeat, where the record
    does not say it. `said` is why there is nothing to compare, or how far apart the two are.
    """

    record: TrainingRecord
    status: str
    differences: tuple[Difference, ...] = ()
    environment: tuple[Difference, ...] = ()
    unrecorded: tuple[Difference, ...] = ()
    said: str = ""

    @property
    def rounding(self) -> float:
        """How far apart the scores are that are equal but for their last digits, in units in the last place."""
        return max((ulps(d.recorded, d.repeated) for d in self.differences if d.is_rounding), default=0.0)


@dataclass(frozen=True)
class Verified:
    """All that was found under a results directory."""

    records: Sequence[Record]
    findings: Sequence[Finding]
    old: Mapping[str, int]  # "method lora 1, now 2" -> finished runs that are therefore not repeated
    repeatable: int
    outcomes: Sequence[Outcome]
    interrupted: bool = False

    @property
    def code(self) -> int:
        """0: all that was asked for is as the records say; 1: something is not, or nothing could be repeated."""
        if self.interrupted:
            return runner.INTERRUPTED
        sound = bool(self.outcomes) and all(o.status in VERIFIED for o in self.outcomes)
        return 0 if sound and not self.findings else 1


@dataclass(frozen=True)
class Asked:
    """How to repeat; `number` None: every run."""

    number: int | None = None
    seed: int = 0
    data_dir: Path | None = None
    plugins: tuple[Path, ...] = ()
    jobs: int = 1
    device: str | None = None
    view: View | None = None  # what hears of progress
    session: str = runner.SESSION
    more: Mapping[str, Any] = field(default_factory=dict)  # for the session


def verify(results_dir: Path, repeats_dir: Path, asked: Asked) -> Verified:
    """Audit the records under `results_dir`, repeat some of them into `repeats_dir`, and compare.

    Raises UserError where there is nothing to verify, and where a method, data or a device is missing here.
    """
    if repeats_dir.resolve() == results_dir.resolve():
        raise UserError(f"{repeats_dir}: the repeats need a directory of their own; name another for --keep")
    records, findings = audit(results_dir)
    if not records and not findings:
        raise UserError(f"{results_dir / record.FOLDER}: no records here; give a results directory")
    catalogue = Catalogue(asked.plugins)
    broken = {f.path for f in findings}
    finished = [r for r in records if isinstance(r, TrainingRecord) and r.is_finished and r.path not in broken]
    old = {r.path: said for r in finished if (said := _other_version(r, catalogue))}
    current = [r for r in finished if r.path not in old]
    chosen = sample(current, asked.number, asked.seed)
    data = _Data(asked.data_dir)
    gone = {r.path: said for r in chosen if (said := _changed(r, data))}
    catalogue.save()
    stopped = _repeat([r for r in chosen if r.path not in gone], repeats_dir, asked)
    made = record.read_all(repeats_dir)
    outcomes = [_outcome(r, gone.get(r.path), made) for r in chosen]
    done = [o for o in outcomes if o is not None]
    return Verified(records, findings, Counter(old.values()), len(current), done, stopped)


def sample(records: Iterable[TrainingRecord], number: int | None, seed: int) -> list[TrainingRecord]:
    """`number` of the records: each next one of a method, then of a task, that was taken least often so far.

    The same records and seed give the same sample, wherever and in whatever order they lie.
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
    """Where the method's or the task's code has changed results since: nobody can repeat that bit for bit."""
    from peftbench import tasks

    method, task = r.spec.method, r.spec.task
    known = catalogue.methods()
    if method.name not in known:
        raise unknown_method(method.name, known, where=str(r.path))
    if method.version != (now := known[method.name].version):
        return f"method {method.name} {method.version}, now {now}"
    if task.version != (now := tasks.card(task.name).version):
        return f"task {task.name} {task.version}, now {now}"
    return None


class _Data:
    """Fingerprints of tasks' data, each prepared once."""

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir, self.known = data_dir, dict[str, str]()

    def fingerprint(self, task: TaskSpec) -> str:
        from peftbench import tasks

        key = digest([task.name, task.options])
        if key not in self.known:
            self.known[key] = tasks.open_task(task.name, task.options, self.data_dir).fingerprint
        return self.known[key]


def _changed(r: TrainingRecord, data: _Data) -> str | None:
    """Why the run cannot be repeated: what it was made from is not the same here, or seconds limited it.

    Raises UserError where what it was made from is not here at all.
    """
    spec = r.spec
    if spec.train.seconds is not None:
        return f"its length is {spec.train.seconds:g} seconds of steps: how many these are is not repeatable"
    here = model_facts.fingerprint(spec.backbone.model, spec.backbone.revision)
    if here != spec.backbone.fingerprint:
        there = spec.backbone.fingerprint
        return f"model: the weights of {spec.backbone.model} are {there[:12]} there, {here[:12]} here"
    found = data.fingerprint(spec.task)
    if found != spec.task.fingerprint:
        return f"data: {spec.task.name} is {spec.task.fingerprint[:12]} there, {found[:12]} here"
    return None


def _repeat(chosen: Sequence[TrainingRecord], folder: Path, asked: Asked) -> bool:
    """Train them again; returns whether that was interrupted."""
    groups: dict[tuple[str, int | None], list[RunSpec]] = defaultdict(list)
    for r in chosen:
        where = asked.device or r.env.device, r.env.threads
        groups[where].append(r.spec)
    for (device, threads), specs in sorted(groups.items(), key=str):
        session = {
            "device": device,
            "data_dir": None if asked.data_dir is None else str(asked.data_dir),
            "plugins": [str(p) for p in asked.plugins],
            "adapters": None,
            **asked.more,
        }
        outcome = runner.run(
            lambda _, specs=specs: specs,  # type: ignore[misc]
            folder,
            experiment="verify",
            session=asked.session,
            session_kwargs=session,
            jobs=asked.jobs,
            threads=threads,
            again=True,
            view=asked.view,
        )
        if outcome.code == runner.INTERRUPTED:
            return True
    return False


def _outcome(r: TrainingRecord, gone: str | None, repeats: Sequence[Record]) -> Outcome | None:
    """None where the repeat was interrupted."""
    if gone is not None:
        return Outcome(r, NOT_REPEATED, said=gone)
    threads = r.env.threads
    made = [m for m in repeats if m.spec_id == r.spec_id and threads in (None, m.env.threads)]
    if not made:
        return None
    again = max(made, key=lambda m: m.order)
    if not again.is_finished:
        if again.status in record.RETRIED:
            return None
        said = f"the repeat ended as {again.status}: {again.body.reason or 'no reason recorded'}"
        return Outcome(r, DIFFERS, said=said)
    one, other = r.raw(), again.raw()
    environment, may_differ = differences.environments(one["env"], other["env"])
    found, said = differences.compare(one, other), ""
    if all(d.is_rounding for d in found):
        status = IDENTICAL
    else:
        if may_differ:
            judged = tolerance.judge(one, other, found)
            found, said = judged.differences, judged.said
        status = WITHIN if all(d.within for d in found) else DIFFERS
    unrecorded = differences.unrecorded(one["env"], other["env"])
    return Outcome(r, status, tuple(found), tuple(environment), tuple(unrecorded), said)
