"""(Experiment, planned runs, records) -> what to run next. Pure, no torch.

Tuning trials come first, then the runs with the values that won, and when they are settled one profile pass a task.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from peftbench.plan.experiment import Experiment, Profile
from peftbench.plan.grid import Planned
from peftbench.records import record, trials
from peftbench.records.record import Record
from peftbench.records.spec import LatencySpec, ProfileSpec, RunSpec, Spec


def standing(planned: Sequence[Planned], records: Iterable[Record], retry_failed: bool = False) -> list[Planned]:
    """The runs as the records leave them: those whose trials are settled with the values that won."""
    now = list(records)
    return _resolved(planned, now, _ready(now, retry_failed, now))


def plan(
    experiment: Experiment,
    planned: Sequence[Planned],
    records: Iterable[Record],
    retry_failed: bool = False,
    before: Iterable[Record] | None = None,
) -> list[Spec]:
    """What is still to be run: the missing runs, or, where there are none, the missing profile passes.

    `before` are the records that there were when this invocation began: what has been attempted since is not attempted
    again in it. None: it begins now.
    """
    now = list(records)
    ready = _ready(now, retry_failed, now if before is None else before)
    return [spec for spec in _asked(experiment, planned, now, ready) if ready(spec.id)]


def asked(
    experiment: Experiment,
    planned: Sequence[Planned],
    records: Iterable[Record],
    retry_failed: bool = False,
    before: Iterable[Record] | None = None,
) -> list[Spec]:
    """Like `plan`, with what is done: all runs, and, once they are settled, all profile passes."""
    now = list(records)
    return _asked(experiment, planned, now, _ready(now, retry_failed, now if before is None else before))


def profiles(experiment: Experiment, planned: Sequence[Planned], records: Iterable[Record]) -> list[ProfileSpec]:
    """A profile pass a task, over the configurations that finished there; none where it is switched off."""
    if experiment.profile is None:
        return []
    finished = record.finished(records)
    done = [p for p in planned if p.spec.trial is None and p.spec.id in finished]
    return passes(experiment, experiment.profile, done)


def passes(experiment: Experiment, asked: Profile, planned: Iterable[Planned]) -> list[ProfileSpec]:
    """A profile pass a task over all that is planned there, whether it has run or not.

    Its processes take turns with those of other tasks, so that each task's are spread over the time.
    """
    by_task: dict[str, dict[str, RunSpec]] = {}
    for p in planned:
        by_task.setdefault(p.spec.task.name, {})[p.label] = p.spec
    specs = []
    for process, runs in itertools.product(range(asked.processes), by_task.values()):
        first = next(iter(runs.values()))
        specs.append(
            ProfileSpec(
                backbone=first.backbone,
                task=first.task,
                methods=tuple(r.method for r in runs.values()),
                lrs=tuple(r.train.lr for r in runs.values()),
                batch_size=first.train.batch_size,
                max_length=first.train.max_length,
                accumulation=first.train.accumulation if first.train.memory is None else 1,
                rounds=asked.rounds,
                warmup=asked.warmup,
                reference=experiment.reference,
                latency=LatencySpec(**asked.latency.model_dump()),
                process=process,
                accumulations=tuple(r.train.accumulation for r in runs.values() if r.train.memory is not None),
            )
        )
    return specs


def _asked(
    experiment: Experiment, planned: Sequence[Planned], records: Sequence[Record], ready: Callable[[str], bool]
) -> list[Spec]:
    now = _resolved(planned, records, ready)
    runs: list[Spec] = [p.spec for p in now if not p.waits]
    if any(p.waits for p in now) or any(ready(spec.id) for spec in runs):
        return runs
    return [*runs, *profiles(experiment, now, records)]


def _resolved(planned: Sequence[Planned], records: Sequence[Record], ready: Callable[[str], bool]) -> list[Planned]:
    latest = record.latest(records)
    return [_tuned(p, latest, ready) if p.trials else p for p in planned]


def _tuned(p: Planned, latest: Mapping[str, Record], ready: Callable[[str], bool]) -> Planned:
    """The final run with the values of the best trial, once all of them are settled."""
    ids = [t.spec.id for t in p.trials]
    if any(map(ready, ids)) or not trials.settled(ids, latest):
        return replace(p, waits=True)
    won = p.trials[trials.best([latest[i] for i in ids])]
    train = replace(p.spec.train, lr=won.spec.train.lr)
    return replace(p, spec=replace(p.spec, method=won.spec.method, train=train), trainable=won.trainable, waits=False)


def _ready(records: Sequence[Record], retry_failed: bool, before: Iterable[Record]) -> Callable[[str], bool]:
    """Whether a spec is to be attempted now."""
    latest = record.latest(records)
    old = {r.path for r in before}
    tried = {r.spec_id for r in records if r.path not in old}

    def ready(spec_id: str) -> bool:
        last = latest.get(spec_id)
        if last is None:
            return True
        if last.is_finished or spec_id in tried:
            return False
        return retry_failed or last.status in record.RETRIED

    return ready
