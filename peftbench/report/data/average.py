"""The table over tasks: average relative score and average rank, over the same tasks for every method.

A task counts if it was learned, the reference has a positive score, and every method that finished anywhere in the
experiment finished on it. Otherwise a method would gain by failing on hard tasks. Notes name the tasks left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peftbench.records.ranges import LEAST
from peftbench.report.data import verdicts
from peftbench.report.data.comparison import Comparison, Entry, spread
from peftbench.report.data.notes import not_learned
from peftbench.report.media.filename import stem
from peftbench.report.media.plain import natural
from peftbench.report.stats import intervals, ranks


@dataclass(frozen=True)
class Standing:
    """One configuration's averages over the tasks of an `Average`; None where it did not finish on all of them."""

    label: str
    method: str
    relative: float | None  # mean over tasks of score / reference (reference / score if lower is better)
    relative_sd: float | None  # sd of `relative` over the seeds that finished on every task
    relative_interval: (
        tuple[float, float] | None
    )  # 95 % interval of `relative` over seeds and test examples, for these tasks
    rank: float | None  # mean over tasks; 1 is best, ties share the mean of their ranks
    trainable: float | None  # trainable parameters, mean over tasks
    peak_ratio: float | None  # peak memory / the reference's, mean over tasks
    step_ratio: float | None  # step time / the reference's, mean over tasks
    failed: int  # failed runs on all tasks of the experiment


@dataclass(frozen=True)
class Average:
    """An experiment's table over its tasks."""

    experiment: str
    reference: str
    tasks: tuple[str, ...]  # titles of the tasks averaged over
    standings: tuple[Standing, ...]
    notes: tuple[str, ...]
    ranking: ranks.Ranking | None = None  # over these tasks
    file: str = ""  # file name of the table, where `slug` alone would be another's too
    variant: str = ""  # the values of the axes, where the experiment has some

    @property
    def slug(self) -> str:
        """File name of the table, without its extension."""
        return self.file or stem(self.experiment, variant=self.variant, ending="average")


def averages(comparisons: Sequence[Comparison]) -> list[Average]:
    """Average each experiment that has more than one table.

    Args:
        comparisons: tables of any number of experiments.

    Returns:
        One `Average` per such experiment, sorted by name.
    """
    experiments = sorted({c.experiment for c in comparisons}, key=natural)
    groups = (group for name in experiments for group in _by_value([c for c in comparisons if c.experiment == name]))
    return [_average(group) for group in groups if len(group) > 1]


def _by_value(tables: Sequence[Comparison]) -> list[list[Comparison]]:
    """Split the tables of an experiment by their values on its axes: an average is over tasks at the same values."""
    values = dict.fromkeys(c.point.words if c.point else "" for c in tables)
    return [[c for c in tables if (c.point.words if c.point else "") == value] for value in values]


def _average(group: Sequence[Comparison]) -> Average:
    reasons = {c.title: _unusable(c) for c in group}
    usable = [c for c in group if not reasons[c.title]]
    compared = {e.label for c in usable for e in c.entries if e.n}
    for c in usable:
        missing = sorted(compared - {e.label for e in c.entries if e.n}, key=natural)
        reasons[c.title] = f"no finished run of {', '.join(missing)}" if missing else None
    used = [c for c in usable if not reasons[c.title]]
    labels = list(dict.fromkeys(e.label for c in group for e in c.entries))
    notes = [f"Left out of the average: {title} ({why})." for title, why in reasons.items() if why]
    if used:
        names = ", ".join(c.title for c in used)
        notes.insert(0, f"Averaged over {names}: learned, and finished by every method that has an average.")
    if any(c.direction == "min" for c in used):
        notes.append("Where a lower score is better, the reference's score is divided by the method's.")
    by_rank = ranking(used, [label for label in labels if label in compared])
    if by_rank is not None:
        notes.insert(1, by_rank.sentence)
    return Average(
        experiment=group[0].experiment,
        reference=group[0].reference,
        tasks=tuple(c.title for c in used),
        standings=tuple(_standing(label, group, used if label in compared else []) for label in labels),
        notes=tuple(notes),
        ranking=by_rank,
        variant=group[0].point.words if group[0].point else "",
    )


