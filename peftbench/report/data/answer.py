"""The answer of a table: the cheapest method that is surely not worse than the best by more than the margin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftbench.report.data import decisions, scores, verdicts
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.pareto import COSTS
from peftbench.report.data.weak_cache import weak_cache
from peftbench.report.stats import power
from peftbench.report.stats.intervals import LEVEL

ALIKE = 0.01  # costs that differ by less are alike: then the score decides
COST = {"memory": "memory", "parameters": "parameters", "time": "step time"}  # `prefer` -> a key of `COSTS`


@dataclass(frozen=True)
class Answer:
    """What a table recommends, and what it leaves open.

    Attributes:
        experiment, task: of the table; `task` is its title.
        metric: the primary metric.
        margin: largest difference that does not matter, in the metric's unit.
        prefer: the cost that decides: "memory", "parameters" or "time".
        chosen: label of the cheapest row within the margin of the best, of alike ones that with the best score; None if
            there is none or its cost is not known.
        is_least: whether its cost is the least, not only alike to it.
        cost: that cost: bytes of peak memory, trainable parameters, or seconds of a step.
        cost_ratio: the cost / the reference's.
        reference: label of the reference.
        within: labels of the rows that are surely not worse than the best by more than the margin.
        behind: labels of the rows that are surely not the best, and not known to be within the margin.
        open: labels of the rows of which neither is known.
        versus: label -> "better", "worse" or "equal" (within the margin) compared with the reference; None if open.
        seeds: label -> number of seeds that its verdict is from.
        hopeless: open rows that the last planned look would probably not decide.
        seeds_needed: number of seeds that would probably decide a difference of the margin; None if nothing is open or
            no number does.
        examples_needed: number of test examples that it takes then; None if seeds alone can decide.
        claims: the planned questions with their answers, JSON-ready.
    """

    experiment: str
    task: str
    metric: str
    margin: float
    prefer: str
    chosen: str | None
    is_least: bool
    cost: float | None
    cost_ratio: float | None
    reference: str
    within: tuple[str, ...]
    behind: tuple[str, ...]
    open: tuple[str, ...]
    versus: Mapping[str, str | None]
    seeds: Mapping[str, int]
    hopeless: tuple[str, ...]
    seeds_needed: int | None
    examples_needed: int | None
    claims: tuple[Mapping[str, Any], ...]


@weak_cache
def of(c: Comparison) -> Answer | None:
    """The answer of a table; None where there is none to give.

    There is none for a task that was not learned, for a single row, or where fewer than two rows have two seeds, as one
    seed says nothing of a method.
    """
    known = {label: s for label, s in scores.of(c).items() if len(s.seeds) > 1}
    if c.learned is False or len(known) < 2:
        return None
    d = decisions.of(c)
    within = tuple(label for label in known if d.is_within(label))
    told = verdicts.of(c)
    behind = tuple(label for label in known if told[label].tied is False and label not in within)
    unsure = tuple(label for label in known if label not in within and label not in behind)
    costs = {e.label: cost for e in c.entries if (cost := _cost(e, c.design.prefer)) is not None}
    sign = -1 if c.direction == "min" else 1
    means = {e.label: sign * e.mean for e in c.entries if e.mean is not None}
    inside = {label: costs[label] for label in within if label in costs}
    chosen = cheapest(inside, means)
    cost, base = (costs.get(label) if label else None for label in (chosen, c.reference))
    seeds, examples = _needed(c, d.margin, unsure)
    return Answer(
        experiment=c.experiment,
        task=c.title,
        metric=c.metric,
        margin=d.margin,
        prefer=c.design.prefer,
        chosen=chosen,
        is_least=chosen is not None and inside[chosen] <= min(inside.values()),
        cost=cost,
        cost_ratio=cost / base if cost is not None and base else None,
        reference=c.reference,
        within=within,
        behind=behind,
        open=unsure,
        versus={label: _versus(c, label, d.rows[label].versus) for label in known if label != c.reference},
        seeds={label: d.rows[label].seeds for label in known},
        hopeless=tuple(label for label in unsure if d.rows[label].is_hopeless),
        seeds_needed=seeds,
        examples_needed=examples,
        claims=tuple(_claim(q) for q in d.questions),
    )


def cheapest(costs: Mapping[str, float], scores: Mapping[str, float]) -> str | None:
    """The row with the least cost; of costs that are alike, the one with the best score, the first of ties.

    Args:
        costs: label -> cost.
        scores: label -> score, higher is better.
    """
    if not costs:
        return None
    alike = [label for label, cost in costs.items() if cost <= min(costs.values()) * (1 + ALIKE)]
    return max(alike, key=lambda label: scores.get(label, -math.inf))


def _versus(c: Comparison, label: str, decided: str | None) -> str | None:
    """How a row compares with the reference; a fixed number of seeds is judged by Holm's method."""
    v = verdicts.of(c)[label]
    if c.design.looks or v.p_holm is None or v.difference is None:
        return decided
    if v.p_holm < 1 - LEVEL:
        return "better" if (v.difference.value > 0) == (c.direction == "max") else "worse"
    return "equal" if decided == "equal" else None


def over_tasks(of_tasks: Sequence[Answer]) -> tuple[str, ...]:
    """Labels of the rows that are within the margin of the best on every task, each task at its own 95 %."""
    return tuple(label for label in of_tasks[0].within if all(label in a.within for a in of_tasks)) if of_tasks else ()


def _claim(q: decisions.Question) -> dict[str, Any]:
    around = (q.gap.interval() if q.gap else None) or (None, None)
    return {
        "method": q.claim.method,
        "against": q.claim.against,
        "claim": q.claim.relation,
        "found": q.found,
        "holds": q.holds,
        "ahead": None if q.gap is None else q.gap.value,
        "low": around[0],
        "high": around[1],
        "seeds": q.decided_at,
    }


def _needed(c: Comparison, margin: float, unsure: Sequence[str]) -> tuple[int | None, int | None]:
    """(seeds, test examples) that would probably show a difference of the margin between an open row and the best."""
    told = verdicts.of(c)
    pairs = [gap for label in unsure if (gap := told[label].to_best) and gap.is_known and not gap.is_of_runs]
    if not pairs:
        return None, None
    variance = power.VarianceComponents.of(pairs)
    if (seeds := variance.seeds_for(margin)) is not None:
        return seeds, None
    examples = variance.examples_for(margin)
    return None, int(examples) if variance.examples < examples < math.inf else None


def _cost(e: Entry, prefer: str) -> float | None:
    found = COSTS[COST[prefer]](e)
    return None if found is None else found[0]
