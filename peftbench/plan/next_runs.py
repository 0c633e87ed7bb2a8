"""Decide what to run next from the planned runs and the records.

Tuning trials come first, with those that extend a space whose best value lies at an edge. Then come the final runs with
the values of the best trials. The profile passes come last, when all runs have ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from peftbench.plan import design, until_decided
from peftbench.plan.experiment import Experiment, ProfileSection
from peftbench.plan.grid import Planned
from peftbench.records import record, trials
from peftbench.records.record import Record, RunRecord, TrialRecord
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
    now = _wanted(experiment, _resolved(planned, ready), ready)
    runs: list[Spec] = [p.spec for p in now if not p.waits]
    if any(p.waits for p in now) or any(ready(spec.id) for spec in runs):
        return runs
    return [*runs, *profiles(experiment, now, ready.records)]


def wanted(experiment: Experiment, planned: Sequence[Planned], records: Iterable[Record]) -> list[Planned]:
    """Return the runs of the grid that the records call for, done or not: all, unless seeds run until decided."""
    ready = _Ready(records)
    return _wanted(experiment, _resolved(planned, ready), ready)


def _wanted(experiment: Experiment, planned: list[Planned], ready: _Ready) -> list[Planned]:
    question = design.of(experiment)
    if question is None or not question.looks:
        return planned
    latest = [r for r in ready.retries.latest.values() if isinstance(r, RunRecord)]
    return until_decided.wanted(planned, latest, question, lambda spec_id: not ready(spec_id))


def _resolved(planned: Sequence[Planned], ready: _Ready) -> list[Planned]:
    """Return the first trials, those of extensions, and the final runs with what their trials chose."""
    first = [p for p in planned if p.spec.trial is not None and not p.spec.first_space]
    tuned: dict[tuple[str, ...], _Tuned] = {}  # the seeds of a configuration share their trials
    final = []
    for p in (p for p in planned if p.spec.trial is None):
        if p.trials:
            ids = tuple(t.spec.id for t in p.trials)
            tuned[ids] = one = tuned.get(ids) or _tuned(p, ready)
            p = one.final(p)
        final.append(p)
    further = {t.spec.id: t for one in tuned.values() for t in one.further}
    return [*first, *further.values(), *final]


@dataclass(frozen=True)
class _Tuned:
    """The trials of one configuration on one task as far as their records go.

    Attributes:
        further: the trials of extensions.
        best: the best trial; None while one is missing.
        may_come: the greatest number of trials that may still be added.
    """

    further: Sequence[Planned]
    best: Planned | None
    may_come: int

    def final(self, p: Planned) -> Planned:
        """Return a final run with the values of the best trial, or marked as waiting while a trial is missing."""
        if self.best is None:
            return replace(p, waits=True, may_come=self.may_come)
        train = replace(p.spec.train, lr=self.best.spec.train.lr)
        spec = replace(p.spec, method=self.best.spec.method, train=train)
        return replace(p, spec=spec, trainable=self.best.trainable, waits=False, may_come=0)


def _tuned(p: Planned, ready: _Ready) -> _Tuned:
    """Return the trials of a final run, extended as long as all have ended and the best lies at an edge."""
    tried, extended = list(p.trials), 0
    while (records := _ended(tried, ready)) is not None:
        more = p.extensions.after(tried, records) if p.extensions and extended < p.extensions.number else []
        if not more:
            return _Tuned(tried[len(p.trials) :], tried[trials.best(records)], 0)
        tried, extended = [*tried, *more], extended + 1
    may_come = p.extensions.most(tried[0].spec.space, extended) if p.extensions else 0
    return _Tuned(tried[len(p.trials) :], None, may_come)


def _ended(tried: Sequence[Planned], ready: _Ready) -> list[TrialRecord] | None:
    """Return the last record of each trial; None while a trial is missing."""
    ids = [t.spec.id for t in tried]
    if any(map(ready, ids)) or not trials.settled(ids, ready.retries):
        return None
    latest = ready.retries.latest
    return [r for i in ids if isinstance(r := latest[i], TrialRecord)]
