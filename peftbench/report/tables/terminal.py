"""Formats comparisons as plain text for a terminal of 120 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from peftbench.report.data.average import Average
from peftbench.report.data.axis_curves import AxisCurve
from peftbench.report.data.comparison import Comparison, Entry, length
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.samples import first_sample
from peftbench.report.data.tunings import Tuning
from peftbench.report.media.terminal import wrapped
from peftbench.report.tables import answers, axis_tables, columns, conclusions, latency_page, trials
from peftbench.report.tables.columns import WIDTH

LONGEST = 160  # characters of a text that the table shows


def text(
    comparisons: Sequence[Comparison],
    averages: Sequence[Average],
    passes: Sequence[Latencies] = (),
    tunings: Sequence[Tuning] = (),
    names: Sequence[str] = (),
    curves: Sequence[AxisCurve] = (),
) -> str:
    """The curves, a table per task, then those over tasks, latencies by shape and trials, each with its notes.

    Args:
        comparisons: one table per experiment, task and budget.
        averages: tables over tasks.
        passes: latencies of profile passes.
        tunings: tables of trials.
        names: columns to show in the first two; default: all that there is room for.
        curves: scores along the axes of experiments.
    """
    others = [*(_latency(p) for p in passes), *(_tuning(t) for t in tunings)]
    along = [block(*axis_tables.block_lines(curve)) for curve in curves]
    return "\n".join(
        [*along, *(_comparison(c, names) for c in comparisons), *(_average(a, names) for a in averages), *others]
    )


def verdicts(comparisons: Sequence[Comparison]) -> str:
    """What each table recommends, and what it leaves open, without the tables."""
    shown = [
        line
        for c in comparisons
        if (said := list(answers.first(c)))
        for line in (
            *wrapped(f"{c.experiment}, {c.title}", WIDTH),
            *(line for sentence in said for line in wrapped(sentence, WIDTH)),
            *(line for more in _what_is_open(c) for line in wrapped(more, WIDTH, "* ", "  ")),
        )
    ]
    return "\n".join(shown) or "No answer: a table needs two methods with two seeds each, and a task that was learned."


def _what_is_open(c: Comparison) -> Iterator[str]:
    yield from answers.sentences(c)
    if not c.design.looks:
        yield from conclusions.needed(c)


def _comparison(c: Comparison, names: Sequence[str]) -> str:
    constant = f", {c.constant}" if c.constant else ""
    title = f"{c.experiment}: {c.title} ({c.backbone}, {length(c.budget)}{constant})"
    table = columns.text(columns.columns(c, names), c.entries)
    said = [*conclusions.sentences(c), *conclusions.unmarked(c)]
    return block(title, table, [*said, *c.notes, *_sample(c)], answers.first(c))


def _average(a: Average, names: Sequence[str]) -> str:
    table = columns.text(columns.average_columns(a, names), a.standings)
    return block(f"{a.experiment}: average over tasks, relative to {a.reference}", table, a.notes)


def _latency(p: Latencies) -> str:
    handling = f"\n{columns.text(latency_page.handling_columns(), p.handling)}" if p.handling else ""
    table = columns.text(latency_page.columns(), p.cells)
    return block(f"{p.experiment}: latency, {p.title}", table + "\n" + handling, p.facts)


def _tuning(t: Tuning) -> str:
    title = f"{t.experiment}: {t.title} ({t.backbone}, {length(t.budget)} a trial)"
    return block(title, columns.text(trials.columns(t), t.rows), [trials.legend(t)])


def block(title: str, table: str, notes: Sequence[str], first: Iterable[str] = ()) -> str:
    """A title, what is said first, a table and its notes, wrapped."""
    lines = [line for sentence in (title, *first) for line in wrapped(sentence, WIDTH)] + [table]
    for note in notes:
        lines += wrapped(note, WIDTH, "* ", "  ")
    return "\n".join(lines) + "\n"


def _sample(c: Comparison) -> Iterator[str]:
    """One prompt and the text that the best configuration generated for it, for generation tasks."""
    best = sorted((e for e in c.entries if e.mean is not None), key=lambda e: _worse(c, e))
    for e in best[:1]:
        if sample := first_sample(e):
            prompt, prediction, reference = map(_brief, (sample.prompt, sample.prediction, sample.reference))
            written = f"{prompt} -> {prediction}; reference {reference}"
            yield f"A sample of {e.label}: {written}"


def _brief(text: str) -> str:
    """A text in quotes, with its beginning and end if it is long; report.md has all of it."""
    half = LONGEST // 2
    return repr(text) if len(text) <= LONGEST else f"{text[:half]!r} … {text[-half:]!r}"


def _worse(c: Comparison, e: Entry) -> float:
    return (e.mean or 0.0) * (1 if c.direction == "min" else -1)
