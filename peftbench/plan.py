"""(Experiment, facts, records) -> what to run next: budgets resolved into sizes, grids into specs. Pure, no torch.

`grid` is all that an experiment asks for; `plan` is the part of it that the records lack: runs first, and when they are
settled one profile pass a task.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftbench import budget, record
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
    """One run of the grid. `trainable` counts the method's own parameters, without the task's head."""

    spec: RunSpec
    trainable: int
    task: TaskFacts

    @property
    def label(self) -> str:
        return self.spec.method.label


def grid(
    experiment: Experiment,
    facts: Facts,
    configurations: Sequence[Configuration],
    parameters: Parameters,
    only: Only = EVERYTHING,
) -> list[Planned]:
    """Every run that the experiment asks for, `only` applied: by task, and there all methods of the first seed first.

    Raises UserError where a method does not fit the network, or, with a strict budget, has no size that matches it.
    """
    chosen = [c for c in configurations if only.has_method(c)]
    probes = {name: CARDS[name].version for name in experiment.probes}
    planned = []
    for task in facts.tasks:
        sized = [_sized(experiment, c, task.sites, parameters) for c in chosen]
        for seed in range(experiment.budget.seeds):
            if only.has_seed(seed):
                for configuration, (method, trainable) in zip(chosen, sized, strict=True):
                    train, at = _train(experiment, task, configuration.lr), configuration.first_seed + seed
                    run = RunSpec(facts.backbone, task.spec, method, train, at, probes)
                    planned.append(Planned(run, trainable, task))
    return planned


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
    return passes(experiment, experiment.profile, [p for p in planned if p.spec.id in finished])


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
                accumulation=first.train.accumulation,
                rounds=asked.rounds,
                warmup=asked.warmup,
                reference=experiment.reference,
                latency=LatencySpec(**asked.latency.model_dump()),
                process=process,
            )
        )
    return specs


def _asked(
    experiment: Experiment, planned: Sequence[Planned], records: Sequence[Record], ready: Callable[[str], bool]
) -> list[Spec]:
    runs: list[Spec] = [p.spec for p in planned]
    if any(ready(p.spec.id) for p in planned):
        return runs
    return [*runs, *profiles(experiment, planned, records)]


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


def _sized(
    experiment: Experiment, configuration: Configuration, sites: Sites, parameters: Parameters
) -> tuple[MethodSpec, int]:
    """The method at the size that the budget asks for, and its trainable parameters."""
    c, target = configuration, experiment.budget.trainable_params

    def count(hyper: Mapping[str, Any]) -> int:
        return parameters(c.name, {**c.defaults, **hyper}, sites)

    try:
        if c.knob is None or c.knob_is_given or target is None:
            trainable = count(c.hyper)
            size = "explicit" if c.knob_is_given else "native"
            deviation = None if target is None else trainable / target - 1
            return MethodSpec(c.name, c.label, c.version, c.hyper, size, deviation), trainable
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
    return MethodSpec(c.name, c.label, c.version, hyper, size, solved.deviation), solved.achieved


def _range(schema: Mapping[str, Any]) -> tuple[int, int]:
    """The least and the greatest value that a size knob takes."""
    options = [s for s in (schema, *schema.get("anyOf", [])) if s.get("type") == "integer"]
    kind = options[0] if options else {}
    low = kind.get("minimum", kind.get("exclusiveMinimum", 0) + 1)
    return low, kind.get("maximum", kind.get("exclusiveMaximum", budget.HIGHEST + 1) - 1)


def _train(experiment: Experiment, task: TaskFacts, lr: float) -> TrainSpec:
    """The experiment's schedule and budget with what is different for the task."""
    b, t = experiment.budget, experiment.train
    return TrainSpec(
        lr=lr,
        steps=task.asked.steps or b.steps,
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
    )
