"""Read an experiment: YAML -> `Experiment`.

A mistake is reported with its file, its place (`methods[2].lora.rank`), its line, the given value and the valid ones.
One `UserError` lists all mistakes of a file that can be found at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftbench import errors
from peftbench.errors import UserError, nearest, shown, unknown
from peftbench.plan import axes, parallel, strict_yaml
from peftbench.plan import overrides as overrides_
from peftbench.plan.experiment import (
    EXEMPTIBLE,
    FORMS,
    LENGTH_UNITS,
    RESERVED,
    BackboneSection,
    BudgetSection,
    ClaimSection,
    Experiment,
    LatencySection,
    MethodEntry,
    ParallelSection,
    ProfileSection,
    Section,
    SeedsSection,
    TaskSection,
    TimeoutSection,
    TrainSection,
)
from peftbench.plan.strict_yaml import Document, Place
from peftbench.records import user_file
from peftbench.tasks import local
from peftbench.tasks.dataset import LIMITS

EXPECTED = {  # what a missing or malformed value must be
    "name": "a name of ASCII letters, digits, dots, dashes and underscores that begins with a letter or a digit, "
    "such as glue_small",
    "device": "auto, cpu, cuda, cuda:N or mps",
    "model": "a preset, a directory or a hub id, e.g. model: minilm-l6",
    "task": "a name that `peftbench tasks` lists, e.g. task: glue/rte",
    "backbone": "the base model, e.g. backbone: minilm-l6",
    "tasks": "a list of tasks, e.g. tasks: [embedded/question_type]",
    "methods": "a list of methods, e.g. methods: [full, lora]",
    "method": "the label of one of the methods, e.g. method: lora",
}
SECTIONS: dict[Place, type[Section]] = {
    ("backbone",): BackboneSection,
    ("budget",): BudgetSection,
    ("budget", "seeds"): SeedsSection,
    ("train",): TrainSection,
    ("profile",): ProfileSection,
    ("profile", "latency"): LatencySection,
    ("timeout",): TimeoutSection,
    ("parallel",): ParallelSection,
}
Source = str | Path | Mapping[str, Any] | Experiment
IN_MEMORY = Path("experiment")  # stands for the file's path in messages about an experiment that has no file


def load(source: Source, added: Sequence[str] = (), overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment.

    Args:
        source: the path of a YAML file, the name of a packaged experiment (`quickstart`), the mapping that a file would
            hold, or an experiment that was read before.
        added: further items of `methods`, written as in the file: `mine`, `mine: {lr: 1e-3}`.
        overrides: `KEY=VALUE` texts that replace values of the file: `budget.steps=10` (see overrides.py).

    Raises:
        UserError: the file is missing or has mistakes; the message lists all of them.
    """
    document = _document(source)
    if not isinstance(document.value, dict):
        what = "is empty" if document.value is None else f"holds a {type(document.value).__name__}"
        raise UserError(f"{document.path}: {what}; an experiment is a mapping with name, backbone, tasks, methods, ...")
    if isinstance(source, Experiment):
        added = (*source.added, *added)
    document = overrides_.apply(document, overrides)
    mistakes: list[UserError] = []
    plain = _normalised(document, mistakes)
    _add(document, plain, added, mistakes)
    try:
        experiment = Experiment.model_validate(plain) if not mistakes else None
    except ValidationError as e:
        mistakes += [_explained(document, error) for error in e.errors() if not _is_redundant(error)]
    mistakes += _misspelt(document, plain)
    if mistakes or experiment is None:
        raise UserError("\n".join(dict.fromkeys(map(str, mistakes))))
    earlier = source.overrides if isinstance(source, Experiment) else ()
    experiment._document, experiment._added, experiment._overrides = document, tuple(added), (*earlier, *overrides)
    if conflicts := list(_conflicts(experiment)):
        raise UserError("\n".join(map(str, conflicts)))
    return experiment


def _document(source: Source) -> Document:
    if isinstance(source, Experiment):
        return source._document
    if isinstance(source, Mapping):
        return Document(IN_MEMORY, _as_file(source), {})
    return strict_yaml.load(find(source))


