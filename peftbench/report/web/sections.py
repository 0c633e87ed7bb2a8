"""What the page's template shows of each table, average, pass and set of trials: texts and plain tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peftbench.records.record import RunRecord
from peftbench.report.data import data_text, decisions, pairs
from peftbench.report.data.average import Average
from peftbench.report.data.axis_curves import AxisCurve
from peftbench.report.data.comparison import Comparison, constant_answer, in_digits, length
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.samples import first_sample
from peftbench.report.data.tunings import Tuning
from peftbench.report.media.plain import lines, visible
from peftbench.report.tables import (
    answers,
    axis_tables,
    class_scores,
    conclusions,
    differences,
    forgetting,
    latency_page,
    step_costs,
    trials,
)
from peftbench.report.tables.formatting import count, listed
from peftbench.report.web import picture, series, tables, wording
from peftbench.report.web.charts import PARTS

SYMBOLS = {"better": "▲", "worse": "▼", "equal": "=", "open": "·", "self": ""}
HOLM = (
    "Better and worse: sure from both sides, at 95 % for each column (Holm). Equal: by two one-sided tests at 5 % for "
    "the whole column. The verdict asks only about the best, so that more can be surely behind it."
)
LOOKED = "Better, worse and equal at the levels of the planned looks."
Section = dict[str, Any]
EMPTY: Section = dict.fromkeys(
    ("sentences", "table", "matrix", "axis", "losses", "tuning", "memory", "latency", "step", "samples", "classes",
     "forgetting", "failed", "data", "versions", "records", "picture", "differences", "notes", "facts", "runs",
     "sources")
)  # fmt: skip


def setting(comparisons: Sequence[Comparison]) -> str:
    """What was compared, in a line."""
    if not comparisons:
        return ""
    methods = {e.label for c in comparisons for e in c.entries}
    tasks = {c.task for c in comparisons}
    parts = [_several(len(methods), "method"), _several(len(tasks), "task")]
    parts.append(listed(sorted({visible(c.backbone) for c in comparisons})))
    budgets = dict.fromkeys(f"{length(c.budget)} of {c.budget.batch_size} examples" for c in comparisons)
    parts += [next(iter(budgets))] if len(budgets) == 1 else []
    parts.append(listed(list(dict.fromkeys(wording.seeds_of(c) for c in comparisons))[:3]))
    return " · ".join(parts)


def of_average(a: Average, comparisons: Sequence[Comparison]) -> Section:
    """A table over tasks."""
    mine = [c for c in comparisons if (c.point.words if c.point else "") == a.variant]
    return {
        **EMPTY,
        "kind": "average",
        "slug": a.slug,
        "experiment": visible(a.experiment),
        "title": f"{wording.all_of(len(mine)).capitalize()} tasks" + (f", {visible(a.variant)}" if a.variant else ""),
        "sentences": wording.over_tasks(a, mine),
        "table": tables.average(a),
        "picture": picture.average(a),
        "facts": f"Scores and costs relative to {visible(a.reference)}, as the mean over tasks.",
        "notes": [visible(note) for note in a.notes],
        "notes_title": f"Notes on this table ({len(a.notes)})",
        "series": {},
    }


def of_axis(a: AxisCurve) -> Section:
    """Scores along an axis."""
    first = list(axis_tables.enough(a))
    others = [sentence for sentence in axis_tables.sentences(a) if sentence not in first]
    return {
        **EMPTY,
        "kind": "axis",
        "slug": a.slug,
        "experiment": visible(a.experiment),
        "title": visible(a.title),
        "sentences": [visible(sentence) for sentence in first],
        "axis": tables.plain(axis_tables.columns(a), a.lines),
        "axis_notes": [visible(n) for n in (*others, *axis_tables.notes(a), axis_tables.LEGEND)],
        "axis_words": f"{visible(a.metric)} on the test split by {visible(a.unit)}, with 95 % intervals.",
        "series": {"axis": series.axis(a), "words": {"@x": visible(a.unit), "@y": visible(a.metric)}},
    }


def of_table(c: Comparison, beside: Sequence[Any], runs: str) -> Section:
    """A table with all that belongs to its task."""
    passes = [x for x in beside if isinstance(x, Latencies)]
    tuned = [x for x in beside if isinstance(x, Tuning)]
    records, losses, memory = _records(c), series.losses(c), series.memory(c)
    smoothing = f"moving average over {losses['window']} steps" if losses["window"] > 1 else "not smoothed"
    shows_differences = differences.known(c)
    said = [*list(answers.first(c))[1:], *conclusions.sentences(c), *conclusions.unmarked(c), *c.notes]
    return {
        **EMPTY,
        "kind": "table",
        "slug": c.slug,
        "experiment": visible(c.experiment),
        "title": visible(c.title),
        "reference": visible(c.reference),
        "sentences": wording.of(c),
        "table": tables.scores(c),
        "picture": picture.scores(c),
        "facts": _facts(c),
        "notes_title": f"What the report concludes at its own margin, and under which conditions ({len(said)} notes)",
        "notes": [visible(n) for n in said],
        "matrix": matrix(c),
        "margin": answers.amount(decisions.margin_of(c), c.metric),
        "pairs_rule": LOOKED if c.design.looks else HOLM,
        "differences": tables.plain(differences.columns(c), c.entries) if shows_differences else None,
        "differences_legend": differences.legend(c) if shows_differences else "",
        "losses": bool(losses["curves"]),
        "loss_words": f"Training loss of each step, mean over seeds, {smoothing}. Choose a method to see its line.",
        "tuning": [_tuning(t) for t in tuned],
        "memory": _memory(memory),
        "latency": [_latency(p) for p in passes],
        "step": tables.plain(step_costs.columns(c.reference), c.entries) if step_costs.known(c.entries) else None,
        "step_legend": step_costs.LEGEND,
        "samples": _samples(c),
        "classes": _classes(c),
        "classes_legend": class_scores.legend(c) if class_scores.known(c) else "",
        "forgetting": tables.plain(forgetting.columns(c), c.entries) if forgetting.known(c) else None,
        "forgetting_legend": forgetting.legend(c) if forgetting.known(c) else "",
        "failed": list(_failed(c)),
        "data": [visible(f) for f in data_text.facts(c.data, c.budget.max_length)] if c.data else None,
        "versions": _versions([r for e in c.entries for r in e.runs]),
        "commands": _commands(c),
        "runs": runs,
        "records": sorted({name for of in records.values() for names in of.values() for name in names}),
        "sources": records,
        "series": {
            "loss": losses,
            "memory": memory,
            "latency": [{"title": visible(p.title), "rows": series.latencies(p)} for p in passes],
            "tuning": [_trial_series(t) for t in tuned],
        },
    }


def alone(x: Latencies | Tuning, runs: str) -> Section:
    """A pass or trials without final runs."""
    section = {
        **EMPTY,
        "kind": "alone",
        "slug": x.slug,
        "experiment": visible(x.experiment),
        "title": visible(f"Latency, {x.title}" if isinstance(x, Latencies) else x.title),
        "runs": runs,
    }
    if isinstance(x, Latencies):
        rows = {"latency": [{"title": visible(x.title), "rows": series.latencies(x)}]}
        return {**section, "latency": [_latency(x)], "series": rows}
    return {**section, "tuning": [_tuning(x)], "series": {"tuning": [_trial_series(x)]}}


def matrix(c: Comparison) -> dict[str, list[tuple[str, str]]]:
    """Row -> (state, symbol) against each row, at the table's margin; empty without two rows to compare."""
    found, margin = pairs.of(c), decisions.margin_of(c)
    labels = [e.label for e in c.entries if any(e.label == label for label, _ in found)]
    how = {
        (a, b): "self" if a == b else found[a, b].how(margin) or "open" for a in labels for b in labels
    }  # a row has a pair with every other
    return {visible(a): [(how[a, b], SYMBOLS[how[a, b]]) for b in labels] for a in labels}


