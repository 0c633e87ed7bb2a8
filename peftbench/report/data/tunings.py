"""Tuning trials: the values tried and chosen, values at an edge, and the expected best of fewer trials.

Scores are those on the validation split; trials never use the test split. A failed trial counts and loses.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftbench.records import record, trials
from peftbench.records.record import Record, TrialRecord
from peftbench.records.spec import TrainSpec, digest
from peftbench.records.trials import value_of
from peftbench.report.data import grouping
from peftbench.report.data.comparison import Comparison, Entry, length, names_of
from peftbench.report.media.filename import stem
from peftbench.report.media.plain import natural


@dataclass(frozen=True)
class ConfigurationTrials:
    """The trials of one configuration on one task, by number."""

    label: str
    method: str
    trials: tuple[TrialRecord, ...] = field(repr=False)

    @property
    def best(self) -> TrialRecord:
        """The trial with the best validation score."""
        return self.trials[trials.best(self.trials)]

    @property
    def failed(self) -> int:
        """Number of trials without a score."""
        return sum(score(r) is None for r in self.trials)

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """Hyperparameter -> the values or the range that trials draw from, with all extensions."""
        return self.trials[-1].spec.space

    @property
    def chosen(self) -> dict[str, Any]:
        """Hyperparameter -> its value in the best trial, the learning rate first."""
        return {key: value_of(self.best, key) for key in sorted(self.space, key=lambda key: key != "lr")}

    @property
    def edges(self) -> dict[str, str]:
        """Hyperparameter -> "lower" or "upper" if its chosen value is at an edge; empty if all trials failed."""
        return trials.edges(self.trials)

    @property
    def further(self) -> int:
        """Number of the trials that extend the space, because the best one before them lay at an edge."""
        return sum(bool(r.spec.first_space) for r in self.trials)

    def is_of(self, e: Entry) -> bool:
        """Whether `e` holds the final runs with the chosen values, on the data of the trials."""
        final, best = e.runs[0].spec, self.best.spec
        return (final.method, e.lr, final.task.fingerprint) == (best.method, best.train.lr, best.task.fingerprint)


@dataclass(frozen=True)
class Tuning:
    """All trials of an experiment on one task at one training length; fields are named as in a `Comparison`."""

    experiment: str
    task: str
    stand_in_for: str | None
    backbone: str
    budget: TrainSpec  # training settings of a trial; its learning rate is one of those tried
    metric: str
    direction: str
    rows: tuple[ConfigurationTrials, ...]
    variant: str = ""
    learned: bool | None = None
    file: str = ""  # file name of the table, where `slug` alone would be another's too

    @property
    def title(self) -> str:
        """Heading of the table; a stand-in is always marked as one."""
        name = f"{self.task} (stand-in for {self.stand_in_for})" if self.stand_in_for else self.task
        return f"Tuning, {name}{', ' + self.variant if self.variant else ''}"

    @property
    def slug(self) -> str:
        """File name of the table, without its extension."""
        names = names_of(self.task, self.stand_in_for)
        return self.file or stem(self.experiment, *names, variant=self.variant, ending="tuning")


def score(r: TrialRecord) -> float | None:
    """A trial's validation score in the metric's own direction; None if it failed."""
    return r.metrics.validation.get(r.metrics.primary) if r.is_finished else None


def of(records: Iterable[Record], comparisons: Sequence[Comparison] = ()) -> list[Tuning]:
    """Group trials by experiment, task and training length.

    Args:
        records: records of any kind.
        comparisons: the tables whose order the rows follow.

    Returns:
        One `Tuning` per group.
    """
    order = {e.label: i for i, e in reversed(list(enumerate(e for c in comparisons for e in c.entries)))}
    groups = grouping.by_setting(r for r in record.latest(records).values() if isinstance(r, TrialRecord))
    tables = Counter(key[:2] for key in groups)
    tunings = []
    for key, runs in sorted(groups.items(), key=lambda item: natural(*item[0])):
        spec, metrics = runs[0].spec, next((m for r in runs if (m := r.body.metrics)), None)
        tunings.append(
            Tuning(
                experiment=key[0],
                task=key[1],
                stand_in_for=spec.task.stand_in_for,
                backbone=spec.backbone.model,
                budget=spec.train,
                metric=metrics.primary if metrics else "score",
                direction=metrics.direction if metrics else "max",
                rows=tuple(sorted(_rows(runs), key=lambda t: (order.get(t.label, len(order)), natural(t.label)))),
                variant=f"{length(spec.train)} ({key[2][:6]})" if tables[key[:2]] > 1 else "",
            )
        )
    return tunings


def _rows(runs: Iterable[TrialRecord]) -> list[ConfigurationTrials]:
    """Group trials by configuration and first search space, as the file may have been edited between two runs."""
    groups: dict[tuple[str, str, str], list[TrialRecord]] = defaultdict(list)
    for r in runs:
        m = r.spec.method
        groups[m.label, m.name, digest([r.spec.first_space or r.spec.space, m.version])].append(r)
    keyed = sorted(groups.items(), key=lambda item: natural(*item[0]))
    return [
        ConfigurationTrials(key[0], key[1], tuple(sorted(rs, key=lambda r: r.spec.trial or 0))) for key, rs in keyed
    ]


def expected_best(scores: Sequence[float], direction: str = "max") -> list[float]:
    """The expected best of k of the scores, for k = 1 ... n: the mean over all subsets of size k.

    This is the unbiased form (Tang et al. 2020, arXiv:2004.13705) of the expected validation performance of Dodge et
    al. 2019 (arXiv:1909.03004), which draws with replacement and is too low.

    Args:
        scores: n validation scores.
        direction: "max" or "min", which of the two is better.

    Returns:
        n values.

    >>> expected_best([1.0, 2.0, 3.0])
    [2.0, 2.6666666666666665, 3.0]
    """
    n, best_last = len(scores), sorted(scores, reverse=direction == "min")
    return [
        math.fsum(math.comb(i, k - 1) * best_last[i] for i in range(k - 1, n)) / math.comb(n, k)
        for k in range(1, n + 1)
    ]


def edge_counts(tunings: Iterable[Tuning]) -> tuple[int, int]:
    """Return how many chosen values lie at an edge of what was tried, and how many were chosen.

    Configurations of which all trials failed have chosen nothing.
    """
    rows = [row for t in tunings for row in t.rows if row.failed < len(row.trials)]
    return sum(len(row.edges) for row in rows), sum(len(row.chosen) for row in rows)


def scores(t: Tuning, row: ConfigurationTrials) -> list[float] | None:
    """The validation scores of one configuration's trials.

    Args:
        t: the table.
        row: one of its rows.

    Returns:
        One score per trial, the worst of the table for a failed trial; None if none of the row finished.
    """
    known = [s for one in t.rows for r in one.trials if (s := score(r)) is not None]
    if not known or row.failed == len(row.trials):
        return None
    worst = (max if t.direction == "min" else min)(known)
    return [worst if (s := score(r)) is None else s for r in row.trials]


def chosen_for(c: Comparison, e: Entry, tunings: Sequence[Tuning]) -> tuple[Tuning, ConfigurationTrials] | None:
    """The trials that chose an entry's values; None if none did. Those of its own number of steps come first."""
    of_task = (t for t in tunings if (t.experiment, t.task) == (c.experiment, c.task))
    mine = sorted(of_task, key=lambda t: t.budget.steps != c.budget.steps)
    return next(((t, row) for t in mine for row in t.rows if row.is_of(e)), None)
