"""Decide what to run next from the planned runs and the records.

Tuning trials come first, then the final runs with the values of the best trials. The profile passes come last, when all
runs have ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from peftbench.plan.experiment import Experiment, ProfileSection
from peftbench.plan.grid import Planned
from peftbench.records import record, trials
from peftbench.records.record import Record, TrialRecord
from peftbench.records.retries import NO_LIMITS, Retries, TimeLimits
from peftbench.records.spec import LatencySpec, ProfileSpec, RunSpec, Spec


def with_best_trials(
    planned: Sequence[Planned], records: Iterable[Record], retry_failed: bool = False
) -> list[Planned]:
    """Return the runs, with the values of the best trial where all trials have ended.

    Args:
        planned: the runs of the grid.
        records: all records of the results directory.
        retry_failed: whether failed trials run again.
    """
    ready = _Ready(records, retry_failed)
    return _resolved(planned, ready)


def plan(
    experiment: Experiment,
    planned: Sequence[Planned],
    records: Iterable[Record],
    retry_failed: bool = False,
    before: Iterable[Record] | None = None,
    limits: TimeLimits = NO_LIMITS,
) -> list[Spec]:
    """Return what is left to run: the missing runs, or the missing profile passes if no run is missing.

    Args:
        experiment: the experiment.
        planned: the runs of the grid.
        records: all records of the results directory.
        retry_failed: whether failed runs run again.
        before: the records from before this invocation; by default `records`. A run that was attempted since then is
            not attempted again.
        limits: the time limits of this command; a run that timed out under a lower one runs again.
    """
    ready = _Ready(records, retry_failed, before, limits)
    return [spec for spec in _specs(experiment, planned, ready) if ready(spec.id)]


def all_specs(
    experiment: Experiment,
    planned: Sequence[Planned],
    records: Iterable[Record],
    retry_failed: bool = False,
    before: Iterable[Record] | None = None,
    limits: TimeLimits = NO_LIMITS,
) -> list[Spec]:
    """Return what `plan` returns together with what is done: all runs and, when they have ended, all profile passes.

    The arguments are those of `plan`.
    """
    return _specs(experiment, planned, _Ready(records, retry_failed, before, limits))


def profiles(experiment: Experiment, planned: Sequence[Planned], records: Iterable[Record]) -> list[ProfileSpec]:
    """Return the profile passes over the final runs that have finished; none if the experiment has no profile."""
    if experiment.profile is None:
        return []
    finished = record.finished(records)
    done = [p for p in planned if p.spec.trial is None and p.spec.id in finished]
    return passes(experiment, experiment.profile, done)


def passes(experiment: Experiment, section: ProfileSection, planned: Iterable[Planned]) -> list[ProfileSpec]:
    """Return one profile pass for each task and process, over all planned configurations.

    The tasks alternate, so that the processes of each task are spread over time.

    Args:
        experiment: the experiment.
        section: rounds, processes and shapes of the pass.
        planned: the configurations to measure, whether they have run or not.
    """
    by_task: dict[tuple[str, str], dict[str, RunSpec]] = {}  # name and data: a training size has a pass of its own
    for p in planned:
        by_task.setdefault((p.spec.task.name, p.spec.task.fingerprint), {})[p.label] = p.spec
    specs = []
    for process, runs in itertools.product(range(section.processes), by_task.values()):
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
                rounds=section.rounds,
                warmup=section.warmup,
                reference=experiment.reference,
                latency=LatencySpec(**section.latency.model_dump()),
                process=process,
                accumulations=tuple(r.train.accumulation for r in runs.values() if r.train.memory is not None),
            )
        )
    return specs


class _Ready:
    """The function that tells by its id whether a spec should be attempted now."""

    def __init__(
        self,
        records: Iterable[Record],
        retry_failed: bool = False,
        before: Iterable[Record] | None = None,
        limits: TimeLimits = NO_LIMITS,
    ) -> None:
        self.records = list(records)
        self.retries = Retries(self.records, retry_failed, limits)
        old = {r.path for r in (self.records if before is None else before)}
        self._attempted = {r.spec_id for r in self.records if r.path not in old}

    def __call__(self, spec_id: str) -> bool:
        return spec_id not in self._attempted and self.retries.is_open(spec_id)


def _specs(experiment: Experiment, planned: Sequence[Planned], ready: _Ready) -> list[Spec]:
    now = _resolved(planned, ready)
    runs: list[Spec] = [p.spec for p in now if not p.waits]
    if any(p.waits for p in now) or any(ready(spec.id) for spec in runs):
        return runs
    return [*runs, *profiles(experiment, now, ready.records)]


def _resolved(planned: Sequence[Planned], ready: _Ready) -> list[Planned]:
    return [_tuned(p, ready) if p.trials else p for p in planned]


def _tuned(p: Planned, ready: _Ready) -> Planned:
    """Return the final run with the values of the best trial, or marked as waiting while a trial is missing."""
    ids = [t.spec.id for t in p.trials]
    if any(map(ready, ids)) or not trials.settled(ids, ready.retries):
        return replace(p, waits=True)
    latest = ready.retries.latest
    best = p.trials[trials.best([r for i in ids if isinstance(r := latest[i], TrialRecord)])]
    train = replace(p.spec.train, lr=best.spec.train.lr)
    return replace(p, spec=replace(p.spec, method=best.spec.method, train=train), trainable=best.trainable, waits=False)
