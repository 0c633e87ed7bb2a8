"""Build the grid of an experiment: every run as a `RunSpec`, at the size that the budget gives each method.

`next_runs` selects from it the runs that the records lack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from peftbench.backbones.sites import Sites
from peftbench.errors import UserError
from peftbench.measure.probes import CARDS
from peftbench.plan import limits, run_limits, size_budget, tuning
from peftbench.plan.configurations import Configuration
from peftbench.plan.experiment import Experiment
from peftbench.plan.extensions import Extensions, Values
from peftbench.plan.resolve import Facts, TaskFacts
from peftbench.plan.selection import Selection
from peftbench.records.spec import MethodSpec, ProfileSpec, RunSpec, TrainSpec

Parameters = Callable[[str, Mapping[str, Any], Sites], int]  # Catalogue.parameters
Spec = RunSpec | ProfileSpec
EVERYTHING = Selection()
NO_RATE = "it has no rate of its own: nothing but the head trains, at train.head_lr"


@dataclass(frozen=True)
class Planned:
    """One run of the grid.

    Attributes:
        spec: the run. While it waits for trials, the untuned values stand for the tuned ones.
        trainable: trainable parameters of the method, without the task head.
        task: the task of the run.
        trials: the trials that decide the hyperparameters of a final run.
        waits: whether the run waits for trials.
        untuned: the method with its untuned hyperparameters; None if none of them is tuned.
        extensions: how the trials go on where the best value lies at an edge; None if the run has none.
        may_come: the greatest number of trials that extensions may still add.
    """

    spec: RunSpec
    trainable: int
    task: TaskFacts
    trials: tuple[Planned, ...] = field(default=(), repr=False)
    waits: bool = False
    untuned: MethodSpec | None = field(default=None, repr=False)
    extensions: Extensions | None = field(default=None, repr=False)
    may_come: int = 0

    @property
    def label(self) -> str:
        """The method's label."""
        return self.spec.method.label

    @property
    def like(self) -> RunSpec:
        """The untuned run. It takes the same time and memory, because trials change no size."""
        return self.spec if self.untuned is None else replace(self.spec, method=self.untuned)


def grid(
    experiment: Experiment,
    facts: Facts,
    configurations: Sequence[Configuration],
    parameters: Parameters,
    selection: Selection = EVERYTHING,
    measures: run_limits.Measures = run_limits.NONE,
) -> list[Planned]:
    """Return the selected runs of an experiment: all trials, then the final runs.

    Both are ordered by task, then by trial or seed, then by method. All seeds of a final run share its trials.

    Args:
        experiment: the experiment.
        facts: the facts about the base model and the selected tasks.
        configurations: all configurations of the experiment.
        parameters: counts the trainable parameters of a method, `(name, hyper, sites)`.
        selection: the part of the grid.
        measures: measurements that budgets of tokens and memory need.

    Raises:
        UserError: a method does not fit the network, no size matches a strict budget, no step fits into the memory, or
            two tasks are the same.
    """
    chosen = [c for c in configurations if selection.has_method(c)]
    _check_number(experiment, len(chosen), len(facts.tasks), selection)
    trials, final = [], []
    for task in facts.tasks:
        _check_texts(experiment, facts, task, measures)
        length = run_limits.run_length(experiment, task, facts.backbone, measures)
        runs = _runs(experiment, facts, chosen, task, parameters, length, measures)
        tried = [_tuned(experiment, c, p, parameters, measures) for c, p in zip(chosen, runs, strict=True)]
        trials += [p for i in range(experiment.budget.trials or 0) for one in tried for p in one.trials[i : i + 1]]
        for seed in range(experiment.budget.most_seeds):
            if selection.has_seed(seed):
                final += [replace(p, spec=replace(p.spec, seed=p.spec.seed + seed)) for p in tried]
    _check_distinct(experiment, final)
    return [*trials, *final]


def _check_number(experiment: Experiment, configurations: int, tasks: int, selection: Selection) -> None:
    """Refuse a grid of more runs than any cluster can carry out, before it is made."""
    b = experiment.budget
    seeds, trials = len(selection.seeds) or b.most_seeds, b.trials or 0
    if (runs := configurations * tasks * (seeds + trials)) > limits.RUNS:
        raise experiment.error(
            ("budget",),
            f"{configurations:,} configurations x {tasks:,} tasks x {seeds + trials:,} seeds and trials are {runs:,} "
            f"runs; an experiment has at most {limits.RUNS:,}. Give fewer, or choose a part with --only",
        )


