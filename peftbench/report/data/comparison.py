"""A comparison: the configurations of one table, each with its runs over the seeds.

Data only; `verdicts` computes the statistics.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftbench.records.costs import Parameters
from peftbench.records.data_summary import DataSummary
from peftbench.records.design import FIXED, Claim, Design
from peftbench.records.record import RunRecord
from peftbench.records.spec import TrainSpec
from peftbench.report.data import times
from peftbench.report.data.points import Point
from peftbench.report.media.filename import stem

REGRESSION = ("mae", "rmse", "pearson", "spearman")  # the metrics of numbers


@dataclass(frozen=True)
class Entry:
    """One row: a method with its hyperparameters and learning rate, over its seeds.

    Attributes:
        label: unique in its table.
        method: name of the method.
        hyper: its hyperparameters.
        lr: learning rate.
        size: how the parameter budget was met: "matched", "nearest", "native" or "explicit".
        deviation: trainable parameters / budget - 1; None without a budget.
        metric: the task's primary metric.
        scores: seed -> primary metric on the test split, for finished runs where it is defined.
        others: further metric -> its test score in each finished run.
        failures: status -> number of runs without a score.
        parameters: parameter counts and stored bytes; None if no run recorded them.
        peak_bytes: the largest peak memory over the seeds.
        times: step time and latency from a profile pass; None if none measured this configuration.
        runs: the attempt that counts of every seed, failed ones included.
        relative: mean / the reference's mean; None if the latter is not positive.
        relative_sd: standard deviation of that ratio over the seeds that both finished.
    """

    label: str
    method: str
    hyper: Mapping[str, Any]
    lr: float
    size: str
    deviation: float | None
    metric: str
    scores: Mapping[int, float]
    others: Mapping[str, tuple[float, ...]]
    failures: Mapping[str, int]
    parameters: Parameters | None
    peak_bytes: int | None
    times: times.Times | None
    runs: tuple[RunRecord, ...] = field(repr=False)
    relative: float | None = None
    relative_sd: float | None = None

    @property
    def n(self) -> int:
        """Number of seeds with a score."""
        return len(self.scores)

    @property
    def failed(self) -> int:
        """Number of runs without a score."""
        return sum(self.failures.values())

    @property
    def mean(self) -> float | None:
        """Mean score over the seeds."""
        return mean(tuple(self.scores.values()))

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds (n - 1); None for fewer than two seeds."""
        return spread(tuple(self.scores.values()))

    def parameter(self, name: str) -> int | None:
        """One of the parameter counts, such as "trainable" or "stored_bytes"; None if not recorded."""
        return getattr(self.parameters, name) if self.parameters else None


@dataclass(frozen=True, eq=False)  # compared by identity, which `weak_cache` needs
class Comparison:
    """One table: every configuration of an experiment on one task under one budget.

    Attributes:
        experiment: name of the experiment.
        task: the data set that ran.
        stand_in_for: the requested task if `task` is its stand-in, else None.
        backbone: name of the base model.
        budget: training settings of the runs; its learning rate is that of one configuration.
        metric: the primary metric.
        direction: "max" or "min", which of the two is better.
        majority: primary metric of the constant predictor, `constant_answer`.
        reference: label of the row that scores and costs are relative to.
        learned: whether the reference beats the constant predictor by more than its interval; None if undecided.
        entries: the rows.
        notes: sentences under the table.
        variant: distinguishes tables of one task under different budgets; else empty.
        file: file name of the table, where `slug` alone would be another's too; else empty.
        data: what was done to the task's data; None in older records.
        design: what the experiment asks of the comparison: margin, preference, looks, and the claims on this table that
            were there before the runs.
        late: claims on this table that were added after runs.
        point: where the table lies on the axes of its experiment; None if it belongs to no curve.
    """

    experiment: str
    task: str
    stand_in_for: str | None
    backbone: str
    budget: TrainSpec
    metric: str
    direction: str
    majority: float | None
    reference: str
    learned: bool | None
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    variant: str = ""
    file: str = ""
    data: DataSummary | None = None
    design: Design = FIXED
    late: tuple[Claim, ...] = ()
    point: Point | None = None

    @property
    def title(self) -> str:
        """The task's name; a stand-in is always marked as one."""
        name = f"{self.task} (stand-in for {self.stand_in_for})" if self.stand_in_for else self.task
        return f"{name}, {self.variant}" if self.variant else name

    @property
    def constant(self) -> str:
        """The constant predictor with its score: `majority class 0.230`; empty if the score is not known."""
        return "" if self.majority is None else f"{constant_answer(self.metric)} {in_digits(self.majority)}"

    @property
    def slug(self) -> str:
        """File name of the table, without its extension."""
        return self.file or stem(self.experiment, *names_of(self.task, self.stand_in_for), variant=self.variant)

    @property
    def other_metrics(self) -> list[str]:
        """The further test metrics of any run, sorted."""
        return sorted({m for e in self.entries for m in e.others})


def constant_answer(metric: str) -> str:
    """The best answer that ignores the text, in words.

    >>> constant_answer("accuracy"), constant_answer("rmse")
    ('majority class', 'mean of the training labels')
    """
    return "mean of the training labels" if metric in REGRESSION else "majority class"


def in_digits(score: float) -> str:
    """A score without its uncertainty.

    >>> in_digits(0.2304), in_digits(553947.2)
    ('0.230', '553,947')
    """
    return f"{score:.3f}" if abs(score) < 10 else f"{score:,.0f}" if abs(score) >= 1000 else f"{score:.2f}"


def names_of(task: str, stand_in_for: str | None) -> list[str]:
    """The parts of a file's name that say the task; a stand-in is always marked as one."""
    return [task, f"stand-in-for-{stand_in_for}"] if stand_in_for else [task]


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None for no values."""
    return statistics.fmean(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def length(budget: TrainSpec) -> str:
    """The training length of a run, formatted.

    >>> length(TrainSpec(1e-3, 40, 16, 96)), length(TrainSpec(1e-3, 0, 16, 96, seconds=60.0))
    ('40 steps', '60 s of steps')
    >>> length(TrainSpec(1e-3, 9, 16, 96, tokens=5000))
    '9 steps (5,000 tokens)'
    """
    if budget.seconds is not None:
        return f"{budget.seconds:g} s of steps"
    tokens = f" ({budget.tokens:,} tokens)" if budget.tokens is not None else ""
    return f"{budget.steps} steps{tokens}"
