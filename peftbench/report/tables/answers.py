"""The answer of a table in sentences: what to take, what is behind, what is open, and what would decide it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from peftbench.report.data import answer, decisions, pairs
from peftbench.report.data.answer import Answer
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.stats.intervals import LEVEL, RANGES
from peftbench.report.tables.formatting import are, count, listed, scaled, seconds, two_digits

COST = {"memory": "peak memory", "parameters": "trainable parameters", "time": "time for a step"}
MIB = 2**20
NO_SPREAD = (
    "{labels}: a difference that is the same in every seed has no spread, so no interval can be computed and nothing "
    "is decided."
)


def sentences(c: Comparison) -> Iterator[str]:
    """What follows: what is open, and what was asked too late; none where no answer can be given."""
    if (a := answer.of(c)) is None:
        return
    yield from _open(a, c.design.looks)
    if flat := pairs.without_spread(c):
        yield NO_SPREAD.format(labels=listed(flat))
    for claim in c.late:
        yield f"Asked after runs, and so no planned question: {claim}. The table's corrected tests say what is sure."


def first(c: Comparison) -> Iterator[str]:
    """The recommendation of a table and its planned questions; none where there is no answer to give."""
    if (a := answer.of(c)) is not None:
        yield recommendation(a)
        yield from _questions(a, [e.label for e in c.entries])


def recommendation(a: Answer) -> str:
    """What to take, in one sentence."""
    near = margin(a)
    if not a.within:
        return f"No answer yet: no method is surely within {near} of the best."
    if a.chosen is None:
        whose = f"{listed(a.within)} {are(a.within)} surely within {near} of the best"
        return f"Answer: {whose}; which costs the least {COST[a.prefer]} was not measured."
    cost = f"{_cost(a)}{_share(a)}"
    if len(a.within) == 1:
        return f"Answer: {a.chosen}, the only one that is surely within {near} of the best ({COST[a.prefer]}: {cost})."
    return (
        f"Answer: {a.chosen} needs the least {COST[a.prefer]} ({cost}){'' if a.is_least else ', give or take 1 %,'} of "
        f"those that are surely within {near} of the best: {listed(a.within)}."
    )


def over_tasks(of_tasks: Sequence[Answer]) -> str:
    """What to take for all tasks of an experiment, in one sentence; empty for a single task."""
    if len(of_tasks) < 2:
        return ""
    everywhere = answer.over_tasks(of_tasks)
    tasks = listed([a.task for a in of_tasks])
    if not everywhere:
        return f"No method is surely within the margin of the best on each of {tasks}."
    return f"Surely within the margin of the best on each of {tasks}: {listed(everywhere)}."


def verdict(c: Comparison, e: Entry) -> dict[str, Any]:
    """The verdict on one row as JSON fields, None where there is none.

    Args:
        c: the table.
        e: one of its rows.

    Returns:
        verdict: "within" the margin of the best, "behind" it, or "open".
        versus_reference: "better", "worse" or "equal" (within the margin); None if open, or for the reference.
        margin: largest difference that does not matter.
        decided_seeds: number of seeds that the verdict is from.
    """
    a = answer.of(c)
    if a is None or e.label not in a.seeds:
        return {"verdict": None, "versus_reference": None, "margin": None, "decided_seeds": None}
    place = "within" if e.label in a.within else "behind" if e.label in a.behind else "open"
    return {
        "verdict": place,
        "versus_reference": a.versus.get(e.label),
        "margin": a.margin,
        "decided_seeds": a.seeds[e.label],
    }


def json_ready(a: Answer) -> dict[str, Any]:
    """The answer as JSON, with its sentence."""
    return {**asdict(a), "claims": [dict(claim) for claim in a.claims], "sentence": recommendation(a)}


def margin(a: Answer) -> str:
    """The margin in words: `2 points of accuracy`."""
    return f"{amount(a.margin, a.metric)} of {a.metric}"


def amount(difference: float, metric: str) -> str:
    """A difference of scores in words: `2 points`, or the number alone where the metric has no range."""
    low, high = RANGES.get(metric, (0.0, 0.0))
    if high == 1:
        return f"{difference * 100:.3g} points"
    return f"{difference:.3g} points" if high > low else f"{difference:.3g}"


def seeds(c: Comparison) -> Iterator[str]:
    """What a design with seeds until decided spent, and what it saved against the most that it may spend."""
    looks, state = c.design.looks, decisions.of(c)
    if not looks:
        return
    spent, most = sum(e.n + e.failed for e in c.entries), looks[-1] * len(c.entries)
    by_number: dict[int, list[str]] = {}
    for label, row in state.rows.items():
        by_number.setdefault(row.seeds, []).append(label)
    rows = "; ".join(f"{n}: {listed(labels)}" for n, labels in sorted(by_number.items()))
    more = f" Going on: {listed(list(state.going_on))}." if state.going_on else ""
    yield (
        f"Seeds until decided, looked at after {listed([str(n) for n in looks])}: {spent} runs of at most {most}. "
        f"Seeds of each: {rows}.{more} Intervals are those of the last look; what is sure takes all looks into account."
    )


def _cost(a: Answer) -> str:
    assert a.cost is not None
    if a.prefer == "memory":
        return f"{scaled(a.cost, MIB)} MiB"
    return count(a.cost) if a.prefer == "parameters" else seconds(a.cost)


def _share(a: Answer) -> str:
    if a.cost_ratio is None or a.chosen == a.reference:
        return ""
    return f", {a.cost_ratio:.2g} of {a.reference}'s"


def _open(a: Answer, looks: Sequence[int]) -> Iterator[str]:
    if not a.open or not (a.within or a.behind or looks):
        return
    start = f"Neither surely within {margin(a)} of the best nor surely behind: {listed(a.open)}."
    if a.hopeless:
        start += f" The last look would probably not decide it: {listed(a.hopeless)}."
    if not looks:
        yield start  # how many seeds would is said below the table's other conclusions
    elif a.examples_needed is not None:
        yield f"{start} {margin(a)} take about {two_digits(a.examples_needed):,} test examples, and more seeds."
    elif a.seeds_needed is not None and a.seeds_needed > looks[-1]:
        yield f"{start} About {two_digits(a.seeds_needed)} seeds would show a difference of {margin(a)}."
    else:
        yield start


def _questions(a: Answer, labels: Sequence[str]) -> Iterator[str]:
    for claim in a.claims:
        yield f"Planned question: {_question(claim, a, labels)}"


def _question(claim: Mapping[str, Any], a: Answer, labels: Sequence[str]) -> str:
    method, against, near = claim["method"], claim["against"], margin(a)
    asked = {
        None: f"how does {method} compare with {against}?",
        "better": f"is {method} better than {against}?",
        "worse": f"is {method} worse than {against}?",
        "equal": f"is {method} equal to {against} within {near}?",
        "not_worse": f"is {method} not worse than {against} by more than {near}?",
    }[claim["claim"]]
    found = {
        None: "",
        "better": f"{method} is better",
        "worse": f"{method} is worse",
        "equal": f"{method} is equal within {near}",
    }[claim["found"]]
    if absent := [label for label in (method, against) if label not in labels]:
        return f"{asked} Not answered: {listed(absent)} {are(absent)} not in this table."
    if claim["ahead"] is None:
        return f"{asked} Not answered: both need two seeds."
    yes = {True: "Yes", False: "No"}.get(claim["holds"])
    said = "; ".join(part for part in (yes, found) if part) or "Not decided"
    share = f"{100 * (1 - LEVEL) / len(a.claims):.2g} %"
    around = f"{_difference(claim, a.metric)}, {a.seeds[method]} seeds, at {share}"
    return f"{asked} {said} ({around})."


def _signed(number: float) -> str:
    """Three digits with a sign; what summing leaves of a difference that is none is none.

    >>> _signed(-18.04), _signed(3.7e-15), _signed(-3.7e-15)
    ('−18', '+0', '+0')
    """
    return f"{round(number, 9) + 0.0:+.3g}".replace("-", "−")


def _difference(claim: Mapping[str, Any], metric: str) -> str:
    """How far the method is ahead, with its 95 % interval: `−18.0 points [−24.1, −11.9]`."""
    scale = 100 if RANGES.get(metric, (0.0, 0.0))[1] == 1 else 1
    ends = [claim[key] for key in ("ahead", "low", "high")]
    value, *around = ("" if end is None else _signed(end * scale) for end in ends)
    return f"{value}{' points' if metric in RANGES else ''}" + (f" [{', '.join(around)}]" if all(around) else "")
