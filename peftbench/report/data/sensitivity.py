"""Sensitivity: the verdicts of a table without each seed in turn, and those of an average without each task in turn.

A verdict here is one that a reader takes away: tied with the best or behind it; better than the reference, worse, or
open. One that rests on one seed is about trained networks, and is in no comparison of verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peftbench.report.data import average, scores, verdicts
from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.notes import not_learned
from peftbench.report.data.verdicts import ScoreVerdict
from peftbench.report.data.weak_cache import weak_cache
from peftbench.report.stats.intervals import LEVEL, Estimate, Scores

FEWEST = 3  # seeds: without one of two, nothing is known of seeds
MOST = 30  # seeds: one of more hardly weighs, and trying each takes time


@dataclass(frozen=True)
class Outcome:
    """The verdicts on one configuration; None where there is none.

    Attributes:
        best: "tied" with the best, or "behind" it.
        reference: "better" or "worse" than the reference, or "open".
    """

    best: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Change:
    """A verdict on one configuration that is another one without a part of the data.

    Attributes:
        label: the configuration.
        against: "best" or "reference".
        before: the verdict on all data.
        after: the verdict without the part.
        without: each part whose absence gives `after`, in order.
    """

    label: str
    against: str
    before: str
    after: str
    without: tuple[str, ...]


@dataclass(frozen=True)
class Sensitivity:
    """The verdicts on all data, and without each part.

    Attributes:
        part: what is left out: "seed" or "task".
        whole: label -> verdicts on all data.
        without: part -> label -> verdicts without it; empty if `why_not`.
        why_not: why no part can be left out; None if it can.
    """

    part: str
    whole: Mapping[str, Outcome]
    without: Mapping[str, Mapping[str, Outcome]]
    why_not: str | None = None

    @property
    def changes(self) -> list[Change]:
        """The verdicts that change, by configuration."""
        return [change for label in self.whole for change in self.changes_of(label)]

    def changes_of(self, label: str) -> list[Change]:
        """The verdicts on one configuration that change."""
        found: dict[tuple[str, str, str], list[str]] = {}
        for part, outcomes in self.without.items():
            for against in ("best", "reference"):
                before, after = (getattr(o, against) for o in (self.whole[label], outcomes.get(label, Outcome())))
                if before and after and before != after:
                    found.setdefault((against, before, after), []).append(part)
        return [Change(label, *what, tuple(parts)) for what, parts in sorted(found.items())]


@weak_cache
def of(c: Comparison) -> Sensitivity:
    """The verdicts of a table without each seed in turn, computed once per comparison."""
    whole = _outcomes(verdicts.of(c), c.direction)
    known = scores.of(c)
    if (why := _why_not(c, known)) is not None:
        return Sensitivity("seed", whole, {}, why)
    seeds = sorted({seed for s in known.values() for seed in s.seeds})
    without = {str(seed): _outcomes_without(seed, known, c) for seed in seeds}
    return Sensitivity("seed", whole, without)


def over_tasks(a: Average, comparisons: Iterable[Comparison]) -> Sensitivity:
    """The verdicts of a table over tasks without each of its tasks in turn.

    Args:
        a: the table. A row is behind the best if their mean ranks are further apart than the critical difference.
        comparisons: tables, those of other experiments, too.
    """
    used = [c for c in comparisons if c.experiment == a.experiment and c.title in a.tasks]
    labels = [s.label for s in a.standings if s.rank is not None]
    whole = _over_tasks(used, labels, a.reference)
    if len(used) < 2:
        return Sensitivity("task", whole, {}, "an average without one task needs two")
    without = {c.title: _over_tasks([o for o in used if o is not c], labels, a.reference) for c in used}
    return Sensitivity("task", whole, without)


def _why_not(c: Comparison, known: Mapping[str, Scores]) -> str | None:
    if c.learned is False:
        return not_learned(c)
    if c.design.looks:
        return "rows stop at different seeds, by what the seeds before say"
    most = max((len(s.seeds) for s in known.values()), default=0)
    if sum(len(s.seeds) >= FEWEST for s in known.values()) < 2:
        return f"leaving out one seed needs {FEWEST} of two configurations"
    if most > MOST:
        return f"one of {most} seeds hardly weighs"
    return None


def _outcomes_without(seed: int, known: Mapping[str, Scores], c: Comparison) -> dict[str, Outcome]:
    kept = {label: [s for s in of.seeds if s != seed] for label, of in known.items()}
    some = {label: known[label].at(seeds) for label, seeds in kept.items() if seeds}
    return _outcomes(verdicts.on(some, c), c.direction)


def _outcomes(of: Mapping[str, ScoreVerdict], direction: str) -> dict[str, Outcome]:
    sign = -1 if direction == "min" else 1
    return {label: Outcome(_against_best(v), _against_reference(v, sign)) for label, v in of.items()}


def _against_best(v: ScoreVerdict) -> str | None:
    if v.tied is None or _is_of_runs(v.to_best):
        return None
    return "tied" if v.tied else "behind"


def _against_reference(v: ScoreVerdict, sign: int) -> str | None:
    if v.difference is None or v.p_holm is None or _is_of_runs(v.difference):
        return None
    if v.p_holm >= 1 - LEVEL:
        return "open"
    return "better" if sign * v.difference.value > 0 else "worse"


def _is_of_runs(e: Estimate | None) -> bool:
    return e is not None and e.is_of_runs


def _over_tasks(used: Sequence[Comparison], labels: Sequence[str], reference: str) -> dict[str, Outcome]:
    ranking = average.ranking(used, labels)
    behind = ranking.behind if ranking and not ranking.too_few_tasks else None
    outcomes = {}
    for label in labels:
        best = None if behind is None else "behind" if label in behind else "tied"
        around = None if label == reference else average.relative_interval(used, label)
        outcomes[label] = Outcome(best, None if around is None else _around_one(around))
    return outcomes


def _around_one(interval: tuple[float, float]) -> str:
    low, high = interval
    return "better" if low > 1 else "worse" if high < 1 else "open"
