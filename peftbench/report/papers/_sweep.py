"""Sweeps over learning rates, each configuration represented by the rate with the best validation score.

Test scores choose nothing here. A rate is eligible if as many seeds finished as at any other rate. A rate at which a
seed diverged is thus never chosen by its surviving seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from peftbench.records import comparable
from peftbench.records.record import RunRecord, TrainingRecord
from peftbench.report.papers._interval import Interval, mean
from peftbench.report.papers._records import NotRun, Results, group, score, validation

TWO_POINTS = (-2.0, 2.0)  # percentage points; a difference between them is none worth having


@dataclass(frozen=True)
class ChosenRate:
    """One configuration at its chosen rate."""

    key: Any
    lr: float
    runs: tuple[RunRecord, ...]  # at that rate, one per seed
    rates: tuple[float, ...]  # all rates tried, failed ones included

    @property
    def at_edge(self) -> bool:
        """Whether it is the lowest or highest rate tried; False for two rates, where both are."""
        return len(self.rates) > 2 and self.lr in (self.rates[0], self.rates[-1])

    @property
    def test(self) -> float:
        """Mean test score."""
        return fmean(map(score, self.runs))

    @property
    def preferred(self) -> float:
        """Mean validation score, which chooses among configurations."""
        return _preferred(self.runs)

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return self.runs[0].parameters.trainable


def hyper(r: TrainingRecord, name: str) -> Any:
    """A hyperparameter of the run, defaults and solved sizes included."""
    return (r.body.hyper or {})[name]


def method(r: TrainingRecord) -> str:
    return r.spec.method.name


def lr(r: TrainingRecord) -> float:
    return r.spec.train.lr


def choose_rates(runs: Iterable[RunRecord], key: Callable[[RunRecord], Hashable]) -> dict[Any, ChosenRate]:
    """Choose the learning rate of each configuration by mean validation score.

    Args:
        runs: finished runs at all rates.
        key: run -> its configuration.

    Returns:
        configuration -> its runs at the chosen rate, in the order of the keys.
    """
    return {k: _choose_rate(k, same) for k, same in group(runs, key).items()}


def _choose_rate(key: Any, runs: Sequence[RunRecord]) -> ChosenRate:
    by_rate = group(runs, lr)
    most = max(map(len, by_rate.values()))
    eligible = {rate: same for rate, same in by_rate.items() if len(same) == most}
    best = max(eligible, key=lambda rate: (_preferred(eligible[rate]), -rate))
    return ChosenRate(key, best, tuple(eligible[best]), tuple(by_rate))


def _preferred(runs: Sequence[RunRecord]) -> float:
    values = [validation(r) for r in runs]
    return -math.inf if any(map(math.isnan, values)) else fmean(values)


def best(of: Iterable[ChosenRate]) -> ChosenRate:
    """The configuration with the best validation score. Raises NotRun for none."""
    candidates = list(of)
    if not candidates:
        raise NotRun("no configuration to choose from")
    return max(candidates, key=lambda t: t.preferred)


def in_full(of: Iterable[ChosenRate]) -> list[ChosenRate]:
    """Those with as many seeds as any: the ones that went on, once validation had chosen what to compare."""
    candidates = list(of)
    most = max((len(t.runs) for t in candidates), default=0)
    return [t for t in candidates if len(t.runs) == most]


def same_setting(runs: Sequence[RunRecord]) -> None:
    """Raise NotRun, naming the differences, unless all runs may be compared on one axis."""
    first, *others = {comparable.key(r.spec): r.spec for r in runs}.values()
    apart = dict.fromkeys(d.either for other in others for d in comparable.differences(first, other))
    if apart:
        raise NotRun(f"the runs cannot be shown together, as they differ ({'; '.join(apart)})")


def unlearned(candidates: Iterable[ChosenRate]) -> str | None:
    """Why differences mean nothing, if the best configuration does not beat the majority class; else None."""
    top = best(candidates)
    majority = top.runs[0].metrics.majority
    if majority is None or (ours := mean(top.runs)).low > majority or len(top.runs) == 1:
        return None
    return (
        f"nothing was learned at this budget: the best configuration has accuracy {ours.value:.3f} "
        f"[{ours.low:.3f}, {ours.high:.3f}], the majority class {majority:.3f}"
    )


def notes(
    results: Results, folders: Iterable[str], chosen: Mapping[Any, ChosenRate], looks: Sequence[int] = ()
) -> tuple[str, ...]:
    """The notes of every sweep: how rates were chosen, which lie at an edge, which runs failed, the looks."""
    rates = [t for t in chosen.values() if len(t.rates) > 1]
    edge = [f"{_name(t.key)} at {t.lr:g}" for t in rates if t.at_edge]
    tried = sorted({len(t.rates) for t in rates})
    sentences = [f"The rate of each row is the best by mean validation score of {' or '.join(map(str, tried))} tried."]
    sentences = sentences if rates else []
    sentences += [f"At the edge of the rates tried, so perhaps not the best: {', '.join(edge)}."] if edge else []
    if of_two := [t for t in rates if len(t.rates) == 2]:
        higher = sum(t.lr == t.rates[-1] for t in of_two)
        sentences.append(
            f"Of two rates the higher one was chosen in {higher} of {len(of_two)} rows; a third might be better."
        )
    failed = [r for folder in folders for r in results.failed(folder)]
    if failed:
        how = ", ".join(f"{len(same)} {status}" for status, same in group(failed, lambda r: r.status).items())
        sentences.append(f"Runs that did not finish, left out: {how}.")
    if looks:
        most = max(len(t.runs) for t in chosen.values())
        if any(len(t.runs) < most for t in chosen.values()):
            sentences.append(
                "What the claims compare went on to more seeds, each at the rate that validation preferred by then."
            )
        after = f"{', '.join(map(str, looks[:-1]))} and {looks[-1]}"
        sentences.append(f"Claims are read after {after} seeds; their intervals take all of these looks into account.")
    return (
        *sentences,
        "Intervals: over seeds and test examples, 95 % for all claims together, and for each row of the table alone.",
    )


def points(i: Interval) -> Interval:
    """A difference of proportions in percentage points."""
    return Interval(100 * i.value, 100 * i.low, 100 * i.high, i.half_at and replace(i.half_at, unit=100.0))


def accuracy(t: ChosenRate) -> str:
    """Mean accuracy with its interval: `0.842 [0.810, 0.871]`."""
    ours = mean(t.runs)
    return f"{ours.value:.3f} [{ours.low:.3f}, {ours.high:.3f}]"


def _name(key: Any) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