def _runs(
    experiment: Experiment,
    facts: Facts,
    configurations: Sequence[Configuration],
    task: TaskFacts,
    parameters: Parameters,
    length: run_limits.Length,
    measures: run_limits.Measures,
) -> list[Planned]:
    """Return the first final run of each configuration on a task; the error names all that cannot run."""
    runs, mistakes = list[Planned](), list[str]()
    for configuration in configurations:
        try:
            runs.append(_run(experiment, facts, configuration, task, parameters, length, measures))
        except UserError as e:
            mistakes.append(str(e))
    if mistakes:
        raise UserError("\n".join(mistakes))
    return runs


def _check_distinct(experiment: Experiment, final: Sequence[Planned]) -> None:
    """Refuse two tasks whose runs are the same: a user's file under two names."""
    first: dict[str, Planned] = {}
    for p in final:
        other = first.setdefault(p.spec.id, p)
        if other.task is not p.task:
            place = next(i for i, section in enumerate(experiment.tasks) if p.task.is_written_as(section))
            raise experiment.error(
                ("tasks", place),
                f"{p.spec.task.name} has the same data as {other.spec.task.name}, and runs under the same budget: its "
                "runs would be the same; remove one of the two",
            )


def _run(
    experiment: Experiment,
    facts: Facts,
    configuration: Configuration,
    task: TaskFacts,
    parameters: Parameters,
    length: run_limits.Length,
    measures: run_limits.Measures,
) -> Planned:
    """Return the first final run of a configuration on a task, untuned."""
    exempt = {**task.section.exempt, **configuration.exempt}
    method, trainable = _sized(experiment, replace(configuration, exempt=exempt), task.sites, parameters)
    train = _train(experiment, task, configuration.lr, length)
    probes = {name: CARDS[name].version for name in experiment.probes}
    spec = RunSpec(facts.backbone, task.spec, method, train, configuration.first_seed, probes=probes)
    _check_method(experiment, configuration, spec, task, measures)
    try:
        spec = replace(spec, train=run_limits.within_memory(experiment.budget, spec, task, measures))
    except UserError as e:
        raise experiment.error(configuration.place, str(e)) from e
    run = Planned(spec, trainable, task)
    if set(configuration.space) == {"lr"} and "trials" not in method.exempt and _has_no_rate(experiment, run):
        exempt = {**method.exempt, "trials": NO_RATE}
        return replace(run, spec=replace(spec, method=replace(method, exempt=exempt)))
    return run


def _check_method(
    experiment: Experiment, configuration: Configuration, spec: RunSpec, task: TaskFacts, measures: run_limits.Measures
) -> None:
    try:
        measures.check_method(spec, task)
    except UserError as e:
        raise experiment.error(configuration.place, f"{e} (on task {spec.task.name})") from e


def _check_texts(experiment: Experiment, facts: Facts, task: TaskFacts, measures: run_limits.Measures) -> None:
    length = task.section.max_length or experiment.budget.max_length
    try:
        measures.check_texts(facts.backbone, task.spec, length, experiment.profile)
    except UserError as e:
        place = next(i for i, section in enumerate(experiment.tasks) if task.is_written_as(section))
        raise experiment.error(("tasks", place), str(e)) from e


def _tuned(
    experiment: Experiment,
    configuration: Configuration,
    final: Planned,
    parameters: Parameters,
    measures: run_limits.Measures,
) -> Planned:
    """Return the first final run of a configuration on a task with its trials; as it is, if it is not tuned."""
    c, b = configuration, experiment.budget
    first = b.trials or 0
    if not c.space or not first or "trials" in final.spec.method.exempt:
        return final
    space = {key: values for key, values in c.space.items() if key != "lr" or not _has_no_rate(experiment, final)}

    def trial(number: int, values: Values, drawn_from: tuning.Space, first_space: tuning.Space) -> Planned:
        return _trial(experiment, c, final, parameters, measures, number, values, drawn_from, first_space)

    trials = tuple(trial(i, tuning.draw(space, i), space, {}) for i in range(first))
    more = Extensions(b.extensions, tuning.further_trials(first), c.bounds, c.defaults, trial)
    method = final.spec.method
    return replace(final, trials=trials, waits=True, untuned=method, extensions=more, may_come=more.most(space))