def _unusable(c: Comparison) -> str | None:
    base = _entry(c, c.reference)
    if base is None or base.mean is None:
        return f"no finished run of the reference {c.reference}"
    if base.mean < LEAST:
        return "the reference's score is not positive"
    return not_learned(c) if c.learned is False else None


def _standing(label: str, group: Sequence[Comparison], used: Sequence[Comparison]) -> Standing:
    everywhere = [e for c in group if (e := _entry(c, label))]
    pairs = [(c, e) for c in used if (e := _entry(c, label))]
    return Standing(
        label=label,
        method=everywhere[0].method,
        relative=_mean([relative(c, e) for c, e in pairs]),
        relative_sd=_seed_spread(pairs) if label != group[0].reference else None,
        relative_interval=relative_interval(used, label) if label != group[0].reference else None,
        rank=_mean([rank(c, e) for c, e in pairs]),
        trainable=_mean([e.parameter("trainable") for _, e in pairs]),
        peak_ratio=_mean([_ratio(e.peak_bytes, _entry(c, c.reference)) for c, e in pairs]),
        step_ratio=_mean([e.times.ratio.median if e.times and e.times.ratio else None for _, e in pairs]),
        failed=sum(e.failed for e in everywhere),
    )


def _entry(c: Comparison, label: str) -> Entry | None:
    return next((e for e in c.entries if e.label == label), None)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if a task has no value, since an average over fewer tasks would not be comparable."""
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def relative(c: Comparison, e: Entry) -> float | None:
    """The score relative to the reference's, higher is better; None if a sign makes the ratio meaningless."""
    if c.direction == "min":
        return 1 / e.relative if e.relative is not None and e.relative > LEAST else None
    return e.relative


def _gain(c: Comparison, score: float | None) -> float | None:
    """A score relative to the reference's mean, higher is better."""
    base = _entry(c, c.reference)
    if score is None or base is None or base.mean is None or base.mean < LEAST:
        return None
    if c.direction == "min":
        return base.mean / score if score > LEAST else None
    return score / base.mean


def _seed_spread(pairs: Sequence[tuple[Comparison, Entry]]) -> float | None:
    """Standard deviation over seeds of the average over tasks."""
    seeds = set.intersection(*(set(e.scores) for _, e in pairs)) if pairs else set()
    means = [_mean([_gain(c, e.scores[seed]) for c, e in pairs]) for seed in sorted(seeds)]
    return spread([m for m in means if m is not None])


def relative_interval(used: Sequence[Comparison], label: str) -> tuple[float, float] | None:
    """The 95 % interval of a configuration's relative score, averaged over tasks; the tasks are taken as given."""
    pairs = [(c, e) for c in used if (e := _entry(c, label))]
    known = [v.relative for c, e in pairs if (v := verdicts.of(c).get(e.label)) and v.relative]
    gains = [intervals.inverse(r) if c.direction == "min" else r for (c, _), r in zip(pairs, known, strict=False)]
    sure = [gain for gain in gains if gain is not None]
    mean = intervals.average(sure) if len(sure) == len(pairs) else None
    return mean.interval() if mean else None


def ranking(used: Sequence[Comparison], labels: Sequence[str]) -> ranks.Ranking | None:
    """Rank the configurations that have an average, over its tasks; each must have finished on all of them."""
    signed = [[_signed(c, label) for label in labels] for c in used]
    return ranks.of(labels, np.array(signed)) if used and labels else None


def _signed(c: Comparison, label: str) -> float:
    """The mean score with the sign that makes higher better; the configuration must have finished."""
    entry = _entry(c, label)
    assert entry is not None
    assert entry.mean is not None  # only finished configurations have an average
    return -entry.mean if c.direction == "min" else entry.mean


def rank(c: Comparison, e: Entry) -> float | None:
    """1 for the best mean of the table; equal means share the mean of their ranks."""
    if e.mean is None:
        return None
    sign = -1 if c.direction == "min" else 1
    means = [sign * o.mean for o in c.entries if o.mean is not None]
    mine = sign * e.mean
    return 1 + sum(m > mine for m in means) + (sum(m == mine for m in means) - 1) / 2


def _ratio(bytes_: int | None, base: Entry | None) -> float | None:
    return bytes_ / base.peak_bytes if bytes_ is not None and base and base.peak_bytes else None
