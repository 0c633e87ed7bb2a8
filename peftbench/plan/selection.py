"""`--only key=value`: select a part of an experiment's grid.

Several values of one key select their union; several keys select the intersection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from peftbench.errors import UserError, unknown
from peftbench.plan.axes import Point
from peftbench.plan.configurations import Configuration
from peftbench.plan.experiment import Experiment, TaskSection

KEYS = ("method", "task", "seed")


@dataclass(frozen=True)
class Selection:
    """The selected values by key. An empty set selects everything."""

    methods: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    seeds: frozenset[int] = frozenset()
    axes: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, texts: Iterable[str], experiment: Experiment, configurations: Collection[Configuration]
    ) -> Selection:
        """Parse the texts of `--only`.

        Args:
            texts: `key=value` texts. A method is given by a label, or by its name for all its configurations.
            experiment: the experiment.
            configurations: the experiment's configurations.

        Raises:
            UserError: a text is not `key=value`, or the experiment does not have the key or the value.
        """
        valid = {
            "method": {name for c in configurations for name in (c.label, c.name)},
            "task": {name for task in experiment.tasks for name in names(task)},
            "seed": {str(seed) for seed in range(experiment.budget.most_seeds)},
            **{axis: {str(value) for value in values} for axis, values in experiment.axes.values.items()},
        }
        selected: dict[str, set[str]] = {key: set() for key in valid}
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals:
                raise UserError(f"--only {text}: write key=value, e.g. --only method=lora; keys: {', '.join(valid)}")
            if key not in valid:
                raise unknown("key", key, valid, where=f"--only {text}")
            if key == "seed" and not isinstance(experiment.budget.seeds, int):
                raise UserError(
                    f"--only {text}: seeds run until verdicts are sure; leave it out, or --set budget.seeds=N"
                )
            if value not in valid[key]:
                raise unknown(key, value, valid[key], where=f"--only {text}")
            selected[key].add(value)
        axes = {key: frozenset(values) for key, values in selected.items() if key not in KEYS and values}
        seeds = frozenset(map(int, selected["seed"]))
        return cls(frozenset(selected["method"]), frozenset(selected["task"]), seeds, axes)

    def has_task(self, task: TaskSection) -> bool:
        """Whether the task is selected."""
        return not self.tasks or not self.tasks.isdisjoint(names(task))

    def has_method(self, configuration: Configuration) -> bool:
        """Whether the configuration is selected."""
        named = not self.methods or not self.methods.isdisjoint((configuration.label, configuration.name))
        return named and self.has_point(configuration.point)

    def has_point(self, point: Point) -> bool:
        """Whether the values of the axes are selected. What does not depend on an axis belongs to all its values."""
        return all(str(value) in self.axes.get(axis, (str(value),)) for axis, value in point.items())

    def has_seed(self, seed: int) -> bool:
        """Whether the repetition with this number, counted from 0, is selected."""
        return not self.seeds or seed in self.seeds


def names(task: TaskSection) -> list[str]:
    """The names that select a task: its name in the file, its stand-in, and `local/NAME` for a local task."""
    name = task.options.get("name")
    local = [f"local/{name}"] if task.task == "local" and isinstance(name, str) else []
    return [n for n in (task.task, task.stand_in, *local) if n]