def _trial(
    experiment: Experiment,
    configuration: Configuration,
    final: Planned,
    parameters: Parameters,
    measures: run_limits.Measures,
    number: int,
    values: Values,
    space: tuning.Space,
    first_space: tuning.Space,
) -> Planned:
    """Return the trial of a configuration with the values given."""
    c, spec, task = configuration, final.spec, final.task
    train = replace(spec.train, lr=values.get("lr", c.lr))
    if experiment.budget.tuning_steps is not None:
        train = replace(train, steps=experiment.budget.tuning_steps, tokens=None, seconds=None)
    others = {k: v for k, v in values.items() if k != "lr"}
    hyper = {k: v for k, v in {**c.hyper, **others}.items() if v != c.defaults[k]}
    knob_is_given = c.knob_is_given or c.knob in others
    tried = replace(c, hyper=hyper, knob_is_given=knob_is_given, exempt=spec.method.exempt)
    method, trainable = _sized(experiment, tried, task.sites, parameters)
    drawn_from, first = ({key: list(v) for key, v in one.items()} for one in (space, first_space))
    run = replace(
        spec, method=method, train=train, seed=0, trial=number, space=drawn_from, probes={}, first_space=first
    )
    _check_method(experiment, c, run, task, measures)
    return Planned(run, trainable, task, untuned=spec.method)


def _has_no_rate(experiment: Experiment, run: Planned) -> bool:
    """Whether nothing of a method trains at its learning rate: it has no parameter but those of the task head."""
    return run.trainable == 0 and experiment.train.head_lr is not None


def _sized(
    experiment: Experiment, configuration: Configuration, sites: Sites, parameters: Parameters
) -> tuple[MethodSpec, int]:
    """Return the method at the size that the budget gives it, and its trainable parameters."""
    c, target = configuration, experiment.budget.trainable_params
    exempt = "trainable_params" in c.exempt

    def count(hyper: Mapping[str, Any]) -> int:
        return parameters(c.name, {**c.defaults, **hyper}, sites)

    try:
        if c.knob is None or c.knob_is_given or target is None or exempt:
            trainable = count(c.hyper)
            _check_size(f"{c.name} trains {trainable:,} parameters", trainable, max(sites.base, limits.SMALL_NETWORK))
            size = "explicit" if c.knob_is_given else "exempt" if exempt else "native"
            deviation = None if target is None else trainable / target - 1
            return MethodSpec(c.name, c.label, c.version, c.hyper, size, deviation, c.exempt), trainable
        knob = c.knob
        _check_size(f"the budget has {target:,} trainable parameters", target, sites.base)
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


def _check_size(what: str, trainable: int, network: int) -> None:
    most = limits.TIMES_THE_NETWORK * network
    if trainable > most:
        raise UserError(f"{what}; on this network give at most {most:,}, {limits.TIMES_THE_NETWORK} times its own")


def _range(schema: Mapping[str, Any]) -> tuple[int, int]:
    """Return the least and the greatest value of a size knob."""
    options = [s for s in (schema, *schema.get("anyOf", [])) if s.get("type") == "integer"]
    kind = options[0] if options else {}
    low = kind.get("minimum", kind.get("exclusiveMinimum", 0) + 1)
    return low, kind.get("maximum", kind.get("exclusiveMaximum", limits.SIZE_KNOB + 1) - 1)


def _train(experiment: Experiment, task: TaskFacts, lr: float, length: run_limits.Length) -> TrainSpec:
    """Return the training that the experiment's schedule and budget and the task's section define."""
    b, t, section = experiment.budget, experiment.train, task.section
    return TrainSpec(
        lr=lr,
        steps=length.steps,
        batch_size=section.batch_size or b.batch_size,
        max_length=section.max_length or b.max_length,
        accumulation=b.accumulation,
        head_lr=t.head_lr,
        warmup=t.warmup,
        decay=t.decay,
        weight_decay=t.weight_decay,
        clip=t.clip,
        eval_every=section.eval_every or t.eval_every,
        patience=t.patience,
        checkpoint=t.checkpoint,
        tokens=length.tokens,
        seconds=length.seconds,
        data_parallel=(experiment.parallel and experiment.parallel.data) or 1,
        shards=(experiment.parallel and experiment.parallel.shards) or 1,
    )
