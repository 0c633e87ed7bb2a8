"""`--only key=value`: a part of an experiment's grid. The same key twice is an or, different keys are an and."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from peftbench.errors import UserError, unknown
from peftbench.plan.configurations import Configuration
from peftbench.plan.experiment import Experiment, Task

KEYS = ("method", "task", "seed")


@dataclass(frozen=True)
class Only:
    """What was asked for, by key; an empty set is everything."""

    methods: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    seeds: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, given: Iterable[str], experiment: Experiment, configurations: Collection[Configuration]) -> Only:
        """From the command line. Raises UserError for a key or value that the experiment does not have.

        A method is named by its label, or by its name, which means all of its configurations.
        """
        valid = {
            "method": {name for c in configurations for name in (c.label, c.name)},
            "task": {name for task in experiment.tasks for name in _names(task)},
            "seed": {str(seed) for seed in range(experiment.budget.seeds)},
        }
        wanted: dict[str, set[str]] = {key: set() for key in KEYS}
        for text in given:
            key, equals, value = text.partition("=")
            if not equals:
                raise UserError(f"--only {text}: write key=value, e.g. --only method=lora; keys: {', '.join(KEYS)}")
            if key not in KEYS:
                raise unknown("key", key, KEYS, where=f"--only {text}")
            if value not in valid[key]:
                raise unknown(key, value, valid[key], where=f"--only {text}")
            wanted[key].add(value)
        return cls(frozenset(wanted["method"]), frozenset(wanted["task"]), frozenset(map(int, wanted["seed"])))

    def has_task(self, task: Task) -> bool:
        return not self.tasks or not self.tasks.isdisjoint(_names(task))

    def has_method(self, configuration: Configuration) -> bool:
        return not self.methods or not self.methods.isdisjoint((configuration.label, configuration.name))

    def has_seed(self, seed: int) -> bool:
        return not self.seeds or seed in self.seeds


def _names(task: Task) -> list[str]:
    """What a task may be called: as in the file, by its stand-in, and a local one by its own name."""
    named = task.options.get("name")
    local = [f"local/{named}"] if task.task == "local" and isinstance(named, str) else []
    return [n for n in (task.task, task.stand_in, *local) if n]
