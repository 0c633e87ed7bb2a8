"""Notes on budgets: which one limited the runs, what the runs used of it, and which methods are exempt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.tables.formatting import count, scaled

MIB = 2**20


def noted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Add the notes on budgets to the comparisons."""
    return [replace(c, notes=(*c.notes, *_notes(c))) for c in comparisons]


def noted_averages(averages: Sequence[Average], comparisons: Sequence[Comparison]) -> list[Average]:
    """Add the exemptions of all its tables to each table over tasks."""
    entries = {
        a.experiment: [e for c in comparisons if c.experiment == a.experiment for e in c.entries] for a in averages
    }
    return [replace(a, notes=(*a.notes, *_exemptions(entries[a.experiment]))) for a in averages]


def exempt(e: Entry) -> Mapping[str, str]:
    """Budget -> the reason why it does not apply to the entry."""
    return e.runs[0].spec.method.exempt


def _notes(c: Comparison) -> Iterator[str]:
    budget, trained = c.budget, [t for e in c.entries for r in e.runs if (t := r.body.trained)]
    if budget.seconds is not None:
        stopped = [r.body.stopped_at for e in c.entries for r in e.runs if r.is_finished]
        steps = f" after {_span(stopped)} steps" if stopped else ""
        yield (
            f"Each run stopped at its first step after {budget.seconds:g} seconds of training steps{steps}. Such "
            "runs depend on the machine and do not repeat to the bit."
        )
    if budget.tokens is not None:
        seen = f": the runs saw {_span([t.tokens for t in trained])}" if trained else ""
        yield f"The number of steps follows from a budget of {count(budget.tokens)} training tokens{seen}."
    if budget.memory is not None:
        parts = ", ".join(f"{e.label} {_parts(e)}" for e in c.entries)
        yield (
            f"A budget of {scaled(budget.memory, MIB)} MiB, predicted for the largest batch that there can be, "
            f"decides in how many parts a batch is computed: {parts}."
        )
    yield from _exemptions(c.entries)


def _parts(e: Entry) -> int:
    return e.runs[0].spec.train.accumulation


def _exemptions(entries: Sequence[Entry]) -> Iterator[str]:
    labels_by_reason: dict[tuple[str, str], list[str]] = {}
    for e in entries:
        for axis, reason in exempt(e).items():
            labels_by_reason.setdefault((axis, reason), []).append(e.label)
    for (axis, reason), labels in labels_by_reason.items():
        yield f"Exempt from the budget of {axis}: {', '.join(dict.fromkeys(labels))} ({reason.strip()})."


def _span(values: Sequence[Any]) -> str:
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"