def _as_file(source: Mapping[str, Any]) -> Any:
    """Return a mapping of Python as a file would give it."""
    try:
        return json.loads(json.dumps(source, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the experiment's mapping cannot be written as JSON ({error}); give plain values") from error


def _conflicts(experiment: Experiment) -> Iterator[UserError]:
    """Yield an error for each conflict between sections, at the place to change."""
    b = experiment.budget
    for i, task in enumerate(experiment.tasks):
        for name in LENGTH_UNITS:
            if name != b.length_unit and getattr(task, name) is not None:
                message = f"the budget counts {b.length_unit}, and so must every task: write {b.length_unit}: ... here"
                yield experiment.error(("tasks", i, name), message)
        yield from invalid_exemptions(experiment, task.exempt, ("tasks", i, "exempt"))
    if b.seconds is not None and (experiment.jobs or 1) > 1:
        message = "runs that share the machine would get less done in the seconds of the budget; write jobs: 1"
        yield experiment.error(("jobs",), message)
    yield from axes.conflicts(experiment)
    yield from parallel.conflicts(experiment)


def invalid_exemptions(experiment: Experiment, exempt: Mapping[str, str], place: Place) -> Iterator[UserError]:
    """Yield an error for each exemption from an unknown budget, or from one that the experiment does not have.

    Args:
        experiment: the experiment.
        exempt: the reasons by the budget's name.
        place: where the exemptions are in the file.
    """
    for axis in exempt:
        if axis not in EXEMPTIBLE:
            yield unknown("budget", axis, EXEMPTIBLE, where=experiment.where((*place, axis)))
        elif getattr(experiment.budget, axis) is None:
            yield experiment.error((*place, axis), f"there is no budget of {axis} to be exempt from; remove it")


def find(source: str | Path) -> Path:
    """Return the path of an experiment file.

    Args:
        source: a path, or the name of a packaged experiment.

    Raises:
        UserError: there is neither such a file nor such a packaged experiment.
    """
    path = user_file.expanded(source)
    if user_file.exists(path):  # reading it refuses what is no file
        return path
    known = packaged()
    if str(source) in known:
        return known[str(source)]
    in_folder = [str(p) for p in path.parent.glob("*.y*ml")] if user_file.is_folder(path.parent) else []
    near = nearest(source, [*in_folder, *known])
    hint = f"; did you mean {near}?" if near else "."
    raise UserError(f"no experiment file {source}{hint} Packaged experiments: {', '.join(known) or 'none'}")


def packaged() -> dict[str, Path]:
    """Return the paths of the experiments that come with peftbench, by name: `quickstart`, `paper/lora_rank`."""
    from importlib.resources import files

    folder = Path(str(files("peftbench.experiments")))
    paths = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("paper/*.yaml"))]
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in paths}


def _normalised(document: Document, mistakes: list[UserError]) -> dict[str, Any]:
    """Write out the shorthands of the file, so that each place has one type."""
    plain = dict(document.value)
    if isinstance(plain.get("backbone"), str):
        plain["backbone"] = {"model": plain["backbone"]}
    if isinstance(limit := plain.get("timeout"), int | float) and not isinstance(limit, bool):
        plain["timeout"] = {"run": limit}
    if isinstance(plain.get("tasks"), list):
        plain["tasks"] = tuple({"task": t} if isinstance(t, str) else t for t in plain["tasks"])
    if plain.get("parallel"):
        plain.setdefault("profile", False)  # a profile pass measures one process
    if isinstance(plain.get("profile"), bool):
        plain["profile"] = {} if plain["profile"] else None
    elif "profile" in plain and plain["profile"] is None:
        mistakes.append(
            document.error(("profile",), "given nothing; valid: false, or a mapping with processes, rounds and warmup")
        )
    if isinstance(plain.get("methods"), list):
        entries = []
        for i, item in enumerate(plain["methods"]):
            try:
                entries.append(_entry(document, item, ("methods", i)))
            except UserError as mistake:
                mistakes.append(mistake)
        plain["methods"] = tuple(entries)
    return plain


