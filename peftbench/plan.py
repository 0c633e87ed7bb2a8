"""(Experiment, facts, records) -> what to run next: budgets resolved into sizes, grids into specs. Pure, no torch.

`grid` is all that an experiment asks for; `plan` is the part of it that the records lack: tuning trials first, then the
runs with the values that won, and when they are settled one profile pass a task.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from peftbench import budget, limits, record, tuning
from peftbench.configurations import Configuration
from peftbench.errors import UserError
from peftbench.experiment import Experiment, Profile
from peftbench.facts import Facts, TaskFacts
from peftbench.only import Only
from peftbench.probes import CARDS
from peftbench.record import Record
from peftbench.sites import Sites
from peftbench.spec import LatencySpec, MethodSpec, ProfileSpec, RunSpec, TrainSpec

Parameters = Callable[[str, Mapping[str, Any], Sites], int]  # Manifest.parameters
Spec = RunSpec | ProfileSpec
EVERYTHING = Only()


@dataclass(frozen=True)
class Planned:
    """One run of the grid. `trainable` counts the method's own parameters, without the task's head.

    `trials` are those that decide the values of a final run; while it `waits` for them, its spec has the untuned ones.
    """

    spec: RunSpec
    trainable: int
    task: TaskFacts
    trials: tuple[Planned, ...] = field(default=(), repr=False)
    waits: bool = False
    untuned: MethodSpec | None = field(default=None, repr=False)  # None: nothing of it is drawn

    @property
    def label(self) -> str:
        return self.spec.method.label

    @property
    def like(self) -> RunSpec:
        """The run that takes as long and as much memory: what is drawn changes neither, as sizes are not drawn."""
        return self.spec if self.untuned is None else replace(self.spec, method=self.untuned)


def grid(
    experiment: Experiment,
    facts: Facts,
    configurations: Sequence[Configuration],
    parameters: Parameters,
    only: Only = EVERYTHING,
    measures: limits.Measures = limits.NONE,
) -> list[Planned]:
    """Every run that the experiment asks for, `only` applied: all trials, then the final runs. By task, and there all
    methods of the first trial or seed first. Trials are those of the methods and tasks; a seed has none of its own.

    Raises UserError where a method does not fit the network, or, with a strict budget, has no size that matches it.
    """
    chosen = [c for c in configurations if only.has_method(c)]
    trials, final = [], []
    for task in facts.tasks:
        length = limits.of(experiment, task, facts.backbone, measures)
        runs = [_run(experiment, facts, c, task, parameters, length, measures) for c in chosen]
        tried = [_trials(experiment, c, p, parameters) for c, p in zip(chosen, runs, strict=True)]
        trials += [p for i in range(experiment.budget.trials or 0) for all_ in tried for p in all_[i : i + 1]]
        for seed in range(experiment.budget.seeds):
            if only.has_seed(seed):
                for p, mine in zip(runs, tried, strict=True):
                    untuned = p.spec.method if mine else None
                    spec = replace(p.spec, seed=p.spec.seed + seed)
                    final.append(replace(p, spec=spec, trials=mine, waits=bool(mine), untuned=untuned))
    return [*trials, *final]


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
    if any(map(ready, ids)) or not tuning.settled(ids, latest):
        return replace(p, waits=True)
    won = p.trials[tuning.best([latest[i] for i in ids])]
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


def _run(
    experiment: Experiment,
    facts: Facts,
    configuration: Configuration,
    task: TaskFacts,
    parameters: Parameters,
    length: limits.Length,
    measures: limits.Measures,
) -> Planned:
    """A configuration's first final run on a task, untuned."""
    exempt = {**task.asked.exempt, **configuration.exempt}
    method, trainable = _sized(experiment, replace(configuration, exempt=exempt), task.sites, parameters)
    train = _train(experiment, task, configuration.lr, length)
    probes = {name: CARDS[name].version for name in experiment.probes}
    spec = RunSpec(facts.backbone, task.spec, method, train, configuration.first_seed, probes=probes)
    try:
        spec = replace(spec, train=limits.within_memory(experiment.budget, spec, task, measures))
    except UserError as e:
        raise experiment.error(configuration.place, str(e)) from e
    return Planned(spec, trainable, task)


