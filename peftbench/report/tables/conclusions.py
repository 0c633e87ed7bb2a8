"""Sentences on what a table shows, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peftbench.records.ranges import LEAST
from peftbench.report.data import answer, decisions, verdicts
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.verdicts import ScoreVerdict
from peftbench.report.stats import power
from peftbench.report.stats.influence import COUNTED
from peftbench.report.stats.intervals import LEVEL, RANGES, Estimate
from peftbench.report.tables import answers
from peftbench.report.tables.formatting import are, listed, two_digits

ALPHA = 1 - LEVEL


def sentences(c: Comparison) -> Iterator[str]:
    """The conclusions, most important first; none if differences mean nothing or there is nothing to compare."""
    if len(verdicts.of(c)) < 2:
        return
    if c.learned is False:
        yield from answers.seeds(c)
        return
    yield from answers.sentences(c)
    yield from _scope(c)
    if c.design.looks:
        yield from _decided(c)
        yield from answers.seeds(c)
        return
    if any(v.tied is not None for v in verdicts.of(c).values() if not v.is_best):
        yield _about_the_best(c)
    if any(v.p_holm is not None for v in verdicts.of(c).values()):
        yield _about_the_reference(c)
        yield from _asked_alone(c)
        yield from _tied_but_worse(c)
    yield from needed(c)


def _decided(c: Comparison) -> Iterator[str]:
    """What the looks have decided so far."""
    a = answer.of(c)
    if a is None:
        return
    state = decisions.of(c)
    behind = [label for label, row in state.rows.items() if row.behind]
    if behind:
        yield f"Surely behind the best: {listed(behind)}."
    if c.reference not in a.seeds:
        return  # it has too few scores to be compared with
    words = {"better": "better", "worse": "worse", "equal": f"equal within {answers.margin(a)}", None: "not decided"}
    named = {word: [label for label, how in a.versus.items() if how == found] for found, word in words.items()}
    phrases = [f"{listed(labels)} {are(labels)} {word}" for word, labels in named.items() if labels]
    yield f"Against {c.reference}: {'; '.join(phrases)}."


def marks(c: Comparison) -> Iterator[str]:
    """What the dots mean; or, where every configuration would have one, what that means."""
    if len(verdicts.of(c)) < 2:
        return
    if verdicts.some_are_behind(c):
        yield "• the best, and what cannot be told apart from it."
    else:
        yield from unmarked(c) if c.learned is False else [f"{_none_is_behind(c)}."]


def unmarked(c: Comparison) -> Iterator[str]:
    """Why no configuration has a dot, where the sentences do not say it."""
    if c.learned is False and len(verdicts.of(c)) > 1 and not verdicts.some_are_behind(c):
        yield "No configuration has a dot, as each would have one: none can be told apart from the best."


def _none_is_behind(c: Comparison) -> str:
    best = next(label for label, v in verdicts.of(c).items() if v.is_best)
    sample = _sample(list(verdicts.of(c).values()))
    return f"No configuration can be told apart from the best, {best}, {sample}"


def _scope(c: Comparison) -> Iterator[str]:
    """What the intervals cover, unless that is both seeds and test examples."""
    one = [label for label, v in verdicts.of(c).items() if v.mean.is_of_runs]
    if one:
        whose = "" if len(one) == len(verdicts.of(c)) else f" of {listed(one)}"
        yield (
            f"One seed{whose}: intervals and ties hold for these trained networks on new test examples. What another "
            "seed would change is not known, so nothing follows for the methods themselves."
        )
    elif min(v.mean.seeds for v in verdicts.of(c).values()) == 2:
        yield (
            "Two seeds hardly show how far seeds differ: intervals rest on what is usual in this table, and one more "
            "seed narrows them most."
        )
    blind = [label for label, v in verdicts.of(c).items() if not v.mean.examples]
    if blind:
        whose = "" if len(blind) == len(verdicts.of(c)) else f" of {listed(blind)}"
        yield f"The intervals{whose} are from the seeds alone: what the test examples add is not known for {c.metric}."


def _about_the_best(c: Comparison) -> str:
    best = next(label for label, v in verdicts.of(c).items() if v.is_best)
    tied = [label for label, v in verdicts.of(c).items() if v.tied and not v.is_best]
    others = [label for label, v in verdicts.of(c).items() if v.tied is False]
    sample = _sample(list(verdicts.of(c).values()))
    if not others:
        return f"{_none_is_behind(c)}."
    if not tied:
        return f"{best} is better than every other configuration, {sample}."
    return f"{listed([best, *tied])} cannot be told apart at the top, {sample}; {listed(others)} {are(others)} behind."


def _about_the_reference(c: Comparison) -> str:
    sign = -1 if c.direction == "min" else 1
    known = {label: v for label, v in verdicts.of(c).items() if v.p_holm is not None and v.difference}
    sure = {label: sign * d.value for label, d in _sure(c).items()}
    runs = [n for n, v in known.items() if v.difference and v.difference.is_of_runs]
    whose = "Of these trained networks, against" if len(runs) == len(known) else "Against"
    named = {n: f"{n} (its one trained network)" if n in runs and whose == "Against" else n for n in sure}
    better, worse = [named[n] for n, d in sure.items() if d > 0], [named[n] for n, d in sure.items() if d < 0]
    phrases = [f"{listed(names)} {are(names)} {how}" for names, how in ((better, "better"), (worse, "worse")) if names]
    rest = len(known) - len(sure)
    if not phrases:
        return f"No difference to {c.reference} is sure (Holm's correction over {len(known)})."
    open_ones = f"; {rest} of {len(known)} cannot be told apart from it" if rest else ""
    return f"{whose} {c.reference}, {' and '.join(phrases)} (Holm's correction over {len(known)}){open_ones}."


def _tied_but_worse(c: Comparison) -> Iterator[str]:
    """Explains configurations that are worse than the reference, yet tied with the best."""
    sign = -1 if c.direction == "min" else 1
    both = [n for n, d in _sure(c).items() if sign * d.value < 0 and verdicts.of(c)[n].tied]
    if not both:
        return
    start = f"{listed(both)} {are(both)} surely below {c.reference} and yet marked as tied with the best"
    if verdicts.of(c)[c.reference].is_best:
        yield f"{start}: Bonferroni's correction, which decides on ties, is stricter than Holm's."
    else:
        yield f"{start}: every pair has an interval of its own, and theirs to the best is wider or not corrected alike."


def _sure(c: Comparison) -> dict[str, Estimate]:
    """label -> difference to the reference, for the differences that are significant after Holm's correction."""
    known = ((n, v.difference, v.p_holm) for n, v in verdicts.of(c).items())
    return {n: d for n, d, p in known if d and p is not None and p < ALPHA}


