"""`axes:` of an experiment: lists of values that every run is repeated over, so that scores become curves.

    axes: {train_size: [100, 300, 1000, all], steps: [100, 300], rank: [2, 4, 8]}

- `train_size`: rows of the training split. The smaller sets are inside the larger ones; validation and test stay.
- `steps`: optimiser steps of a run.
- any other name: a whole-number hyperparameter. Methods without it run once, and their rows belong to every value.

Several axes give their product. A run on an axis is the run that the file without axes would have, with the value in
its usual place: `limit_train` of the task, `steps` of the budget, the hyperparameter of the method. So it has that
run's identity.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic.json_schema import WithJsonSchema

from peftbench.errors import UserError, shown
from peftbench.plan import limits

if TYPE_CHECKING:
    from peftbench.plan.experiment import Experiment, TaskSection

ALL = "all"  # the training size that is every row
OF_TASKS = ("train_size", "steps")  # axes whose values belong to the task; the others belong to the methods
LIMIT = "limit_train"  # the option of a task that a training size is

Value = int | str
Point = Mapping[str, Value]  # a value of each axis


def _values(value: Any, most: int, words: tuple[str, ...] = ()) -> tuple[Value, ...]:
    """Return the values of an axis in ascending order, `all` last."""
    valid = f"whole numbers from 1 to {most:,}{''.join(f', or {word}' for word in words)}"
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"given {shown(value)}; an axis is a list of {valid}")
    for one in value:
        is_number = isinstance(one, int) and not isinstance(one, bool) and 1 <= one <= most
        if not is_number and one not in words:
            raise ValueError(f"given {shown(one)}; the values of this axis are {valid}")
    if len(value) > limits.AXIS:
        raise ValueError(f"{len(value):,} values; an axis has at most {limits.AXIS}")
    if repeated := [one for i, one in enumerate(value) if one in value[:i]]:
        raise ValueError(f"{shown(repeated[0])} is given twice; the values of an axis differ")
    return tuple(sorted(value, key=lambda one: (isinstance(one, str), one)))


def _axis(most: int, *words: str) -> tuple[PlainValidator, WithJsonSchema]:
    """Return what checks and describes the values of an axis."""
    number = {"type": "integer", "minimum": 1, "maximum": most}
    items: dict[str, Any] = {"anyOf": [number, *({"const": word} for word in words)]} if words else number
    schema = {"type": "array", "minItems": 1, "uniqueItems": True, "items": items}
    return PlainValidator(lambda value: _values(value, most, words)), WithJsonSchema(schema)


class AxesSection(BaseModel):
    """Values that every run is repeated over. A further key is a hyperparameter: `rank: [2, 4, 8]`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, Annotated[tuple[Value, ...], *_axis(limits.HYPERPARAMETER)]]

    train_size: Annotated[tuple[Value, ...] | None, *_axis(limits.ROWS, ALL)] = Field(
        None, description="training examples, the smaller sets inside the larger ones; all: every one"
    )
    steps: Annotated[tuple[Value, ...] | None, *_axis(limits.STEPS)] = Field(None, description="optimiser steps")

    @property
    def values(self) -> dict[str, tuple[Value, ...]]:
        """The values of each axis that the file has."""
        of_tasks = {name: getattr(self, name) for name in OF_TASKS if getattr(self, name) is not None}
        return {**of_tasks, **self.of_methods}

    @property
    def of_methods(self) -> dict[str, tuple[Value, ...]]:
        """The values of each axis that is a hyperparameter."""
        return dict(self.model_extra or {})


def points(section: AxesSection) -> Iterator[Point]:
    """Yield a value of each axis that belongs to the task, for all their combinations; one empty point without axes."""
    mine = {name: values for name, values in section.values.items() if name in OF_TASKS}
    for combination in itertools.product(*mine.values()):
        yield dict(zip(mine, combination, strict=True))


def at(task: TaskSection, point: Point) -> TaskSection:
    """Return the section of a task with the values of a point in their places."""
    changes = {"steps": point["steps"]} if "steps" in point else {}
    if point.get("train_size", ALL) != ALL:
        changes[LIMIT] = point["train_size"]
    return task.model_copy(update=changes) if changes else task


def title(task: str, point: Point) -> str:
    """Return the name of a task's data at a point.

    >>> title("glue/rte", {"train_size": 100, "steps": 40}), title("glue/rte", {"steps": 40})
    ('glue/rte, train_size 100', 'glue/rte')
    """
    return f"{task}, train_size {point['train_size']}" if "train_size" in point else task


def conflicts(experiment: Experiment) -> Iterator[UserError]:
    """Yield an error for each value that an axis has and another place of the file gives, too."""
    values, b = experiment.axes.values, experiment.budget
    sizes = [size for size in values.get("train_size", ()) if isinstance(size, int)]
    if "steps" in values and b.length_unit != "steps":
        message = f"the budget counts {b.length_unit}, so that its runs have no steps to vary; remove one of the two"
        yield experiment.error(("axes", "steps"), message)
    elif "steps" in values and "steps" in b.model_fields_set:
        yield experiment.error(("budget", "steps"), _twice("steps"))
    for i, task in enumerate(experiment.tasks):
        batch = task.batch_size or b.batch_size
        if "steps" in values and task.steps is not None:
            yield experiment.error(("tasks", i, "steps"), _twice("steps"))
        if "train_size" in values and LIMIT in task.options:
            yield experiment.error(("tasks", i, LIMIT), _twice("train_size"))
        if sizes and sizes[0] < batch:
            message = f"{sizes[0]} examples are less than a batch of {batch} on {task.task}; give at least {batch}"
            yield experiment.error(("axes", "train_size"), message)
    for entry in experiment.methods:
        for name in values.keys() & entry.hyper.keys():
            yield experiment.error((*entry.place, name), _twice(name))


def _twice(name: str) -> str:
    return f"given here, and as the axis {name}; a run has one value: remove one of the two"
