"""The table of a curve, what follows from it in sentences, and its rows for other programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from peftbench.report.data import decisions
from peftbench.report.data.axis_curves import OF_TASKS, AxisCurve, Line
from peftbench.report.data.comparison import length
from peftbench.report.media.markdown import escape
from peftbench.report.stats.crossings import Crossings
from peftbench.report.tables import answers, formatting
from peftbench.report.tables import columns as tables
from peftbench.report.tables.columns import TIED, Column
from peftbench.report.tables.formatting import listed

LEGEND = (
    "Each value has a table of its own below, with the same statistics. Surely: after Holm's correction over that "
    "table; nothing is corrected for the number of values. Between two tested values, curves are taken to be straight "
    "in the logarithm. A crossing's range has every place at which the 95 % interval of the difference contains 0."
)


def tables_of(curve: AxisCurve) -> Iterator[tuple[str, str]]:
    """(file name, text) of the curve's tables."""
    yield f"{curve.slug}.md", f"# {escape(curve.title)}\n\n{text(curve)}"
    yield f"{curve.slug}.csv", tables.csv(rows(curve))
    caption, below = f"{curve.title}: {setting(curve)}.", [*notes(curve), LEGEND]
    yield f"{curve.slug}.tex", tables.latex(columns(curve), curve.lines, caption, curve.slug, below)
    if pairs := pair_rows(curve):
        yield f"{curve.slug}--crossings.csv", tables.csv(pairs)


def text(curve: AxisCurve) -> str:
    """The section of the page on the curve."""
    facts = escape(f"Backbone {curve.backbone}; {setting(curve)}; {curve.metric}; reference: {curve.reference}.")
    listing = "".join(f"- {escape(note)}\n" for note in [*sentences(curve), *notes(curve), LEGEND])
    return f"{facts}\n\n{tables.markdown(columns(curve), curve.lines)}\n{listing}"


def setting(curve: AxisCurve) -> str:
    """The training length and the batch, as far as they do not vary."""
    steps = "" if curve.axis == "steps" else f"{length(curve.budget)} of "
    return f"{steps}{curve.budget.batch_size} examples" + (" a step" if curve.axis == "steps" else "")


def columns(curve: AxisCurve) -> list[Column]:
    """Columns of the readable table: one for each value."""

    def cell(value: int) -> Callable[[Line], str]:
        def scored(line: Line) -> str:
            v, e = line.verdict(value), line.entry(value)
            if v is None or e is None:
                return formatting.DASH
            return formatting.estimate(v.mean.value, v.interval, e.n, TIED if line.tied(value) else "")

        return scored

    return [Column("method", lambda line: line.label), *(Column(word, cell(x)) for x, word in curve.values.items())]


def sentences(curve: AxisCurve) -> Iterator[str]:
    """How each method compares with the reference along the axis, and where their curves cross."""
    for line in curve.lines:
        states = [(curve.values[x], state) for x in curve.values if (state := line.state(x, curve.direction))]
        if not states or not line.varies:
            continue
        runs = [(state, [word for word, _ in run]) for state, run in groupby(states, key=lambda one: one[1])]
        if len(runs) == 1 and len(states) == len(curve.values):
            said = f"{runs[0][0]} at every tested value"
        else:
            said = "; ".join(f"{state} at {listed(words)}" for state, words in runs)
        yield f"{line.label} against {curve.reference}: {said}.{_crossing(curve, curve.crossings(line))}"
    yield from enough(curve)


def enough(curve: AxisCurve) -> Iterator[str]:
    """From which value on more of the axis would not surely matter, for each method."""
    if curve.axis not in OF_TASKS:
        return
    last = max(curve.values)
    margin = decisions.margin_of(curve.tables[-1])
    found: dict[int | None, list[str]] = {}
    for line in curve.lines:
        if line.varies:
            found.setdefault(line.enough(last, margin, curve.direction), []).append(line.label)
    near = f"surely within {answers.amount(margin, curve.metric)} of {curve.values[last]} {curve.unit}"
    said = [f"{listed(found[x])} from {curve.values[x]} on" for x in sorted(v for v in found if v is not None)]
    said += [f"{listed(found[None])} at no smaller value"] if None in found else []
    if said:
        yield f"How much is enough, {near}: {'; '.join(said)} (each value by itself, one-sided at 5 %)."


def _crossing(curve: AxisCurve, found: Crossings | None) -> str:
    if found is None or not (found.estimates or found.parts):
        return ""
    where = _parts(found)
    if not found.estimates:
        return f" The means do not cross; a crossing may lie at {where} (95 %)."
    near = listed([rounded(x) for x in found.estimates])
    return f" The means cross near {near} {curve.unit}" + (f"; 95 %: {where}." if where else ".")


def _parts(found: Crossings) -> str:
    """The confidence set in words; an open end is one at which the tested range ends."""
    words = []
    for low, high in found.parts:
        if found.is_open(low) and found.is_open(high):
            words.append(f"any value from {rounded(low)} to {rounded(high)}, or beyond")
        elif found.is_open(low):
            words.append(f"{rounded(high)} or less")
        else:
            words.append(f"{rounded(low)} or more" if found.is_open(high) else f"{rounded(low)} to {rounded(high)}")
    return ", or ".join(words)


