"""The cards of methods and tasks, and tables of both, as text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftbench.method.catalogue import MethodFacts
    from peftbench.tasks import TaskCard
    from peftbench.tasks.dataset import TaskOption

WIDTH = 110


def methods_table(methods: Mapping[str, MethodFacts]) -> str:
    """Return a table with one line for each method."""
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
    """Return the card of a method: paper, formula, size, learning rate, known failures and hyperparameters."""
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
    if m.search_space:
        head["tuning draws"] = "; ".join(f"{k}: {', '.join(map(str, v))}" for k, v in m.search_space.items())
    lines = [m.name, "=" * len(m.name), "", m.doc, ""]
    lines += [textwrap.fill(f"{k + ':':15}{v}", WIDTH, subsequent_indent=" " * 15) for k, v in head.items() if v]
    lines += ["", "hyperparameters" if m.defaults else "no hyperparameters"]
    for key, default in m.defaults.items():
        schema = m.schema.get(key, {})
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else repr(default)
        line = f"  {key} = {shown}  [{valid_values(schema)}]  {schema.get('description', '')}".rstrip()
        lines.append(textwrap.fill(line, WIDTH, subsequent_indent="      "))
    return "\n".join(lines)


def valid_values(schema: Mapping[str, Any]) -> str:
    """Describe the valid values of a hyperparameter.

    Args:
        schema: the hyperparameter's JSON Schema.

    >>> valid_values({"type": "integer", "minimum": 1})
    'integer >= 1'
    """
    if "anyOf" in schema:
        return " or ".join(valid_values(s) for s in schema["anyOf"])
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
    """Return a table with one line for each task."""
    from tabulate import tabulate

    lines = [{"task": c.name, "kind": c.kind, "metric": c.metric, "what": c.what, "data": c.source} for c in cards]
    return str(tabulate(lines, headers="keys", tablefmt="simple", maxcolwidths=[None, None, None, 45, 40]))


def task_card(c: TaskCard) -> str:
    """Return the card of a task: what it is, and its keys in an experiment file."""
    from peftbench.plan.experiment import TaskSection

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
    shared = ", ".join(key for key in TaskSection.model_fields if key != "task")
    return "\n".join([c.name, "=" * len(c.name), "", *lines, "", f"keys of every task: {shared}"])


def _task_option(o: TaskOption) -> str:
    need = {"yes": "required", "no": f"default: {o.default}"}.get(o.required, f"required {o.required}")
    return textwrap.fill(f"  {o.name:18}{o.what}  [{need}]", WIDTH, subsequent_indent=" " * 20)