def _add(document: Document, plain: dict[str, Any], added: Sequence[str], mistakes: list[UserError]) -> None:
    """Append the methods of the command line to those of the file."""
    for text in added:
        place = (f"--method {shown(text)}",)
        document.lines[place] = 0  # it has no line
        try:
            entry = _entry(document, strict_yaml.scalar(text), place)
        except UserError as mistake:
            mistakes.append(mistake)
            continue
        if isinstance(plain.get("methods", ()), tuple):
            plain["methods"] = (*plain.get("methods", ()), entry)


def _entry(document: Document, item: Any, place: Place) -> MethodEntry:
    """Parse one item of `methods`: `lora` or `{lora: {rank: 4, label: small, lr: 1e-3}}`."""
    if isinstance(item, str):
        return MethodEntry(item, place)
    if not isinstance(item, dict) or len(item) != 1:
        raise document.error(place, f"given {shown(item)}; a method is a name, or {{name: {{hyperparameter: value}}}}")
    ((name, inner),) = item.items()
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise document.error((*place, name), f"given {shown(inner)}; valid: a mapping such as {{rank: 4, lr: 1e-3}}")
    hyper = {k: v for k, v in inner.items() if k not in RESERVED}
    label, lr, first, space, exempt = (inner.get(key) for key in RESERVED)
    return MethodEntry(name, (*place, name), label, lr, 0 if first is None else first, hyper, space, exempt)


def _is_redundant(error: Any) -> bool:
    """Whether pydantic reports a list as too short only because all its items are invalid."""
    return error["type"] == "too_short" and bool(error["input"])


def _explained(document: Document, error: Any) -> UserError:
    """Translate an error of pydantic into the terms of the file."""
    place: Place = tuple(part for part in error["loc"] if part not in FORMS)
    if error["type"] == "missing":
        return document.error(place[:-1], f"{place[-1]} is missing; it must be {EXPECTED[str(place[-1])]}")
    if error["type"] == "extra_forbidden":
        return _unknown_key(document, place)
    message = errors.validation_message(error)
    if error["type"] == "value_error":
        return document.error(place, message)
    if error["type"] == "string_pattern_mismatch":
        message = f"must be {EXPECTED[str(place[-1])]}"
    if error["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = "must be a mapping" + (f" with the keys {', '.join(_keys(place))}" if _keys(place) else "")
        message += ", or false" if place == ("profile",) else ""
    if error["type"] in ("tuple_type", "list_type") and str(place[-1]) in EXPECTED:
        message = f"must be {EXPECTED[str(place[-1])]}"
    return document.error(place, f"given {shown(error['input'])}; {message}")


def _unknown_key(document: Document, place: Place) -> UserError:
    """Name the valid keys; for a key that stands in a section, the path to it."""
    key, where = str(place[-1]), document.where(place)
    paths = [".".join((*map(str, section), key)) for section, model in SECTIONS.items() if key in model.model_fields]
    entries = document.value.get("methods")
    if isinstance(entries, list) and any(key in overrides_.names("methods", entry) for entry in entries):
        paths.append(f"methods.{key}")
    if len(place) > 1 or not paths:
        return unknown("key", key, _keys(place[:-1]), where=where)
    return UserError(f"{where}: unknown key {shown(key)}; did you mean {' or '.join(map(repr, paths))}?")


def _misspelt(document: Document, plain: Mapping[str, Any]) -> list[UserError]:
    """Find unknown keys of tasks that resemble a valid key. The tasks check all other keys as their options."""
    keys = [*TaskSection.model_fields, *LIMITS]
    mistakes = []
    for i, task in enumerate(plain["tasks"] if isinstance(plain.get("tasks"), tuple) else ()):
        for key in task if isinstance(task, dict) else ():
            if key not in (*keys, *local.OPTIONS) and get_close_matches(key, keys, n=1, cutoff=0.7):
                valid = [*keys, *(local.OPTIONS if task.get("task") == "local" else ())]
                mistakes.append(unknown("key", key, valid, where=document.where(("tasks", i, key))))
    return mistakes


def _keys(place: Place) -> list[str]:
    """Return the keys that are valid in the mapping at a place."""
    if not place:
        return list(Experiment.model_fields)
    if place[0] == "tasks":
        return list(TaskSection.model_fields)
    if place[0] == "claims":
        return [field.alias or name for name, field in ClaimSection.model_fields.items()]
    section = SECTIONS.get(place)
    return list(section.model_fields) if section else []
