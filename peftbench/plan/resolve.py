"""Resolve the tasks and the base model of an experiment: find data and model and collect their facts.

Stand-ins are decided here. If a task's data is not available, its stand-in runs in its place under the stand-in's own
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench import tasks
from peftbench.backbones.sites import Sites
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.plan import model_facts, task_facts
from peftbench.plan.experiment import Experiment, TaskSection
from peftbench.plan.selection import Selection
from peftbench.records.spec import BackboneSpec, TaskSpec

FILES = ("train", "validation", "test")  # options of a local task that are paths relative to the experiment's file


@dataclass(frozen=True)
class TaskFacts:
    """A task that will run.

    Attributes:
        section: the task's section of the experiment file.
        spec: the task that runs: the task of the file or its stand-in.
        kind: "classification", "regression" or "generation".
        mean_words: mean words of an example, answer included.
        rows: the number of examples by split.
        sites: the sites of the network that runs the task.
        unavailable: why the stand-in runs; None if the task itself runs.
        labels: outputs of the task head; 1 for regression and generation.
    """

    section: TaskSection
    spec: TaskSpec
    kind: str
    mean_words: float
    rows: Mapping[str, int]
    sites: Sites
    unavailable: str | None = None
    labels: int = 1


@dataclass(frozen=True)
class Facts:
    """The base model and the tasks that an experiment runs."""

    backbone: BackboneSpec
    tasks: tuple[TaskFacts, ...]


def gather(experiment: Experiment, selection: Selection, stores: Stores, data_dir: Path | None = None) -> Facts:
    """Collect the facts about the selected tasks and the base model.

    Args:
        experiment: the experiment.
        selection: the part of the grid that will run.
        stores: the stores of cached answers.
        data_dir: the folder with data sets.

    Raises:
        UserError: a task or the model is unknown or not available, without a stand-in. The message covers all tasks.
    """
    opened, mistakes = [], []
    for i, task in enumerate(experiment.tasks):
        if selection.has_task(task):
            try:
                opened.append((i, task, *_open_or_stand_in(experiment, task, stores, data_dir)))
            except UserError as e:
                mistakes.append(str(experiment.error(("tasks", i), str(e))))
    mistakes += _repeated_names(experiment, [(i, spec.name) for i, _, spec, _, _ in opened])
    if mistakes:
        raise UserError("\n".join(mistakes))
    backbone = _backbone(experiment)
    task_facts = []
    for i, task, spec, facts, unavailable in opened:
        try:
            causal = facts["kind"] == "generation"
            labels = len(facts["labels"]) or 1
            sites = model_facts.sites(stores, backbone.model, labels, causal, backbone.revision, backbone.roles)
        except UserError as e:
            raise experiment.error(("backbone",), f"{e} (for task {spec.name}, tasks[{i}])") from e
        known = (facts["kind"], facts["mean_words"], facts["rows"])
        task_facts.append(TaskFacts(task, spec, *known, sites, unavailable, labels))
    return Facts(backbone, tuple(task_facts))


def _open_or_stand_in(
    experiment: Experiment, task: TaskSection, stores: Stores, data_dir: Path | None
) -> tuple[TaskSpec, dict[str, Any], str | None]:
    """Return the task that runs, its facts, and why it is the stand-in (None if it is not)."""
    options = _with_paths(experiment, task)
    if task.stand_in is not None:
        tasks.card(task.stand_in)  # report an unknown stand-in even where it is not needed
    try:
        return *_open(stores, task.task, options, data_dir, None), None
    except tasks.TaskUnavailable as e:
        if task.stand_in is None:
            raise UserError(f"{e} Or name a task to run instead: {{task: {task.task}, stand_in: embedded/...}}") from e
        limits = {key: value for key, value in options.items() if key.startswith("limit_")}
        try:
            return *_open(stores, task.stand_in, limits, data_dir, task.task), str(e)
        except tasks.TaskUnavailable as second:
            raise UserError(f"{e}\nIts stand-in cannot be had either: {second}") from second


def _open(
    stores: Stores, name: str, options: Mapping[str, Any], data_dir: Path | None, stand_in_for: str | None
) -> tuple[TaskSpec, dict[str, Any]]:
    facts = task_facts.facts(stores, name, options, data_dir)
    return TaskSpec(facts["name"], facts["fingerprint"], tasks.card(name).version, stand_in_for, options), facts


def _with_paths(experiment: Experiment, task: TaskSection) -> dict[str, Any]:
    """Return the task's options, with the paths of a local task relative to the working directory."""
    options = task.options
    if task.task != "local":
        return options
    here = Path.cwd()
    for key in FILES:
        if isinstance(options.get(key), str):
            path = (experiment.file.parent / Path(options[key]).expanduser()).resolve()
            options[key] = (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()
    return options


def _repeated_names(experiment: Experiment, names: list[tuple[int, str]]) -> list[str]:
    """Return a message for each repeated name of a task, because tables are by the task's name."""
    seen: dict[str, int] = {}
    mistakes = []
    for i, name in names:
        if name in seen:
            message = f"{name} runs already as tasks[{seen[name]}]; tables need unique tasks"
            mistakes.append(
                str(experiment.error(("tasks", i), f"{message}: remove one, or change its stand_in or name"))
            )
        seen.setdefault(name, i)
    return mistakes


def _backbone(experiment: Experiment) -> BackboneSpec:
    b = experiment.backbone
    try:
        fingerprint = model_facts.fingerprint(b.model, b.revision)
    except UserError as e:
        raise experiment.error(("backbone",), str(e)) from e
    return BackboneSpec(
        model=b.model,
        fingerprint=fingerprint,
        revision=b.revision,
        roles=b.roles,
        dtype=experiment.dtype,
        dropout=experiment.backbone_dropout,
        gradient_checkpointing=experiment.gradient_checkpointing,
        compile=experiment.compile,
    )
