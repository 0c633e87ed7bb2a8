"""`--only key=value`: select a part of an experiment's grid.

Several values of one key select their union; several keys select the intersection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from peftbench.errors import UserError, unknown
from peftbench.plan.configurations import Configuration
from peftbench.plan.experiment import Experiment, TaskSection

KEYS = ("method", "task", "seed")


@dataclass(frozen=True)
class Selection:
    """The selected values by key. An empty set selects everything."""

    methods: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    seeds: frozenset[int] = frozenset()

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
        }
        selected: dict[str, set[str]] = {key: set() for key in KEYS}
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals:
                raise UserError(f"--only {text}: write key=value, e.g. --only method=lora; keys: {', '.join(KEYS)}")
            if key not in KEYS:
                raise unknown("key", key, KEYS, where=f"--only {text}")
            if key == "seed" and not isinstance(experiment.budget.seeds, int):
                raise UserError(
                    f"--only {text}: seeds run until verdicts are sure; leave it out, or --set budget.seeds=N"
                )
            if value not in valid[key]:
                raise unknown(key, value, valid[key], where=f"--only {text}")
            selected[key].add(value)
        return cls(frozenset(selected["method"]), frozenset(selected["task"]), frozenset(map(int, selected["seed"])))

    def has_task(self, task: TaskSection) -> bool:
        """Whether the task is selected."""
        return not self.tasks or not self.tasks.isdisjoint(names(task))

    def has_method(self, configuration: Configuration) -> bool:
        """Whether the configuration is selected."""
        return not self.methods or not self.methods.isdisjoint((configuration.label, configuration.name))

    def has_seed(self, seed: int) -> bool:
        """Whether the repetition with this number, counted from 0, is selected."""
        return not self.seeds or seed in self.seeds


def names(task: TaskSection) -> list[str]:
    """The names that select a task: its name in the file, its stand-in, and `local/NAME` for a local task."""
    name = task.options.get("name")
    local = [f"local/{name}"] if task.task == "local" and isinstance(name, str) else []
    return [n for n in (task.task, task.stand_in, *local) if n]
