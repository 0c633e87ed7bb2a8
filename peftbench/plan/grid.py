"""(Experiment, facts, records) -> what to run next: budgets resolved into sizes, grids into specs. Pure, no torch.

`grid` is all that an experiment asks for; `plan` is the part of it that the records lack: tuning trials first, then the
runs with the values that won, and when they are settled one profile pass a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from peftbench.backbones.sites import Sites
from peftbench.errors import UserError
from peftbench.measure.probes import CARDS
from peftbench.plan import run_limits, size_budget, tuning
from peftbench.plan.configurations import Configuration
from peftbench.plan.experiment import Experiment
from peftbench.plan.resolve import Facts, TaskFacts
from peftbench.plan.selection import Only
from peftbench.records.spec import MethodSpec, ProfileSpec, RunSpec, TrainSpec

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
    measures: run_limits.Measures = run_limits.NONE,
) -> list[Planned]:
    """Every run that the experiment asks for, `only` applied: all trials, then the final runs. By task, and there all
    methods of the first trial or seed first. Trials are those of the methods and tasks; a seed has none of its own.

    Raises UserError where a method does not fit the network, or, with a strict budget, has no size that matches it.
    """
    chosen = [c for c in configurations if only.has_method(c)]
    trials, final = [], []
    for task in facts.tasks:
        length = run_limits.of(experiment, task, facts.backbone, measures)
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


def _run(
    experiment: Experiment,
    facts: Facts,
    configuration: Configuration,
    task: TaskFacts,
    parameters: Parameters,
    length: run_limits.Length,
    measures: run_limits.Measures,
) -> Planned:
    """A configuration's first final run on a task, untuned."""
    exempt = {**task.asked.exempt, **configuration.exempt}
    method, trainable = _sized(experiment, replace(configuration, exempt=exempt), task.sites, parameters)
    train = _train(experiment, task, configuration.lr, length)
    probes = {name: CARDS[name].version for name in experiment.probes}
    spec = RunSpec(facts.backbone, task.spec, method, train, configuration.first_seed, probes=probes)
    try:
        spec = replace(spec, train=run_limits.within_memory(experiment.budget, spec, task, measures))
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
        solved = size_budget.solve(
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
    return low, kind.get("maximum", kind.get("exclusiveMaximum", size_budget.HIGHEST + 1) - 1)


def _train(experiment: Experiment, task: TaskFacts, lr: float, length: run_limits.Length) -> TrainSpec:
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
