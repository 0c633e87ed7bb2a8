"""A comparison: one table's configurations, each over its seeds. Data only: `verdicts` says what follows from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftbench.records.costs import Parameters
from peftbench.records.record import RunRecord
from peftbench.records.spec import TrainSpec
from peftbench.report.data import times


@dataclass(frozen=True)
class Entry:
    """One configuration in one table: a method with its hyperparameters and rate, over its seeds."""

    label: str  # unique in its table
    method: str
    hyper: Mapping[str, Any]
    lr: float
    size: str  # "matched" | "nearest" | "native" | "explicit"
    deviation: float | None  # achieved / budget - 1
    metric: str
    scores: Mapping[int, float]  # seed -> primary metric on test, of the finished runs that have one
    others: Mapping[str, tuple[float, ...]]  # the task's further test metrics, one value a finished run
    failures: Mapping[str, int]  # status -> runs without a result
    parameters: Parameters | None
    peak_bytes: int | None  # largest over the seeds: what a machine must have
    times: times.Times | None
    runs: tuple[RunRecord, ...] = field(repr=False)  # the record that counts of every seed, failed ones too
    relative: float | None = None  # mean / the reference's mean; None where that is not positive
    relative_sd: float | None = None  # over the seeds that both finished

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def mean(self) -> float | None:
        return mean(tuple(self.scores.values()))

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds (n - 1); None with one seed, whose spread nobody knows."""
        return spread(tuple(self.scores.values()))

    def parameter(self, name: str) -> int | None:
        return getattr(self.parameters, name) if self.parameters else None


@dataclass(frozen=True, eq=False)  # told apart by identity: what is computed of one is kept by it
class Comparison:
    """One table: every configuration that an experiment ran on one task under one budget."""

    experiment: str
    task: str  # the data that ran
    stand_in_for: str | None  # the task that was asked for, where a stand-in ran
    backbone: str
    budget: TrainSpec  # of its runs; the rate in it is one configuration's
    metric: str
    direction: str  # "max" | "min"
    majority: float | None  # primary metric of the constant predictor
    reference: str  # the label that scores and costs are relative to
    learned: bool | None  # the reference beats the majority class by more than its interval; None: cannot be said
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    variant: str = ""  # tells apart tables of one task under different budgets

    @property
    def title(self) -> str:
        """The name of the data that ran; a stand-in never poses as the task it stands in for."""
        name = f"{self.task} (stand-in for {self.stand_in_for})" if self.stand_in_for else self.task
        return f"{name}, {self.variant}" if self.variant else name

    @property
    def slug(self) -> str:
        stand_in = f"--stand-in-for-{self.stand_in_for}" if self.stand_in_for else ""
        variant = f"--{self.variant}" if self.variant else ""
        return safe(f"{self.experiment}--{self.task}{stand_in}{variant}")

    @property
    def other_metrics(self) -> list[str]:
        """Names of the further test metrics that any run has, sorted."""
        return sorted({m for e in self.entries for m in e.others})


def safe(name: str) -> str:
    """A file name of letters, digits, dot, dash and underscore."""
    return "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "_" for c in name)


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return statistics.fmean(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def length(budget: TrainSpec) -> str:
    """How long a run trains.

    >>> length(TrainSpec(1e-3, 40, 16, 96)), length(TrainSpec(1e-3, 0, 16, 96, seconds=60.0))
    ('40 steps', '60 s of steps')
    >>> length(TrainSpec(1e-3, 9, 16, 96, tokens=5000))
    '9 steps (5,000 tokens)'
    """
    if budget.seconds is not None:
        return f"{budget.seconds:g} s of steps"
    tokens = f" ({budget.tokens:,} tokens)" if budget.tokens is not None else ""
    return f"{budget.steps} steps{tokens}"
