"""What planning needs to know of the tasks and the base model, gathered before anything runs; imports no torch itself.

Here stand-ins are decided: a task whose data cannot be had is replaced by the one that the experiment names for the
case, and from here on bears that one's name.
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
from peftbench.plan import model_facts
from peftbench.plan.experiment import Experiment, Task
from peftbench.plan.selection import Only
from peftbench.records.spec import BackboneSpec, TaskSpec

FILES = ("train", "validation", "test")  # options of a local task that are paths, relative to the experiment's file


@dataclass(frozen=True)
class TaskFacts:
    """A task that will run: what was written, what really runs, and the sites of the network that it is run on."""

    asked: Task
    spec: TaskSpec
    kind: str
    mean_words: float  # of an example, answer included
    rows: Mapping[str, int]  # by split
    sites: Sites
    unavailable: str | None = None  # why the task asked for is not what runs
    labels: int = 1  # outputs of the head; 1 where a value is predicted or a text is written


@dataclass(frozen=True)
class Facts:
    backbone: BackboneSpec
    tasks: tuple[TaskFacts, ...]


def gather(experiment: Experiment, only: Only, stores: Stores, data_dir: Path | None = None) -> Facts:
    """The facts about the tasks that `only` leaves and about their base model.

    Raises UserError where a task or model is unknown or cannot be had and nothing stands in for it; all tasks are
    looked at before it is raised.
    """
    prepared, mistakes = [], []
    for i, task in enumerate(experiment.tasks):
        if only.has_task(task):
            try:
                prepared.append((i, task, *_prepare(experiment, i, task, data_dir)))
            except UserError as e:
                mistakes.append(str(experiment.error(("tasks", i), str(e))))
    _refuse_twice(experiment, prepared, mistakes)
    if mistakes:
        raise UserError("\n".join(mistakes))
    backbone = _backbone(experiment)
    facts = []
    for i, task, spec, told, unavailable in prepared:
        try:
            causal = told["kind"] == "generation"
            labels = len(told["labels"]) or 1
            sites = model_facts.sites(stores, backbone.model, labels, causal, backbone.revision, backbone.roles)
        except UserError as e:
            raise experiment.error(("backbone",), f"{e} (for task {spec.name}, tasks[{i}])") from e
        facts.append(TaskFacts(task, spec, told["kind"], told["mean_words"], told["rows"], sites, unavailable, labels))
    return Facts(backbone, tuple(facts))


def _prepare(
    experiment: Experiment, i: int, task: Task, data_dir: Path | None
) -> tuple[TaskSpec, dict[str, Any], str | None]:
    options = _with_paths(experiment, task)
    if task.stand_in is not None:
        tasks.card(task.stand_in)  # an unknown name must be seen where the task itself can be had, too
    try:
        return *_open(task.task, options, data_dir, None), None
    except tasks.TaskUnavailable as e:
        if task.stand_in is None:
            raise UserError(f"{e} Or name a task to run instead: {{task: {task.task}, stand_in: embedded/...}}") from e
        limits = {key: value for key, value in options.items() if key.startswith("limit_")}
        try:
            return *_open(task.stand_in, limits, data_dir, task.task), str(e)
        except tasks.TaskUnavailable as other:
            raise UserError(f"{e}\nIts stand-in cannot be had either: {other}") from other


def _open(
    name: str, options: Mapping[str, Any], data_dir: Path | None, stand_in_for: str | None
) -> tuple[TaskSpec, dict[str, Any]]:
    card = tasks.card(name)
    told = tasks.facts(tasks.open_task(name, options, data_dir))
    return TaskSpec(told["name"], told["fingerprint"], card.version, stand_in_for, options), told


def _with_paths(experiment: Experiment, task: Task) -> dict[str, Any]:
    """The task's options, a local task's files relative to the working directory, as the results directory is."""
    options = task.options
    if task.task != "local":
        return options
    here = Path.cwd()
    for key in FILES:
        if isinstance(options.get(key), str):
            path = (experiment.file.parent / Path(options[key]).expanduser()).resolve()
            options[key] = (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()
    return options


def _refuse_twice(experiment: Experiment, prepared: list[Any], mistakes: list[str]) -> None:
    """Two tasks of one name would share their rows in the tables."""
    seen: dict[str, int] = {}
    for i, _, spec, _, _ in prepared:
        if spec.name in seen:
            said = f"{spec.name} runs already as tasks[{seen[spec.name]}]; tables need unique tasks"
            mistakes.append(str(experiment.error(("tasks", i), f"{said}: remove one, or change its stand_in or name")))
        seen.setdefault(spec.name, i)


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
