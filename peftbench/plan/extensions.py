"""Further trials where the best value lies at an edge of what was tried: one rule for every method.

When all trials of a configuration have ended and a value of the best one lies at an edge, the space is extended there
and further trials are made in the new part. They vary that value alone and have the best trial's others. This repeats
until the best lies within, or the budget's number of extensions is reached.

The rule is a function of the trials' records alone: a grid that was killed makes the same trials when it resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.plan import tuning
from peftbench.plan.tuning import Space
from peftbench.records import trials
from peftbench.records.record import TrialRecord
from peftbench.records.spec import RunSpec
from peftbench.records.trials import Bounds

if TYPE_CHECKING:
    from peftbench.plan.grid import Planned

Values = Mapping[str, Any]  # "lr" or hyperparameter -> its value
Make = Callable[[int, Values, Space, Space], "Planned"]  # (number, values, space, space of the first trials) -> trial


@dataclass(frozen=True)
class Extensions:
    """The further trials of one configuration on one task.

    Attributes:
        number: how often the space is extended at most.
        trials: further trials for each value at an edge.
        bounds: the limits of each numeric hyperparameter of the space.
        defaults: the method's default hyperparameters.
        make: makes a trial.
    """

    number: int
    trials: int
    bounds: Mapping[str, Bounds]
    defaults: Values
    make: Make

    def most(self, space: Space, extended: int = 0) -> int:
        """Return the greatest number of trials that may come.

        Args:
            space: the search space.
            extended: how often it has been extended.
        """
        numeric = sum(any(trials.place(v, values) for v in values) for values in space.values())
        return max(0, self.number - extended) * self.trials * numeric

    def after(self, tried: Sequence[Planned], records: Sequence[TrialRecord]) -> list[Planned]:
        """Return the trials of the next extension; none if no value of the best trial lies at an edge.

        Args:
            tried: all trials so far, by number.
            records: their records.
        """
        best = tried[trials.best(records)].spec
        first, space = tried[0].spec.space, dict(tried[-1].spec.space)
        added: dict[str, list[Any]] = {}
        for key, side in trials.edges(records).items():
            space[key], added[key] = tuning.widened(key, space[key], side, self.bounds.get(key, {}), self.trials)
        kept = {key: self._value(best, key) for key in space}
        new: list[Planned] = []
        for key, values in added.items():
            for value in values:
                try:
                    new.append(self.make(len(tried) + len(new), {**kept, key: value}, space, first))
                except UserError:  # the method does not fit the network with it: the range ends here
                    break
        return new

    def _value(self, spec: RunSpec, key: str) -> Any:
        return spec.train.lr if key == "lr" else spec.method.hyper.get(key, self.defaults.get(key))
