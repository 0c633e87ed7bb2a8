"""What the commands print: plans, and the cards of methods and tasks; text for people, plain values for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftbench import record
from peftbench.peaks import UNVERIFIED, Peak
from peftbench.progress import duration
from peftbench.record import Record

if TYPE_CHECKING:
    from peftbench.manifest import MethodFacts
    from peftbench.predict import Predicted
    from peftbench.prepare import Prepared
    from peftbench.tasks import TaskCard
    from peftbench.tasks.data import TaskOption

WIDTH = 110
UNASKED = Peak(None, note="not simulated: `plan` does that for grids that take a minute or longer")
SIZES = {
    "matched": "",
    "nearest": "nearest size",
    "explicit": "size given",
    "native": "only size",
}


def plan_rows(
    prepared: Prepared,
    records: Iterable[Record],
    predicted: Mapping[str, Predicted],
    peaks: Mapping[str, Peak],
) -> list[dict[str, Any]]:
    """One JSON-ready row a run of the grid, in the order in which they run."""
    latest = record.latest(records)
    rows = []
    for p in prepared.planned:
        s, peak = p.spec, peaks.get(p.spec.id, UNASKED)
        rows.append(
            {
                "spec_id": s.id,
                "task": s.task.name,
                "stand_in_for": s.task.stand_in_for,
                "label": s.method.label,
                "method": s.method.name,
                "seed": s.seed,
                "hyper": dict(s.method.hyper),
                "lr": s.train.lr,
                "steps": s.train.steps,
                "trainable": p.trainable,
                "size": s.method.size,
                "deviation": s.method.deviation,
                "predicted_seconds": round(predicted[s.id].seconds, 1),
                "predicted_from": predicted[s.id].source,
                "calibrated_seconds": _rounded(predicted[s.id].measured),
                "predicted_peak_bytes": peak.bytes,
                "predicted_peak_batch": peak.batch,
                "predicted_peak_is_bound": peak.at_most,
                "predicted_peak_note": peak.note,
                "took_seconds": _rounded(latest[s.id].body["seconds"]["total"]) if s.id in latest else None,
                "status": latest[s.id].status if s.id in latest else None,
            }
        )
    return rows


def plan_summary(prepared: Prepared, rows: Sequence[Mapping[str, Any]], jobs: int, loading: float = 0.0) -> str:
    """Stand-ins, sizes off the budget, and how much there is to run: what is said before anything starts.

    `loading` seconds pass in each worker before and between its runs. Where runs are finished, what the calibration
    says of them stands beside what they took.
    """
    e, lines = prepared.experiment, []
    for task in prepared.facts.tasks:
        if task.unavailable is not None:
            lines.append(f"{task.spec.name} STANDS IN for {task.spec.stand_in_for}, and every result bears its name.")
            lines.append(textwrap.indent(textwrap.fill(task.unavailable, WIDTH - 4), "    "))
    target = e.budget.trainable_params
    if target is not None:
        off = dict.fromkeys(
            f"{r['label']} {_off(r['deviation'])} ({SIZES[r['size']]})"
            for r in rows
            if r["size"] != "matched" and abs(r["deviation"]) > e.budget.tolerance
        )
        if off:
            said = f"off the budget of {target:,} trainable parameters by more than {e.budget.tolerance:.0%}: "
            lines.append(textwrap.fill(said + ", ".join(off), WIDTH, subsequent_indent="    "))
    left = [r for r in rows if r["status"] != "finished"]
    spent = sum(r["predicted_seconds"] for r in left) / jobs + (loading if left else 0.0)
    by = ", by arithmetic alone: plan measures" if any(r["predicted_from"] == "arithmetic" for r in left) else ""
    passes = ""
    if e.profile is not None:
        passes = f", then a profile pass a task ({len(prepared.facts.tasks)}), each in {e.profile.processes} processes"
    done = len(rows) - len(left)
    lines.append(f"{e.name}: {len(rows)} runs, {done} finished, {len(left)} to run (~{duration(spent)}{by}){passes}")
    lines += [said for said in (_memory(rows), _error(rows, jobs)) if said]
    return "\n".join(lines)


def _error(rows: Sequence[Mapping[str, Any]], jobs: int) -> str:
    """How far the calibration was from the finished runs that it speaks of; nothing where there are none."""
    done = [r for r in rows if r["status"] == "finished" and r["calibrated_seconds"] is not None]
    if not done:
        return ""
    said, took = (sum(r[key] for r in done) for key in ("calibrated_seconds", "took_seconds"))
    apart = sorted(abs(r["calibrated_seconds"] / r["took_seconds"] - 1) for r in done)
    return (
        f"calibration against {len(done)} finished runs: {duration(said / jobs)} predicted, "
        f"{duration(took / jobs)} taken ({said / took - 1:+.0%}; "
        f"a single run: median {apart[len(apart) // 2]:.0%}, at most {apart[-1]:.0%})"
    )


def _memory(rows: Sequence[Mapping[str, Any]]) -> str:
    """Between which peaks the runs lie; nothing where none was predicted."""
    told = sorted((r for r in rows if r["predicted_peak_bytes"] is not None), key=lambda r: r["predicted_peak_bytes"])
    if not told:
        return ""
    low, high = told[0], told[-1]
    where = f", {UNVERIFIED}" if any(UNVERIFIED in (r["predicted_peak_note"] or "") for r in told) else ""
    return (
        f"predicted peak memory of a training step: {_peak(low)} ({low['label']}) to {_peak(high)} ({high['label']})"
        f"{where}"
    )


def _peak(row: Mapping[str, Any]) -> str:
    """`145 MiB`; "≤" before what is an upper bound, a dash for what was not predicted."""
    if row["predicted_peak_bytes"] is None:
        return "—"
    size, unit = (row["predicted_peak_bytes"] / 2**20, "MiB")
    if size >= 1024:
        size, unit = size / 1024, "GiB"
    return (
        f"{'≤ ' if row['predicted_peak_is_bound'] else ''}{size:,.{2 if size < 10 else 1 if size < 100 else 0}f} {unit}"
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def plan_table(rows: Sequence[Mapping[str, Any]], reference: str) -> str:
    """The grid with one line for each method of each task, its seeds together."""
    from tabulate import tabulate

    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for r in rows:
        groups.setdefault((r["task"], r["label"]), []).append(r)
    lines = []
    for (task, label), runs in groups.items():
        r = runs[0]
        finished = sum(one["status"] == "finished" for one in runs)
        failed = sum(one["status"] not in (None, "finished") for one in runs)
        lines.append(
            {
                "task": task,
                "method": label + (" *" if label == reference else ""),
                "trainable": f"{r['trainable']:,}",
                "off budget": _off(r["deviation"]),
                "": SIZES[r["size"]] if r["deviation"] is not None else "",
                "set": " ".join(f"{k}={v}" for k, v in r["hyper"].items()),
                "lr": f"{r['lr']:g}",
                "steps": r["steps"],
                "seeds": len(runs),
                "peak": _peak(r),
                "each": f"~{duration(r['predicted_seconds'])}",
                "done": f"{finished}/{len(runs)}" + (f", {failed} failed" if failed else ""),
            }
        )
    right = (
        "right" if k in ("trainable", "off budget", "lr", "steps", "seeds", "peak", "each") else "left"
        for k in lines[0]
    )
    return str(tabulate(lines, headers="keys", tablefmt="simple", colalign=tuple(right), disable_numparse=True))


def _off(deviation: float | None) -> str:
    """A deviation as people read it: "-1.7%", and "301x" for what is many times the budget."""
    if deviation is None:
        return ""
    return f"{deviation + 1:,.0f}x" if deviation >= 9 else f"{deviation:+.1%}"


def methods_table(methods: Mapping[str, MethodFacts]) -> str:
    from tabulate import tabulate

    lines = [
        {
            "method": m.name,
            "paper": m.paper,
            "size knob": m.size_knob or "none",
            "lr": f"{m.lr:g}",
            "what it does": m.doc.partition("\n\n")[0].replace("\n", " "),
        }
        for m in methods.values()
    ]
    widths = [None, None, None, None, 60]
    return str(tabulate(lines, headers="keys", tablefmt="simple", disable_numparse=True, maxcolwidths=widths))


def method_card(m: MethodFacts) -> str:
    """Paper, formula, what it does, hyperparameters with ranges, size, learning rate, and when it is known to fail."""
    source = f" ({m.lr_source})" if m.lr_source else ""
    head = {
        "paper": m.paper + (f"  https://arxiv.org/abs/{m.paper[6:]}" if m.paper.startswith("arXiv:") else ""),
        "formula": m.formula or "see the file",
        "trains": m.size_formula or "see the file",
        "size knob": m.size_knob or "none: it has one size, whatever the budget",
        "needs": m.needs,
        "learning rate": f"{m.lr:g}{source}",
        "when it fails": m.caveats or "nothing is recorded",
        "version": str(m.version),
        "file": m.source,
    }
    lines = [m.name, "=" * len(m.name), "", m.doc, ""]
    lines += [textwrap.fill(f"{k + ':':15}{v}", WIDTH, subsequent_indent=" " * 15) for k, v in head.items() if v]
    lines += ["", "hyperparameters" if m.defaults else "no hyperparameters"]
    for key, default in m.defaults.items():
        schema = m.schema.get(key, {})
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else repr(default)
        said = f"  {key} = {shown}  [{takes(schema)}]  {schema.get('description', '')}".rstrip()
        lines.append(textwrap.fill(said, WIDTH, subsequent_indent="      "))
    return "\n".join(lines)


def takes(schema: Mapping[str, Any]) -> str:
    """The values that a hyperparameter takes, in words.

    >>> takes({"type": "integer", "minimum": 1})
    'integer >= 1'
    """
    if "anyOf" in schema:
        return " or ".join(takes(s) for s in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    names = {"string": "text", "boolean": "true or false", "array": "list"}
    kind = str(schema.get("type", "any value"))
    return " ".join([names.get(kind, kind), ", ".join(limits)]).strip()


def tasks_table(cards: Iterable[TaskCard]) -> str:
    from tabulate import tabulate

    lines = [{"task": c.name, "kind": c.kind, "metric": c.metric, "what": c.what, "data": c.source} for c in cards]
    return str(tabulate(lines, headers="keys", tablefmt="simple", maxcolwidths=[None, None, None, 45, 40]))


def task_card(c: TaskCard) -> str:
    """What a task is, and the keys that it takes in an experiment file."""
    from peftbench.experiment import Task

    several = bool(c.metrics_by_kind)
    head = {
        "what": c.what,
        "kind": "as the options say" if several else c.kind,
        "labels": "as the options say" if several else ", ".join(c.labels) or "none",
        "metrics": "by kind, see below" if several else ", ".join(c.metrics) + " (the first one decides)",
        "data": c.source,
        "licence": c.licence,
        "version": str(c.version),
    }
    lines = [textwrap.fill(f"{k + ':':10}{v}", WIDTH, subsequent_indent=" " * 10) for k, v in head.items()]
    lines += ["", "options", *(_task_option(o) for o in c.options)]
    if several:
        lines += ["", "metrics (the first one decides unless metric names another)"]
        lines += [f"  {kind + ':':16}{', '.join(names)}" for kind, names in c.metrics_by_kind.items()]
    shared = ", ".join(key for key in Task.model_fields if key != "task")
    return "\n".join([c.name, "=" * len(c.name), "", *lines, "", f"keys of every task: {shared}"])


def _task_option(o: TaskOption) -> str:
    need = {"yes": "required", "no": f"default: {o.default}"}.get(o.required, f"required {o.required}")
    return textwrap.fill(f"  {o.name:18}{o.what}  [{need}]", WIDTH, subsequent_indent=" " * 20)
