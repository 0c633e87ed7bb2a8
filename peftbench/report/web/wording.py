"""The verdict on the page: three sentences by rule. The page's scripts fill the same templates after a margin moved.

1. The cheapest row that is surely not worse than the best by more than the margin, or that there is none.
2. What it costs beside the reference; without an answer, what the row with the best score costs.
3. How sure that is, and what would settle the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from peftbench.report.data import answer, decisions, pairs, scores, verdicts
from peftbench.report.data.answer import Answer
from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison, Entry, constant_answer
from peftbench.report.data.notes import not_learned
from peftbench.report.media.plain import visible
from peftbench.report.tables import answers
from peftbench.report.tables.formatting import are, estimate, listed, two_digits
from peftbench.report.web import costs

WIDE = 5  # times the experiment's margin: a wider one is no use to name
TEXT = {
    "chosen": "Take {chosen}: it has the least {cost}{alike} of the {number} methods that are surely not worse than "
    "the best by more than {margin} ({within}).",
    "only": "Take {chosen}: no other method is surely not worse than the best by more than {margin}.",
    "uncosted": "Surely not worse than the best by more than {margin}: {within}; which has the least {cost} was not "
    "measured.",
    "none": "No answer yet: no method is surely within {margin} of the best.",
    "alike": ", give or take 1 %,",
    "alone": "Only {label} fits these limits.",
    "few": "No answer: of what fits, fewer than two methods have two seeds to compare.",
    "nothing": "No method fits these limits.",
    "why": "No answer: {why}.",
    "unscored": "No answer: no method that fits these limits has a score.",
    "costs": "{label} {costs}.",
    "leader": "The best score is that of {label}, {score}; it {costs}.",
    "leader_fits": "Of what fits, {label} has the best score, {score}; it {costs}.",
    "leader_fits_alone": "Of what fits, {label} has the best score, {score}.",
    "next": "Of the others{fitting}, {label} has the best score, {score}; it {costs}.",
    "leader_alone": "The best score is that of {label}, {score}.",
    "sample": "This rests on {seeds}{examples}, at 95 % for all methods together: {counts}.",
    "seeds": "About {seeds} seeds would show a difference of {margin} in one pair (80 % power).",
    "more": "To show a difference of {margin} takes about {examples} test examples, and more seeds.",
    "enough": "These seeds show a difference of {margin} in one pair (80 % power); the whole table at once takes more.",
    "beyond": "No number of seeds up to 1,000 would show a difference of {margin} in one pair.",
    "no_spread": answers.NO_SPREAD,
    "bears": "The smallest margin with an answer is {least}: {labels}.",
    "everywhere": "Take {chosen}: it has the least {cost}{alike} of those surely within the margin of the best on each "
    "of {tasks} tasks ({within}).",
    "everywhere_only": "Take {chosen}: no other method is surely within the margin of the best on each of {tasks} "
    "tasks.",
    "everywhere_uncosted": "Surely within the margin of the best on each of {tasks} tasks: {within}; which has the "
    "least {cost} was not measured.",
    "nowhere": "No answer yet for {all} tasks together: no method is surely within the margin of the best on each.",
    "average": "Beside {reference}, {among}{label} has the highest average, {score} of {reference}’s score; it "
    "{costs}.",
    "average_fits": "Of what fits, {label} has the highest average, {score} of {reference}’s score; it {costs}.",
    "tasks": "{answered} of {tasks} tasks {have} an answer{named}{unlearned}; {seeds}, each task at 95 %.",
    "lacks": " To show the margin in one pair, of those still open, takes {needs}.",
    "lacks_seeds": "about {seeds} seeds on {task}",
    "lacks_more": "more than the present seeds on {task}",
    "lacks_examples": "about {examples} test examples on {task}",
    "lacks_all": "over 1,000 seeds on {task}",
}


def of(c: Comparison) -> list[str]:
    """The three sentences on a table; fewer where there is nothing to say."""
    told = answer.of(c)
    first = _first(c, told)
    shown = _entry(c, told.chosen) if told and told.chosen else leader(c)
    return [first, *_second(c, shown, bool(told and told.chosen)), *_third(c, told)]


def _first(c: Comparison, told: Answer | None) -> str:
    if told is None:
        return TEXT["why"].format(why=why_none(c))
    fields = {
        "chosen": visible(told.chosen or ""),
        "cost": costs.NAMES[told.prefer],
        "alike": "" if told.is_least else TEXT["alike"],
        "number": len(told.within),
        "margin": answers.margin(told),
        "within": visible(listed(told.within)) if told.within else "",
    }
    if not told.within:
        return TEXT["none"].format(**fields)
    if told.chosen is None:
        return TEXT["uncosted"].format(**fields)
    return TEXT["only" if len(told.within) == 1 else "chosen"].format(**fields)


def _second(c: Comparison, e: Entry | None, is_chosen: bool) -> Iterator[str]:
    if e is None:
        return
    text = costs.beside(c, e)
    fields = {"label": visible(e.label), "score": costs.score(c, e), "costs": text}
    if is_chosen:
        after = _next(c, e) if e.label == c.reference else ""
        if said := " ".join(filter(None, (TEXT["costs"].format(**fields) if text else "", after))):
            yield said
    elif not is_chosen:
        yield TEXT["leader" if text else "leader_alone"].format(**fields)


def _next(c: Comparison, chosen: Entry) -> str:
    """What the best of the other rows gives, where the answer is the reference itself."""
    e = leader(c, chosen.label)
    if e is None or not (text := costs.beside(c, e)):
        return ""
    return TEXT["next"].format(fitting="", label=visible(e.label), score=costs.score(c, e), costs=text)


def _third(c: Comparison, told: Answer | None) -> Iterator[str]:
    if told is None:
        return
    counts = {"within the margin": told.within, "surely behind": told.behind, "not decided": told.open}
    said = [f"{len(labels)} {name}" for name, labels in counts.items() if labels]
    parts = [TEXT["sample"].format(seeds=seeds_of(c), examples=examples_of(c), counts=", ".join(said))]
    if told.open:
        parts.append(_needed(c, told))
    if flat := pairs.without_spread(c):
        parts.append(TEXT["no_spread"].format(labels=visible(listed(flat))))
    least = pairs.least_margin(c, decisions.of(c).candidates) if not told.within else None
    if least and least[0] < min(usable_margin(c), WIDE * told.margin):
        margin = answers.amount(_rounded_up(least[0], c), c.metric)
        parts.append(TEXT["bears"].format(least=margin, labels=visible(listed(least[1]))))
    yield " ".join(part for part in parts if part)


def usable_margin(c: Comparison) -> float:
    """How far the best score is from that of a constant answer: any method is within a larger margin."""
    best = leader(c)
    if best is None or best.mean is None or c.majority is None:
        return math.inf
    return abs(best.mean - c.majority)


def _needed(c: Comparison, told: Answer) -> str:
    """What would settle the rows that are open."""
    margin = answers.margin(told)
    if told.seeds_needed is not None:
        if told.seeds_needed > min(len(scores.of(c)[label].seeds) for label in told.open):
            return TEXT["seeds"].format(seeds=two_digits(told.seeds_needed), margin=margin)
        return TEXT["enough"].format(margin=margin)
    if told.examples_needed is not None:
        return TEXT["more"].format(examples=f"{two_digits(told.examples_needed):,}", margin=margin)
    return TEXT["beyond"].format(margin=margin) if _has_gaps(c, told) else ""


def _has_gaps(c: Comparison, told: Answer) -> bool:
    """Whether the distance of any open row to the best says how many seeds would do."""
    gaps = [gap for label in told.open if (gap := verdicts.of(c)[label].to_best)]
    return any(gap.is_known and not gap.is_of_runs for gap in gaps)


def _rounded_up(margin: float, c: Comparison) -> float:
    """A margin with two digits, not below it, so that it has an answer."""
    import math

    if margin <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(margin)) - 1)
    return (math.floor(margin / unit) + 1) * unit


def over_tasks(a: Average, tables: Sequence[Comparison]) -> list[str]:
    """The three sentences on all tasks of an experiment."""
    told = [one for c in tables if (one := answer.of(c))]
    everywhere = answer.over_tasks(told) if len(told) == len(tables) else ()
    costing = {s.label: s for s in a.standings}
    prefer = tables[0].design.prefer
    by_cost = {label: cost for label in everywhere if (cost := mean_cost(tables, label, prefer)) is not None}
    fields = {
        "tasks": len(tables),
        "all": all_of(len(tables)),
        "cost": costs.NAMES[prefer],
        "within": visible(listed(everywhere)) if everywhere else "",
    }
    others = [s for s in a.standings if s.relative is not None and s.label != a.reference]
    said, chosen = [], answer.cheapest(by_cost, {s.label: s.relative or 0.0 for s in a.standings})
    if chosen is not None:
        fields["alike"] = "" if by_cost[chosen] <= min(by_cost.values()) else TEXT["alike"]
        said.append(
            TEXT["everywhere_only" if len(everywhere) == 1 else "everywhere"].format(chosen=visible(chosen), **fields)
        )
        if (text := costs.over_tasks(a, costing[chosen])) and chosen != a.reference:
            said.append(TEXT["costs"].format(label=visible(chosen), costs=text))
    elif everywhere:
        said.append(TEXT["everywhere_uncosted"].format(**fields))
    else:
        said.append(TEXT["nowhere"].format(**fields))
    if others and (not by_cost or chosen == a.reference):
        s = max(others, key=lambda s: s.relative or 0.0)  # the first of ties
        score = estimate(s.relative, s.relative_interval)
        about = {"label": visible(s.label), "score": score, "reference": visible(a.reference), "among": ""}
        said.append(TEXT["average"].format(costs=costs.over_tasks(a, s), **about))
    found = [f for f in told if f.within]
    unlearned = [c.title for c in tables if c.learned is False]
    named = (
        f" ({'; '.join(f'{visible(f.task)}: {visible(f.chosen or listed(f.within))}' for f in found)})" if found else ""
    )
    missed = f", {visible(listed(unlearned))} {are(unlearned)} not learned" if unlearned else ""
    seeds = listed(list(dict.fromkeys(seeds_of(c) for c in tables)))
    last = TEXT["tasks"].format(
        answered=len(found),
        have="has" if len(found) == 1 else "have",
        tasks=len(tables),
        named=named,
        unlearned=missed,
        seeds=seeds,
    )
    needs = [need for c in tables if (one := answer.of(c)) and not one.within and (need := _lacks(c, one))]
    return [*said, last + (TEXT["lacks"].format(needs=listed(needs)) if needs else "")]


def _lacks(c: Comparison, told: Answer) -> str:
    """What would settle a task, in a few words; empty if it is not known."""
    task = visible(c.title)
    if told.seeds_needed is not None:
        present = min(len(scores.of(c)[label].seeds) for label in told.open)
        key = "lacks_seeds" if told.seeds_needed > present else "lacks_more"
        return TEXT[key].format(seeds=two_digits(told.seeds_needed), task=task)
    if told.examples_needed is not None:
        return TEXT["lacks_examples"].format(examples=f"{two_digits(told.examples_needed):,}", task=task)
    return TEXT["lacks_all"].format(task=task) if _has_gaps(c, told) else ""


def all_of(number: int) -> str:
    """`both`, or `all 4`."""
    return "both" if number == 2 else f"all {number}"


def mean_cost(tables: Sequence[Comparison], label: str, prefer: str) -> float | None:
    """A cost of a row, as the mean over tables; None if one lacks it."""
    known = [costs.value(e, prefer) for c in tables if (e := _entry(c, label))]
    values = [v for v in known if v is not None]
    return sum(values) / len(values) if len(values) == len(tables) else None


def why_none(c: Comparison) -> str:
    """Why a table can have no answer, as the end of a sentence."""
    finished = [e for e in c.entries if e.n]
    if not finished:
        runs = sum(len(e.runs) for e in c.entries)
        return f"none of the {runs} runs has a score" if runs > 1 else "the one run has no score"
    if c.learned is False:
        against = constant_answer(c.metric)
        return (
            f"{not_learned(c)}, as {visible(c.reference)} does not surely beat the {against}, so no difference counts"
        )
    if len(finished) == 1:
        return f"{visible(finished[0].label)} is the only method with a score, so there is nothing to compare it with"
    return "fewer than two methods have two seeds, and one seed says nothing of others"


def leader(c: Comparison, but: str | None = None) -> Entry | None:
    """The row with the best mean score, but for one; the first of ties."""
    scored = [e for e in c.entries if e.mean is not None and e.label != but]
    sign = -1 if c.direction == "min" else 1
    return max(scored, key=lambda e: sign * (e.mean or 0.0), default=None)


def seeds_of(c: Comparison) -> str:
    """`3 seeds`, or `2 to 5 seeds`."""
    numbers = [len(s.seeds) for s in scores.of(c).values()]
    if not numbers:
        return "no seed"
    low, high = min(numbers), max(numbers)
    return f"{low} seed{'s' * (high > 1)}" if low == high else f"{low} to {high} seeds"


def examples_of(c: Comparison) -> str:
    """` and 500 test examples`; empty if their influences are not known."""
    most = max((v.mean.examples for v in verdicts.of(c).values()), default=0)
    return f" and {most:,} test examples" if most else ""


def _entry(c: Comparison, label: str) -> Entry | None:
    return next((e for e in c.entries if e.label == label), None)


def template_block() -> dict[str, Any]:
    """The templates and words that the page's scripts use."""
    return {**TEXT, "cost_names": dict(costs.NAMES)}