def _facts(c: Comparison) -> str:
    facts = [
        f"Backbone {visible(c.backbone)}; {length(c.budget)} of {c.budget.batch_size} examples, at most "
        f"{c.budget.max_length} tokens each; reference: {visible(c.reference)}."
    ]
    if c.majority is not None:
        facts.append(f"Always answering the {constant_answer(c.metric)} gives {c.metric} {in_digits(c.majority)}.")
    return " ".join(facts)


def _memory(rows: series.Rows) -> dict[str, Any] | None:
    if not rows:
        return None
    heads = ["method", *PARTS, "peak", "phase of the peak"]
    cells = [[r["label"], *(f"{r[p]:.1f}" for p in (*PARTS, "peak")), r["phase"]] for r in rows]
    return {"heads": heads, "rows": cells}


def _latency(p: Latencies) -> Section:
    return {
        "title": visible(p.title),
        "words": visible(" ".join((*p.facts, "● the adapter apart, ◇ merged into the weights."))),
        "table": tables.plain(latency_page.columns(), p.cells),
        "handling": tables.plain(latency_page.handling_columns(), p.handling) if p.handling else None,
    }


def _tuning(t: Tuning) -> Section:
    return {
        "title": visible(t.title),
        "words": f"Validation {visible(t.metric)} of each trial by its learning rate; ◆ is the one that was chosen.",
        "table": tables.plain(trials.columns(t), t.rows),
        "legend": f"{length(t.budget)} a trial, batches of {t.budget.batch_size} examples. {trials.legend(t)}",
    }