def rounded(position: float) -> str:
    """A position with two digits, as it is no more precise; a whole number as it is.

    >>> rounded(638.7), rounded(1834.2), rounded(4354), rounded(3.42)
    ('640', '1,800', '4,354', '3.4')
    """
    if position == int(position):
        return f"{int(position):,}"
    unit = 10 ** (math.floor(math.log10(position)) - 1)
    return f"{round(position / unit) * unit:,.{1 if unit < 1 else 0}f}"


def notes(curve: AxisCurve) -> Iterator[str]:
    """What the curve holds fixed, and what it cannot show."""
    values = list(curve.values.items())
    if curve.axis == "train_size":
        yield (
            "The training sets are nested: the smaller ones are inside the larger ones. Each was drawn once, so that "
            "what another draw would change is in no interval. Validation and test are the same for all."
        )
        if steps := curve.budget.steps:
            (few, _), (many, _) = values[0], values[-1]
            passes = [curve.budget.batch_size * steps / n for n in (few, many)]
            yield (
                f"Every size has the same number of optimiser steps: {passes[0]:.2g} passes over {few:,} examples, "
                f"{passes[1]:.2g} over {many:,}."
            )
        yield from _absent_classes(curve)
    unlearned = [c.learned is False for c in curve.tables]
    if any(unlearned):
        lost = [word for (_, word), is_lost in zip(values, unlearned, strict=False) if is_lost]
        where = f"At {listed(lost)} {curve.unit}, " if len(values) == len(unlearned) else ""
        yield f"{where}{curve.reference} does not beat the constant answer by more than its interval."
    known = [v for line in curve.lines for x, _ in values if (v := line.verdict(x))]
    if any(v.mean.is_of_runs for v in known):
        yield "Where a method has one seed, intervals and crossings hold for its trained networks, not for the method."
    for line in curve.lines:
        if missing := [word for x, word in values if line.verdict(x) is None]:
            yield f"{line.label} has no score at {listed(missing)}."


def _absent_classes(curve: AxisCurve) -> Iterator[str]:
    """Name the classes of which a training set has no example: what a method cannot learn there."""
    for word, c in zip(curve.values.values(), curve.tables, strict=True):
        counts = zip(c.data.classes, c.data.splits["train"].per_class, strict=True) if c.data else ()
        if absent := [name for name, examples in counts if not examples]:
            yield f"At {word} there is no training example of {listed(absent[:12])}, which no method can learn there."


def rows(curve: AxisCurve) -> list[dict[str, Any]]:
    """One flat row per method and value, unrounded, None where not known.

    Returns:
        experiment, task, axis, variant: the curve.
        value, all: the place on the axis, and whether it is every training example.
        method: label of the line.
        mean, mean_low, mean_high, n: mean score, its 95 % interval, and the number of seeds.
        difference, difference_low, difference_high, p_holm, state: mean less the reference's, its 95 % interval, the
            p-value after Holm's correction over the table, and what follows.
    """
    return [_row(curve, line, x, word) for line in curve.lines for x, word in curve.values.items()]


def _row(curve: AxisCurve, line: Line, x: int, word: str) -> dict[str, Any]:
    v, e, d = line.verdict(x), line.entry(x), line.difference(None, x)
    around, apart = (v.interval if v else None) or (None, None), (d.interval() if d else None) or (None, None)
    return {
        "experiment": curve.experiment,
        "task": curve.task,
        "axis": curve.axis,
        "variant": curve.variant or None,
        "value": x,
        "all": word.startswith("all"),
        "method": line.label,
        "metric": curve.metric,
        "mean": v.mean.value if v else None,
        "mean_low": around[0],
        "mean_high": around[1],
        "n": e.n if e else 0,
        "reference": curve.reference,
        "difference": d.value if d else None,
        "difference_low": apart[0],
        "difference_high": apart[1],
        "p_holm": v.p_holm if v and d else None,
        "state": line.state(x, curve.direction),
    }


def pair_rows(curve: AxisCurve) -> list[dict[str, Any]]:
    """One flat row per pair of methods, with a difference for each value; intervals are of one pair at one value.

    Returns:
        method, other: labels of the two.
        crossings: estimated places at which the curves cross, separated by spaces.
        crossing_set: parts of the 95 % confidence set, each as low..high, separated by spaces; an end that is the end
            of the tested range may be open.
        difference_N, difference_N_low, difference_N_high: method less other at value N, and its 95 % interval.
    """
    return [_pair(curve, one, other) for one, other in curve.pairs()]


def _pair(curve: AxisCurve, one: Line, other: Line) -> dict[str, Any]:
    found = curve.crossings(one, other)
    row: dict[str, Any] = {
        "method": one.label,
        "other": other.label,
        "crossings": " ".join(f"{x:.6g}" for x in found.estimates) if found else None,
        "crossing_set": " ".join(f"{low:.6g}..{high:.6g}" for low, high in found.parts) if found else None,
    }
    for x in curve.values:
        d = one.difference(other, x)
        low, high = (d.interval() if d else None) or (None, None)
        row |= {f"difference_{x}": d.value if d else None, f"difference_{x}_low": low, f"difference_{x}_high": high}
    return row


def block_lines(curve: AxisCurve) -> tuple[str, str, Sequence[str]]:
    """The title, the table and the notes for a terminal."""
    title = f"{curve.experiment}: {curve.title} ({curve.backbone}, {setting(curve)}, {curve.metric})"
    return title, tables.text(columns(curve), curve.lines), [*sentences(curve), *notes(curve)]
