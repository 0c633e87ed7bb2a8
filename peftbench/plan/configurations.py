"""Expand the methods of an experiment into configurations: one for each point of a grid, with a unique label."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peftbench.errors import UserError, shown, unknown, unknown_method
from peftbench.method.catalogue import BadHyper, MethodFacts
from peftbench.method.registry import bounds
from peftbench.plan import limits, tuning
from peftbench.plan.axes import OF_TASKS, Point
from peftbench.plan.experiment import RESERVED, Experiment, MethodEntry
from peftbench.plan.read import invalid_exemptions
from peftbench.plan.strict_yaml import Place, spell
from peftbench.records.trials import Bounds

LONGEST_LABEL = 60  # characters
_RATE = f"number above 0 and at most {limits.RATE:,}"
Check = Callable[[str, Mapping[str, Any]], dict[str, Any]]  # Catalogue.hyper


@dataclass(frozen=True)
class Configuration:
    """A method with its hyperparameters: one row of the tables.

    Attributes:
        name: the method's name.
        label: the name of the row.
        lr: the learning rate; trials may replace it.
        hyper: the hyperparameters that differ from the method's defaults.
        version: the version of the method's code.
        knob: the hyperparameter that a budget of size solves; None if the method has none.
        knob_is_given: whether the file fixes the knob.
        knob_schema: the JSON Schema of the knob.
        defaults: the method's defaults.
        place: where the configuration is in the file.
        first_seed: the seed of the first repetition.
        space: the values that trials draw from; empty if the configuration is not tuned.
        bounds: the limits of each numeric hyperparameter of the space.
        exempt: reasons by the name of the budget that does not hold for it.
        point: the value of each axis that is one of its hyperparameters.
    """

    name: str
    label: str
    lr: float
    hyper: Mapping[str, Any]
    version: int
    knob: str | None
    knob_is_given: bool
    knob_schema: Mapping[str, Any]
    defaults: Mapping[str, Any]
    place: Place
    first_seed: int = 0
    space: tuning.Space = field(default_factory=dict)
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    exempt: Mapping[str, str] = field(default_factory=dict)
    point: Point = field(default_factory=dict)


def expand(experiment: Experiment, methods: Mapping[str, MethodFacts], check: Check) -> list[Configuration]:
    """Expand and check the methods of an experiment.

    Args:
        experiment: the experiment.
        methods: the facts of each known method by its name.
        check: checks the hyperparameters of a method, `(name, hyper)`, and returns all of them with the defaults.

    Returns:
        The configurations in the file's order.

    Raises:
        UserError: there are mistakes; the message lists all of them.
    """
    configurations: list[Configuration] = []
    mistakes: list[str] = []
    for entry in experiment.methods:
        try:
            configurations += _expanded(experiment, entry, methods, check)
            if len(configurations) > limits.RUNS:
                raise experiment.error(entry.place, f"more than {limits.RUNS:,} configurations so far; give fewer")
        except UserError as e:
            mistakes.append(str(e))
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))
    _check_axes(experiment, methods)
    _check_labels(experiment, configurations)
    return configurations


def _check_axes(experiment: Experiment, methods: Mapping[str, MethodFacts]) -> None:
    """Refuse an axis that is a hyperparameter of no method of the experiment."""
    known = {key: value for entry in experiment.methods for key, value in methods[entry.name].defaults.items()}
    for axis in experiment.axes.of_methods:
        if axis not in known:
            numbers = sorted(key for key, value in known.items() if type(value) in (int, float))
            raise unknown("axis", axis, [*OF_TASKS, *numbers], where=experiment.where(("axes", axis)))


def _check_labels(experiment: Experiment, configurations: list[Configuration]) -> None:
    by_label: dict[str, Configuration] = {}
    for one in configurations:
        if one.label in by_label:
            raise experiment.error(
                one.place,
                f"the label {one.label!r} is taken by {spell(by_label[one.label].place)}; "
                f"tables need unique labels: write {{{one.name}: {{label: ANOTHER, ...}}}}",
            )
        by_label[one.label] = one
    if "reference" in experiment.model_fields_set and experiment.reference not in by_label:
        raise unknown("label", experiment.reference, by_label, where=experiment.where(("reference",)))


def _expanded(
    experiment: Experiment, entry: MethodEntry, methods: Mapping[str, MethodFacts], check: Check
) -> list[Configuration]:
    if entry.name not in methods:
        raise unknown_method(entry.name, methods, where=experiment.where(entry.place))
    facts = methods[entry.name]
    for key in entry.hyper:
        if key not in facts.defaults:
            where = experiment.where((*entry.place, key))
            raise unknown("hyperparameter", key, [*facts.defaults, *RESERVED], where=where)
    shared = {key: list(v) for key, v in experiment.axes.of_methods.items() if key in facts.defaults}
    axes = {key: value for key, value in entry.hyper.items() if _is_grid(value, facts.schema.get(key, {}))} | shared
    if isinstance(entry.lr, list):
        axes["lr"] = entry.lr
    for key, values in axes.items():
        if not values:
            raise experiment.error((*entry.place, key), "given an empty list; a grid needs at least one value")
    if (number := math.prod(map(len, axes.values()))) > limits.RUNS:
        raise experiment.error(entry.place, f"its lists make {number:,} configurations; give at most {limits.RUNS:,}")
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    labels = _labels(experiment, entry, points)
    return [_configuration(experiment, entry, facts, p, label, check) for p, label in zip(points, labels, strict=True)]


def _configuration(
    experiment: Experiment, entry: MethodEntry, facts: MethodFacts, point: dict[str, Any], label: str, check: Check
) -> Configuration:
    lr = point.get("lr", facts.lr if entry.lr is None else entry.lr)
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr <= limits.RATE:
        raise experiment.error((*entry.place, "lr"), f"given {shown(lr)}; a learning rate is a {_RATE}")
    first = entry.first_seed
    if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first <= limits.SEED:
        valid = f"a first seed is a whole number from 0 to {limits.SEED}"
        raise experiment.error((*entry.place, "first_seed"), f"given {shown(first)}; {valid}")
    written = {**entry.hyper, **{k: v for k, v in point.items() if k != "lr"}}
    try:
        hyper = check(entry.name, written)
    except BadHyper as e:
        errors = [
            str(experiment.error(_place_of(experiment, entry, key), f"given {shown(value)}; {valid}"))
            for key, value, valid in e.mistakes
        ]
        raise UserError("\n".join(errors)) from e
    for key, value in hyper.items():
        most = limits.SIZE_KNOB if key == facts.size_knob else limits.HYPERPARAMETER
        if isinstance(value, int) and abs(value) > most:
            raise experiment.error(_place_of(experiment, entry, key), f"given {shown(value)}; must be at most {most:,}")
    exempt = _exempt(experiment, entry)
    space = {} if "trials" in exempt else _space(experiment, entry, facts, written, "lr" in point, check)
    return Configuration(
        name=entry.name,
        label=label,
        lr=float(lr),
        hyper={key: value for key, value in hyper.items() if value != facts.defaults[key]},
        version=facts.version,
        knob=facts.size_knob,
        knob_is_given=facts.size_knob in written,
        knob_schema=facts.schema.get(facts.size_knob or "", {}),
        defaults=facts.defaults,
        place=entry.place,
        first_seed=first,
        space=space,
        bounds={key: bounds(facts.schema.get(key, {})) for key in space if key != "lr"},
        exempt=exempt,
        point={key: value for key, value in point.items() if key in experiment.axes.of_methods},
    )


def _place_of(experiment: Experiment, entry: MethodEntry, key: str | None) -> Place:
    """Return where the value of a hyperparameter stands: in the method's entry, or as an axis."""
    if key in experiment.axes.of_methods:
        return "axes", key
    return (*entry.place, key) if key else entry.place