def _trial_series(t: Tuning) -> Section:
    words = {"@x": "learning rate", "@y": visible(t.metric)}
    return {"title": visible(t.title), "rows": series.trials(t), "words": words}


def _samples(c: Comparison) -> list[Section]:
    """The texts of each row for the first prompt, those of one prompt together."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for e in c.entries:
        if sample := first_sample(e):
            place = _lines(sample.prompt), _lines(sample.reference)
            found.setdefault(place, []).append((visible(e.label), _lines(sample.prediction)))
    return [{"prompt": p, "reference": r, "texts": texts} for (p, r), texts in found.items()]


def _lines(text: str) -> str:
    return "\n".join(lines(text))


def _classes(c: Comparison) -> Section | None:
    return tables.plain(class_scores.columns(c), class_scores.table(c)) if class_scores.known(c) else None


def _failed(c: Comparison) -> Iterator[Section]:
    for e in c.entries:
        for r in e.runs:
            if not r.is_finished:
                reason = visible(" ".join((r.body.reason or "no reason recorded").split()))
                yield {"label": visible(e.label), "seed": r.spec.seed, "status": r.status, "reason": reason,
                       "file": r.path.name}  # fmt: skip


def _records(c: Comparison) -> dict[str, dict[str, list[str]]]:
    """Row -> the file names of the records behind its scores, and behind its times."""
    return {
        visible(e.label): {
            "runs": [r.path.name for r in e.runs],
            "pass": [e.times.profile.path.name] if e.times else [],
        }
        for e in c.entries
    }


def _versions(runs: Sequence[RunRecord]) -> dict[str, str]:
    """What ran where: every version and machine of the runs."""
    said: dict[str, dict[str, None]] = {}
    for r in runs:
        env = r.env
        commit = f", commit {env.code.commit[:10]}" if env.code.commit else ""
        said.setdefault("peftbench", {})[f"{env.code.version or 'unknown'}{commit}"] = None
        said.setdefault("Python", {})[env.python] = None
        for name in ("torch", "transformers"):
            if version := env.packages.get(name):
                said.setdefault(name, {})[version] = None
        threads = f", {_several(env.threads, 'thread')}" if env.threads else ""
        said.setdefault("Machine", {})[f"{env.machine}, {env.platform}, {env.device}{threads}"] = None
        said.setdefault("Backbone", {})[f"{r.spec.backbone.model}, {r.spec.backbone.dtype}"] = None
        said.setdefault("Data", {})[f"{r.spec.task.name}, fingerprint {r.spec.task.fingerprint[:12]}"] = None
    return {name: visible("; ".join(sorted(values))) for name, values in said.items()}


def _commands(c: Comparison) -> list[str]:
    """What makes and checks this table; DIR is the folder in which the records' folder lies."""
    import shlex

    overrides = next((r.body.overrides for e in c.entries for r in e.runs), [])
    set_ = "".join(f" --set {shlex.quote(visible(o))}" for o in overrides)
    name = shlex.quote(visible(c.experiment))
    return [
        f"python -m peftbench run {name}{set_}",
        "python -m peftbench report DIR --check",
        "python -m peftbench verify DIR --sample 8",
    ]


def _several(number: int, what: str) -> str:
    return f"{count(number)} {what}{'s' * (number != 1)}"
