"""What limits a run other than steps: training tokens, seconds, memory. Pure: what must be measured is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from peftbench.errors import UserError
from peftbench.plan.experiment import Budget, Experiment
from peftbench.plan.resolve import TaskFacts
from peftbench.records.spec import BackboneSpec, RunSpec, TaskSpec, TrainSpec


@dataclass(frozen=True)
class Measures:
    """What texts and networks must be asked for, where a budget depends on it."""

    mean_tokens: Callable[[BackboneSpec, TaskSpec, int], float]  # of a training example, at a largest length
    peak: Callable[[RunSpec, TaskFacts], int]  # bytes of a step of the run on the largest batch that there can be


def _unasked(*_: object) -> float:
    raise NotImplementedError("planning with this budget needs the measures of texts and networks")


NONE = Measures(_unasked, _unasked)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Length:
    """How long a run is: its steps, and the budget that they follow from; no steps where seconds limit it."""

    steps: int
    tokens: int | None = None
    seconds: float | None = None


def of(experiment: Experiment, task: TaskFacts, backbone: BackboneSpec, measures: Measures) -> Length:
    """The length of every run on a task, the same for all methods."""
    b, asked = experiment.budget, task.asked
    if b.seconds is not None:
        return Length(0, seconds=asked.seconds or b.seconds)
    if b.tokens is None:
        return Length(asked.steps or b.steps)
    tokens = asked.tokens or b.tokens
    mean = measures.mean_tokens(backbone, task.spec, asked.max_length or b.max_length)
    return Length(steps_for(tokens, asked.batch_size or b.batch_size, mean), tokens=tokens)


def steps_for(tokens: int, batch_size: int, mean: float) -> int:
    """The least number of steps whose batches have so many tokens, with examples of the mean length.

    >>> steps_for(1000, 4, 25.0), steps_for(1001, 4, 25.0), steps_for(1, 4, 25.0)
    (10, 11, 1)
    """
    return max(1, math.ceil(tokens / (batch_size * mean)))


def within_memory(budget: Budget, spec: RunSpec, task: TaskFacts, measures: Measures) -> TrainSpec:
    """The run's training with its batch in the fewest parts of which a step fits; the batch itself stays as it is.

    Raises UserError where not even single examples fit.
    """
    limit = budget.memory_bytes
    if limit is None:
        return spec.train
    train = replace(spec.train, memory=limit, accumulation=1)
    if "memory" in spec.method.exempt:
        return train

    def peak(parts: int) -> int:
        return measures.peak(replace(spec, train=replace(train, accumulation=parts)), task)

    try:
        parts = fewest_parts(limit, train.batch_size, peak)
    except UserError as e:
        raise UserError(f"its memory is not known, so a budget of it cannot hold: {e}. {_FIX}") from e
    if parts is None:
        least = peak(train.batch_size)
        raise UserError(
            f"a step on a single example of {train.max_length} tokens takes {least:,} bytes on {spec.task.name}, and "
            f"the budget of memory has {limit:,}. Raise it, lower max_length, set gradient_checkpointing: true, or "
            f"{_FIX}"
        )
    return replace(train, accumulation=parts)


_FIX = "exempt the method with a reason, as in exempt: {memory: why}"


def fewest_parts(limit: int, batch_size: int, peak: Callable[[int], int]) -> int | None:
    """The fewest parts of a batch with which a step's peak is within the limit; None where none is.

    By bisection over the examples of a part: more of them never take less.

    >>> fewest_parts(50, 16, lambda parts: 10 * -(-16 // parts))
    4
    """

    def fits(examples: int) -> bool:
        return peak(math.ceil(batch_size / examples)) <= limit

    if fits(batch_size):
        return 1
    low, high = 0, batch_size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return math.ceil(batch_size / low) if low else None