def _exempt(experiment: Experiment, entry: MethodEntry) -> Mapping[str, str]:
    place = (*entry.place, "exempt")
    if entry.exempt is None:
        return {}
    if not isinstance(entry.exempt, dict):
        raise experiment.error(place, f"given {shown(entry.exempt)}; valid: a mapping such as {{memory: the reason}}")
    for axis, reason in entry.exempt.items():
        if not isinstance(reason, str) or not reason.strip():
            raise experiment.error((*place, axis), f"given {shown(reason)}; every exemption needs its reason, in words")
    if mistakes := list(invalid_exemptions(experiment, entry.exempt, place)):
        raise UserError("\n".join(map(str, mistakes)))
    return dict(entry.exempt)


def _space(
    experiment: Experiment,
    entry: MethodEntry,
    facts: MethodFacts,
    fixed: Mapping[str, Any],
    rate_is_grid: bool,
    check: Check,
) -> tuning.Space:
    """The values that the configuration's trials draw from. A rate that the file gives is kept, without trials."""
    b, place, written = experiment.budget, (*entry.place, "search_space"), entry.search_space
    rate_is_given = rate_is_grid or entry.lr is not None
    solved = facts.size_knob if b.trainable_params is not None else None
    if written is None:
        if b.trials is None or rate_is_given:
            return {}
        if "lr" not in facts.search_space:
            message = f"{facts.name} declares no rates to tune; write its lr, or search_space: {{lr: [1e-4, 1e-2]}}"
            raise experiment.error(entry.place, message)
        return tuning.declared_space(facts.search_space, [*fixed, *([solved] if solved else [])])
    try:
        space = tuning.checked_space(written, rate_is_given, fixed, solved)
        for key, values in space.items():
            for value in values if key != "lr" else ():
                check(entry.name, {**fixed, key: value})
    except UserError as e:
        raise experiment.error(place, str(e)) from e
    if b.trials is None:
        raise experiment.error(place, "nothing is tuned without trials; write budget: {trials: 4}, or remove it")
    return space


def _is_grid(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is a grid: a list or, for a hyperparameter that is itself a list, a list of lists."""
    kinds = [schema.get("type"), *(s.get("type") for s in schema.get("anyOf", []))]
    if "array" in kinds:
        return isinstance(value, list) and bool(value) and all(isinstance(v, list) for v in value)
    return isinstance(value, list)


def _labels(experiment: Experiment, entry: MethodEntry, points: list[dict[str, Any]]) -> list[str]:
    """Return a label for each point of the grid: `lora`, `lora rank=2 lr=0.005`, or the file's list of labels."""
    place = (*entry.place, "label")
    if isinstance(entry.label, list):
        if len(entry.label) != len(points):
            counts = f"{len(entry.label)} labels for {len(points)} configurations"
            raise experiment.error(place, f"{counts}; give one for each, or one text")
        labels = entry.label
    else:
        start = entry.name if entry.label is None else entry.label
        labels = [start] * len(points)
        if isinstance(start, str):
            labels = [" ".join([start, *(f"{k}={_short(v)}" for k, v in p.items())]) for p in points]
    for label in labels:
        if not isinstance(label, str) or not label.strip() or not label.isprintable() or len(label) > LONGEST_LABEL:
            valid = f"a label is a text of 1 to {LONGEST_LABEL} printable characters"
            raise experiment.error(place, f"given {shown(label)}; {valid}")
    return labels


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