def _trials(
    experiment: Experiment, configuration: Configuration, final: Planned, parameters: Parameters
) -> tuple[Planned, ...]:
    """What is tried for a configuration on a task; nothing where it is not tuned."""
    c, b, spec, task = configuration, experiment.budget, final.spec, final.task
    if not c.space or "trials" in spec.method.exempt:
        return ()
    train = spec.train
    if b.tuning_steps is not None:
        train = replace(train, steps=b.tuning_steps, tokens=None, seconds=None)
    space = {key: list(values) for key, values in c.space.items()}
    found = []
    for i in range(b.trials or 0):
        values = tuning.drawn(c.space, i)
        lr = values.pop("lr", c.lr)
        set_ = {k: v for k, v in {**c.hyper, **values}.items() if v != c.defaults[k]}
        given = c.knob_is_given or c.knob in values
        tried = replace(c, hyper=set_, knob_is_given=given, exempt=spec.method.exempt)
        method, trainable = _sized(experiment, tried, task.sites, parameters)
        run = replace(spec, method=method, train=replace(train, lr=lr), seed=0, trial=i, space=space, probes={})
        found.append(Planned(run, trainable, task, untuned=spec.method))
    return tuple(found)


def _sized(
    experiment: Experiment, configuration: Configuration, sites: Sites, parameters: Parameters
) -> tuple[MethodSpec, int]:
    """The method at the size that the budget asks for, and its trainable parameters."""
    c, target = configuration, experiment.budget.trainable_params
    exempt = "trainable_params" in c.exempt

    def count(hyper: Mapping[str, Any]) -> int:
        return parameters(c.name, {**c.defaults, **hyper}, sites)

    try:
        if c.knob is None or c.knob_is_given or target is None or exempt:
            trainable = count(c.hyper)
            size = "explicit" if c.knob_is_given else "exempt" if exempt else "native"
            deviation = None if target is None else trainable / target - 1
            return MethodSpec(c.name, c.label, c.version, c.hyper, size, deviation, c.exempt), trainable
        knob = c.knob
        solved = budget.solve(
            lambda value: count({**c.hyper, knob: value}),
            target,
            experiment.budget.tolerance,
            *_range(c.knob_schema),
            strict=experiment.budget.strict,
        )
    except UserError as e:
        raise experiment.error(c.place, str(e)) from e
    hyper = {k: v for k, v in {**c.hyper, knob: solved.value}.items() if v != c.defaults[k]}
    size = "matched" if solved.matched else "nearest"
    return MethodSpec(c.name, c.label, c.version, hyper, size, solved.deviation, c.exempt), solved.achieved


def _range(schema: Mapping[str, Any]) -> tuple[int, int]:
    """The least and the greatest value that a size knob takes."""
    options = [s for s in (schema, *schema.get("anyOf", [])) if s.get("type") == "integer"]
    kind = options[0] if options else {}
    low = kind.get("minimum", kind.get("exclusiveMinimum", 0) + 1)
    return low, kind.get("maximum", kind.get("exclusiveMaximum", budget.HIGHEST + 1) - 1)


def _train(experiment: Experiment, task: TaskFacts, lr: float, length: limits.Length) -> TrainSpec:
    """The experiment's schedule and budget with what is different for the task."""
    b, t = experiment.budget, experiment.train
    return TrainSpec(
        lr=lr,
        steps=length.steps,
        batch_size=task.asked.batch_size or b.batch_size,
        max_length=task.asked.max_length or b.max_length,
        accumulation=b.accumulation,
        head_lr=t.head_lr,
        warmup=t.warmup,
        decay=t.decay,
        weight_decay=t.weight_decay,
        clip=t.clip,
        eval_every=task.asked.eval_every or t.eval_every,
        patience=t.patience,
        checkpoint=t.checkpoint,
        tokens=length.tokens,
        seconds=length.seconds,
    )
