"""Tuning trials as text: the table of chosen values, rows for other programs, and notes for a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftbench.records.trials import value_of
from peftbench.report.data.comparison import Comparison, Entry, length
from peftbench.report.data.tunings import (
    ConfigurationTrials,
    Tuning,
    chosen_for,
    edge_counts,
    expected_best,
    score,
    scores,
)
from peftbench.report.tables import formatting
from peftbench.report.tables.columns import Column

LEGEND = (
    "Every configuration has as many first trials, drawn from its own space at the same points of the unit square. "
    "Trials after a plus sign lie beyond an edge of that space, as the best so far lay there: one rule for all. "
    "Scores are those on the validation split, and a failed trial counts and loses. Edge: no trial lies beyond the "
    "chosen rate, or the chosen value is the first or last that its space has, so that a better one may lie outside."
)


def legend(t: Tuning) -> str:
    """What the table of chosen values means, and how many of them lie at an edge."""
    at_edge, chosen = edge_counts([t])
    return f"{LEGEND} At an edge: {at_edge or 'none'} of {chosen} chosen values." if chosen else LEGEND


def columns(t: Tuning) -> list[Column]:
    """Columns of the table of chosen values."""
    arrow = "↓" if t.direction == "min" else "↑"
    return [
        Column("method", lambda row: row.label),
        Column("trials", _number),
        Column("failed", lambda row: str(row.failed), 4),
        Column("chosen", _chosen),
        Column("edge", lambda row: ", ".join(f"{k}: {e}" for k, e in row.edges.items()) or "no", 1),
        Column(f"{t.metric} {arrow} on validation, best", lambda row: formatting.score(score(row.best)), 2, "best"),
        Column("median of its trials", lambda row: formatting.score(_median(row)), 3, "median"),
    ]


def _number(row: ConfigurationTrials) -> str:
    """The number of trials, such as "4 + 2" where two extend the space."""
    return f"{len(row.trials) - row.further} + {row.further}" if row.further else str(len(row.trials))


def _chosen(row: ConfigurationTrials) -> str:
    values = format_values(row.chosen)
    return values if row.failed < len(row.trials) else f"{values} (all failed: the first)"


def format_values(values: Mapping[str, Any]) -> str:
    """Format values: `lr=0.0021 alpha=16`."""
    return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())


def _median(row: ConfigurationTrials) -> float | None:
    known = [s for r in row.trials if (s := score(r)) is not None]
    return statistics.median(known) if known else None


def trial_rows(t: Tuning) -> list[dict[str, Any]]:
    """One flat row per trial, for a CSV file.

    Returns:
        experiment, task, method, method_name, trial: the trial and its number.
        extends: whether it lies beyond an edge of the first search space.
        lr, other: the learning rate, and the other drawn values as text.
        status, metric, validation: status of the trial, primary metric, and its score on the validation split.
        chosen, edge: whether it is the best trial, and which of its values lie at an edge.
    """
    return [
        {
            "experiment": t.experiment,
            "task": t.task,
            "method": row.label,
            "method_name": row.method,
            "trial": r.spec.trial,
            "extends": bool(r.spec.first_space),
            "lr": value_of(r, "lr"),
            "other": format_values({k: value_of(r, k) for k in row.space if k != "lr"}),
            "status": r.status,
            "metric": t.metric,
            "validation": score(r),
            "chosen": r is row.best,
            "edge": " ".join(f"{k}={e}" for k, e in row.edges.items()) if r is row.best else "",
        }
        for row in t.rows
        for r in row.trials
    ]


def best_rows(t: Tuning) -> list[dict[str, Any]]:
    """One flat row per configuration and number of trials, with the expected best score of so many."""
    return [
        {"experiment": t.experiment, "task": t.task, "method": row.label, "trials": k, "expected_best": value}
        for row in t.rows
        if (known := scores(t, row)) is not None
        for k, value in enumerate(expected_best(known, t.direction), start=1)
    ]


def noted(comparisons: Sequence[Comparison], tunings: Sequence[Tuning]) -> list[Comparison]:
    """Add the notes on trials, chosen values, and configurations without trials to the comparisons."""
    return [replace(c, notes=(*c.notes, *_notes(c, tunings))) for c in comparisons]


def json_row(c: Comparison, e: Entry, tunings: Sequence[Tuning]) -> dict[str, Any] | None:
    """The trials that chose an entry's values, JSON-ready; None if none did.

    Returns:
        trials, further, failed: number of trials, of those that extend the search space, and of failed ones.
        chosen, edges: hyperparameter -> value, and -> "lower" or "upper" if at an edge.
        validation: score of the best trial on the validation split.
    """
    choice = chosen_for(c, e, tunings)
    if choice is None:
        return None
    row = choice[1]
    return {
        "trials": len(row.trials),
        "further": row.further,
        "failed": row.failed,
        "chosen": row.chosen,
        "edges": row.edges,
        "validation": score(row.best),
    }


def _notes(c: Comparison, tunings: Sequence[Tuning]) -> Iterator[str]:
    tried = {row.label for t in tunings if (t.experiment, t.task) == (c.experiment, c.task) for row in t.rows}
    if not tried:
        return
    chosen = {e.label: one for e in c.entries if (one := chosen_for(c, e, tunings))}
    if chosen:
        firsts = {(len(row.trials) - row.further, length(t.budget)) for t, row in chosen.values()}
        lengths = " or ".join(f"{number} trials of {each}" for number, each in sorted(firsts))
        values = "; ".join(f"{label} {format_values(row.chosen)}" for label, (_, row) in chosen.items())
        yield f"Tuned on the validation split, {lengths} a method: {values}."
        if further := [f"{label} {row.further}" for label, (_, row) in chosen.items() if row.further]:
            yield f"Further trials, beyond an edge where the best so far lay: {', '.join(further)}."
    edges = {label: ", ".join(f"{k}: {e}" for k, e in row.edges.items()) for label, (_, row) in chosen.items()}
    if at_edge := ", ".join(f"{label} ({edge})" for label, edge in edges.items() if edge):
        yield f"At the edge of what was tried, so that a better choice may lie beyond: {at_edge}."
    others = [e for e in c.entries if e.label not in chosen]
    if kept := [e.label for e in others if not _is_among(e, tried)]:
        yield f"No trials, at the rate that the experiment gives: {', '.join(kept)}."
    if old := [e.label for e in others if _is_among(e, tried)]:
        yield f"Not what their trials choose now, as there are others since: {', '.join(old)}."


def _is_among(e: Entry, labels: set[str]) -> bool:
    return e.runs[0].spec.method.label in labels
