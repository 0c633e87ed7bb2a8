"""What a record may make `verify` do: how much of it, and which files it may make it read.

A record may come from a stranger, and a repeat does what its specification asks. It loads no plugin that the record
names, and writes nowhere but into its own directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftbench.backbones import source
from peftbench.errors import UserError, unknown
from peftbench.records.spec import BackboneSpec, RunSpec, TaskSpec

LIMITS: Mapping[str, int] = {
    "steps": 100_000,  # optimiser steps
    "batch_size": 4_096,  # examples of a step
    "max_length": 32_768,  # tokens of an example, generated ones included
    "step_tokens": 2_000_000,  # batch_size times max_length
    "examples": 50_000_000,  # steps times batch_size: the epochs
    "evaluations": 10_000,  # on the validation split
    "hyperparameter": 4_096,  # any whole number among a method's: a rank, a width, a length
    "task_option": 10_000_000,  # any whole number among a task's: a number of rows or tokens
}


def parse(given: Sequence[str]) -> dict[str, int]:
    """Return the limits with those of the command line in their places.

    Args:
        given: texts such as "steps=200000".

    Raises:
        UserError: a text is no limit.
    """
    limits = dict(LIMITS)
    for text in given:
        name, _, number = text.partition("=")
        if name not in LIMITS:
            raise unknown("limit", name, LIMITS, where="--limit")
        if not (number.isascii() and number.replace("_", "").isdigit() and len(number) < 19):
            raise UserError(f"--limit {text}: must be a name and a whole number, such as steps=200000")
        limits[name] = int(number)
    return limits


def exceeded(spec: RunSpec, limits: Mapping[str, int]) -> str | None:
    """Return why a run is too much to repeat; None if it is not.

    Args:
        spec: the run's specification.
        limits: the largest value of each kind.
    """
    over = {name: (value, what) for name, value, what in _sizes(spec) if value > limits[name]}
    if not over:
        return None
    asked = "; ".join(
        f"{what} {value:,}, and verify repeats at most {limits[n]:,}" for n, (value, what) in over.items()
    )
    raised = " ".join(f"--limit {name}={value}" for name, (value, _) in over.items())
    return f"it asks for {asked}. If you trust it: {raised}"


def outside(backbone: BackboneSpec, task: TaskSpec, data_dir: Path | None, roots: Sequence[Path]) -> str | None:
    """Return which file outside the given directories a run would read; None if there is none.

    Args:
        backbone: the run's base model.
        task: the run's task.
        data_dir: the folder with data sets; it may be read.
        roots: the directories that may be read: the working directory, and that of the records.

    Raises:
        UserError: there is no task of this name, or a file of it is not there.
    """
    from peftbench import tasks

    model = Path(backbone.model).expanduser()
    read = [] if backbone.model in source.PRESETS or not _is_path(backbone.model, model) else [model]
    given = [*roots, *([data_dir] if data_dir else [])]
    read += [p for p in tasks.files(task.name, task.options, data_dir) if task.name.startswith("local/")]
    for path in read:
        if not any(path.resolve().is_relative_to(root.resolve()) for root in given):
            return (
                f"it reads {path}, outside the working directory, that of the records and --data-dir. If you trust the "
                "record, run verify in a directory above that file"
            )
    return None


def _is_path(text: str, path: Path) -> bool:
    try:
        return text.startswith((".", "/", "~")) or path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _sizes(spec: RunSpec) -> Iterator[tuple[str, int, str]]:
    """Yield (limit, value, what the value is) for what a run's cost grows with."""
    train = spec.train
    yield "steps", train.steps, "steps:"
    yield "batch_size", train.batch_size, "a batch size of"
    yield "max_length", train.max_length, "a max_length of"
    yield "step_tokens", train.batch_size * train.max_length, "tokens in a step:"
    yield "examples", train.steps * train.batch_size, "examples in all steps:"
    yield "evaluations", train.steps // (train.eval_every or max(train.steps, 1)), "evaluations:"
    for key, value in _numbers(spec.method.hyper):
        yield "hyperparameter", value, f"{spec.method.name}.{key}"
    for key, value in _numbers(spec.task.options):
        yield "task_option", value, f"{spec.task.name}.{key}"


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield the size of every whole number in JSON values, with the key that leads to it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(inner, key or str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner, key)
    elif isinstance(value, int):
        yield key, abs(value)
