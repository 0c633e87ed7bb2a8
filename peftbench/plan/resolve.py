"""Resolve the tasks and the base model of an experiment: find data and model and collect their facts.

Stand-ins are decided here. If a task's data is not available, its stand-in runs in its place under the stand-in's own
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftbench import tasks
from peftbench.backbones.sites import Sites
from peftbench.backbones.source import PRESETS
from peftbench.cache import Stores
from peftbench.errors import WHERE_PATHS_START, UserError
from peftbench.plan import axes, model_facts, task_facts
from peftbench.plan.experiment import Experiment, TaskSection
from peftbench.plan.selection import Selection
from peftbench.plan.strict_yaml import Place
from peftbench.records import user_file
from peftbench.records.spec import DROPOUT_VERSION, BackboneSpec, TaskSpec

FILES = ("train", "validation", "test")  # options of a local task that are paths


@dataclass(frozen=True)
class TaskFacts:
    """A task that will run.

    Attributes:
        section: the task's section of the experiment file, with the values of `point` in their places.
        spec: the task that runs: the task of the file or its stand-in.
        kind: "classification", "regression" or "generation".
        mean_words: mean words of an example, answer included.
        rows: the number of examples by split.
        sites: the sites of the network that runs the task.
        unavailable: why the stand-in runs; None if the task itself runs.
        labels: outputs of the task head; 1 for regression and generation.
        point: the value of each axis that belongs to the task.
        written: the section as it stands in the file, if `section` has values of axes.
    """

    section: TaskSection
    spec: TaskSpec
    kind: str
    mean_words: float
    rows: Mapping[str, int]
    sites: Sites
    unavailable: str | None = None
    labels: int = 1
    point: axes.Point = field(default_factory=dict)
    written: TaskSection | None = None

    @property
    def title(self) -> str:
        """The name of its data: the task's name, and the training size where that is an axis."""
        return axes.title(self.spec.name, self.point)

    def is_written_as(self, section: TaskSection) -> bool:
        """Whether a section of the file is the one that this task comes from."""
        return section is (self.written or self.section)


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
    points = [point for point in axes.points(experiment.axes) if selection.has_point(point)]
    for i, task in enumerate(experiment.tasks):
        for point in points if selection.has_task(task) else ():
            try:
                found = _open_or_stand_in(experiment, axes.at(task, point), i, stores, data_dir)
                opened.append((i, task, point, *found))
            except UserError as e:
                mistakes.append(str(experiment.error(("tasks", i), str(e))))
    mistakes += _repeated_names(experiment, list(dict.fromkeys((i, spec.name) for i, _, _, spec, _, _ in opened)))
    mistakes += _sizes_beyond(experiment, [(spec, point, facts) for _, _, point, spec, facts, _ in opened])
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))
    backbone = _backbone(experiment)
    task_facts = []
    for i, task, point, spec, facts, unavailable in opened:
        try:
            causal = facts["kind"] == "generation"
            labels = len(facts["labels"]) or 1
            sites = model_facts.sites(stores, backbone.model, labels, causal, backbone.revision, backbone.roles)
        except UserError as e:
            raise experiment.error(("backbone",), f"{e} (for task {spec.name}, tasks[{i}])") from e
        known = (facts["kind"], facts["mean_words"], facts["rows"])
        section = axes.at(task, point)
        task_facts.append(TaskFacts(section, spec, *known, sites, unavailable, labels, point, task))
    return Facts(_with_version(experiment, backbone, stores), tuple(task_facts))


def _with_version(experiment: Experiment, backbone: BackboneSpec, stores: Stores) -> BackboneSpec:
    """Return the backbone with the version of its dropout masks; a network without dropout has none but the first."""
    version = experiment.dropout_version or (1 if experiment.compile else DROPOUT_VERSION)
    if version == 1 or not any(model_facts.dropouts(stores, backbone).values()):
        return backbone
    if experiment.compile:
        message = f"{version} is not for compiled networks, which draw torch's masks; give 1, or leave out compile"
        raise experiment.error(("dropout_version",), message)
    return replace(backbone, dropout_version=version)


def _sizes_beyond(experiment: Experiment, opened: list[tuple[TaskSpec, axes.Point, dict[str, Any]]]) -> list[str]:
    """Return a message for each training size that a task does not have, or has under another name."""
    mistakes, seen = list[str](), dict[tuple[str, str], axes.Value]()
    for spec, point, facts in opened:
        if "train_size" in point:
            size, rows = point["train_size"], facts["rows"]["train"]
            first = seen.setdefault((spec.name, facts["fingerprint"]), size)
            if isinstance(size, int) and rows < size:
                message = f"{size:,} examples, and {spec.name} has {rows:,} to train on; write all for every one"
                mistakes.append(str(experiment.error(("axes", "train_size"), message)))
            elif first != size:
                message = f"{first} and {size} are the same {rows:,} examples of {spec.name}; remove one of the two"
                mistakes.append(str(experiment.error(("axes", "train_size"), message)))
    return mistakes


def _open_or_stand_in(
    experiment: Experiment, task: TaskSection, number: int, stores: Stores, data_dir: Path | None
) -> tuple[TaskSpec, dict[str, Any], str | None]:
    """Return the task that runs, its facts, and why it is the stand-in (None if it is not)."""
    options = _with_paths(experiment, task, number)
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


def _with_paths(experiment: Experiment, task: TaskSection, number: int) -> dict[str, Any]:
    """Return the options of a task, with the paths of a local task as `_path` finds them."""
    options = task.options
    if task.task == "local":
        for key in FILES:
            if isinstance(options.get(key), str):
                options[key] = _path(experiment, ("tasks", number, key), options[key])
    return options


def _path(experiment: Experiment, place: Place, written: str) -> str:
    """Return a path that stands in an experiment, relative to the working directory if it lies inside that.

    In a file, a relative path starts at the file's folder; in an option of the command line, at the working directory.
    """
    here = Path.cwd()
    start = here if experiment.is_from_option(place) else experiment.file.parent
    path = user_file.resolved(start / user_file.expanded(written))
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


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
        model = _model(experiment)
        fingerprint = model_facts.fingerprint(model, b.revision)
    except UserError as e:
        raise experiment.error(("backbone",), str(e)) from e
    return BackboneSpec(
        model=model,
        fingerprint=fingerprint,
        revision=b.revision,
        roles=b.roles,
        dtype=experiment.dtype,
        dropout=experiment.backbone_dropout,
        gradient_checkpointing=experiment.gradient_checkpointing,
        compile=experiment.compile,
    )


def _model(experiment: Experiment) -> str:
    """Return the base model: a preset, a directory that `_path` finds, or else a hub id.

    Raises:
        UserError: there is no such directory where paths of this experiment start.
    """
    written = experiment.backbone.model
    found, from_here = _path(experiment, ("backbone", "model"), written), user_file.expanded(written)
    if written in PRESETS or (user_file.is_folder(from_here) and from_here.resolve() == Path(found).resolve()):
        return written  # as written, because it is part of the identity of runs
    if user_file.is_folder(Path(found)):
        return f"./{found}" if found in PRESETS else found
    if user_file.is_folder(from_here) or written.startswith((".", "/", "~")):
        raise UserError(
            f"there is no directory {Path(found).absolute()}. {WHERE_PATHS_START}. A backbone is one of "
            f"{', '.join(PRESETS)}, a directory, or a hub id"
        )
    return written