def _asked_alone(c: Comparison) -> Iterator[str]:
    """Explains rows that their planned question alone calls different."""
    found = {q.claim.method: q.found for q in decisions.of(c).questions if q.claim.against == c.reference}
    alone = [n for n, how in found.items() if how in ("better", "worse") and n not in _sure(c)]
    if alone:
        yield (
            f"That of {listed(alone)} is sure by {'its' if len(alone) == 1 else 'their'} planned question alone, which "
            "is not corrected for the other rows; equal means are judged otherwise there."
        )


def needed(c: Comparison) -> Iterator[str]:
    """How many seeds or test examples a small difference would need."""
    pairs = [v.to_best for v in verdicts.of(c).values() if v.to_best and v.tied and not v.to_best.is_of_runs]
    pairs = pairs or [v.to_best for v in verdicts.of(c).values() if v.to_best and not v.to_best.is_of_runs]
    pairs = [p for p in pairs if p.is_known]
    if not pairs:
        return
    size, name = _size(c)
    if size < LEAST:
        return  # a share of nothing, which nothing shows
    variance = power.VarianceComponents.of(pairs)
    if c.metric in COUNTED and size * variance.examples < 1 <= variance.examples:
        yield f"One of {variance.examples:,} test examples is more than {name}, which no number of seeds can show."
        return
    if variance.seed == variance.shared == 0:
        yield f"All seeds agree exactly, so that they do not tell how many would show {name}."
        return
    seeds, now = variance.seeds_for(size), min(p.seeds for p in pairs)
    sure = "(80 % power, one pair at 95 %)"
    if seeds is None and (examples := variance.examples_for(size)) <= variance.examples:
        yield f"Seeing {name} {sure} would need more than {power.MOST:,} seeds."
    elif seeds is None:
        yield (
            f"Seeing {name} {sure} would need about {two_digits(examples):,} test examples, and more seeds: on these "
            f"{variance.examples:,} no number of seeds is enough."
        )
    elif seeds > now:
        yield f"Seeing {name} {sure} would need about {two_digits(seeds)} seeds."
    else:
        yield f"These seeds are enough to see {name} {sure}."


def _size(c: Comparison) -> tuple[float, str]:
    """(difference to plan for, its name): the margin."""
    size = decisions.margin_of(c)
    if c.design.margin is not None or c.metric in RANGES:
        return size, f"a difference of {answers.amount(size, c.metric)} of {c.metric}"
    return size, f"a difference of 2 % of the best {c.metric} ({size:.3g})"


def _sample(all_: Sequence[ScoreVerdict]) -> str:
    """The sample in words: `with 3 seeds and 400 test examples`."""
    means: list[Estimate] = [v.mean for v in all_]
    low, high = min(m.seeds for m in means), max(m.seeds for m in means)
    seeds = f"{low}" if low == high else f"{low} to {high}"
    examples = max(m.examples for m in means)
    known = f" and {examples:,} test examples" if examples else ""
    return f"with {seeds} seed{'' if high == 1 else 's'}{known}"
