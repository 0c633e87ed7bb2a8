"""The limits of a run: its length in steps, training tokens or seconds, and the memory of a step.

Nothing is measured here. The caller passes `Measures`, which know texts and networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from peftbench.errors import UserError
from peftbench.plan.experiment import BudgetSection, Experiment, ProfileSection
from peftbench.plan.resolve import TaskFacts
from peftbench.records.spec import BackboneSpec, RunSpec, TaskSpec, TrainSpec


@dataclass(frozen=True)
class Measures:
    """Measurements of texts and networks: what budgets of tokens and of memory need, and what cannot run.

    Attributes:
        mean_tokens: tokens of a mean training example, from the backbone, the task and the maximal length in tokens.
        peak: bytes of a training step of the run, from the run and its task, on the largest possible batch.
        check_texts: raises `UserError` if the network cannot read a task's texts, from the arguments of `mean_tokens`,
            or what a profile pass times, from its section; None for no pass.
        check_method: raises `UserError` if the network cannot take the method of a run, from the run and its task.
    """

    mean_tokens: Callable[[BackboneSpec, TaskSpec, int], float]
    peak: Callable[[RunSpec, TaskFacts], int]
    check_texts: Callable[[BackboneSpec, TaskSpec, int, ProfileSection | None], None] = lambda *_: None
    check_method: Callable[[RunSpec, TaskFacts], None] = lambda *_: None


def _not_measured(*_: object) -> float:
    raise NotImplementedError("planning with this budget needs the measures of texts and networks")


NONE = Measures(_not_measured, _not_measured)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Length:
    """The length of a run.

    Attributes:
        steps: optimiser steps; 0 if seconds limit the run.
        tokens: the budget of training tokens that the steps follow from, if any.
        seconds: the budget of seconds, if any.
    """

    steps: int
    tokens: int | None = None
    seconds: float | None = None


def run_length(experiment: Experiment, task: TaskFacts, backbone: BackboneSpec, measures: Measures) -> Length:
    """Return the length of the runs on a task. It is the same for all methods."""
    b, section = experiment.budget, task.section
    if b.seconds is not None:
        return Length(0, seconds=section.seconds or b.seconds)
    if b.tokens is None:
        return Length(section.steps or b.steps)
    tokens = section.tokens or b.tokens
    mean = measures.mean_tokens(backbone, task.spec, section.max_length or b.max_length)
    return Length(steps_for(tokens, section.batch_size or b.batch_size, mean), tokens=tokens)


def steps_for(tokens: int, batch_size: int, mean: float) -> int:
    """Return the least number of steps whose batches hold a number of tokens.

    Args:
        tokens: training tokens.
        batch_size: examples in a step.
        mean: mean tokens of an example.

    >>> steps_for(1000, 4, 25.0), steps_for(1001, 4, 25.0), steps_for(1, 4, 25.0)
    (10, 11, 1)
    """
    return max(1, math.ceil(tokens / (batch_size * mean)))


def within_memory(budget: BudgetSection, spec: RunSpec, task: TaskFacts, measures: Measures) -> TrainSpec:
    """Split the batches of a run into the fewest parts with which a step fits into the budget of memory.

    Args:
        budget: the experiment's budget.
        spec: the run.
        task: the task of the run.
        measures: predicts the peak of a step.

    Returns:
        The run's training with its `accumulation`; the batch size stays the same.

    Raises:
        UserError: a step on a single example does not fit, or its peak is not known.
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
    """Find the fewest parts of a batch with which the peak of a step stays within a limit.

    The search bisects over the examples of a part, because more examples never need less memory.

    Args:
        limit: bytes.
        batch_size: examples in a batch.
        peak: bytes of a step with a number of parts.

    Returns:
        The number of parts, or None if even parts of one example are too large.

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
