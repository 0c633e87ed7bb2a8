"""A method's facts as Markdown: its formula in italics, its sources as links, its hyperparameters as a table."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from peftbench.cli.cards import valid_values
from peftbench.method.catalogue import MethodFacts

GREEK = {"alpha": "α", "gamma": "γ", "eta": "η", "lambda": "λ", "Lambda": "Λ", "theta": "θ"}
TOKEN = re.compile(
    r"(?P<greek>\b(?:" + "|".join(GREEK) + r")(?![a-z]))|(?P<word>[A-Za-z]{2,}\d*)|(?P<letter>[A-Za-z])(?P<digit>\d?)"
    r"|_(?P<sub>[A-Za-z0-9]+)|\^(?P<sup>\w+)|(?P<left><-)|(?P<right>->)|(?P<times> \* )|(?P<norm>\|\|)"
)
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def formula(text: str) -> str:
    """Return a formula with italic letters, Greek ones by name, and indices, as HTML.

    >>> formula("h = W x + (alpha/r) B A x")
    '<i>h</i> = <i>W</i> <i>x</i> + (<i>α</i>/<i>r</i>) <i>B</i> <i>A</i> <i>x</i>'
    """
    out, end = [], 0
    for found in TOKEN.finditer(text):
        out += [escape(text[end : found.start()]), _token(found)]
        end = found.end()
    return "".join([*out, escape(text[end:])])


def _token(found: re.Match[str]) -> str:
    kind, value = found.lastgroup, found.group()
    if kind == "digit":
        return f"<i>{found['letter']}</i>" + (f"<sub>{found['digit']}</sub>" if found["digit"] else "")
    if kind == "greek":
        return f"<i>{GREEK[value]}</i>"
    if kind in ("sub", "sup"):
        return f"<{kind}>{GREEK.get(value[1:], value[1:])}</{kind}>"
    if kind == "word":
        return "√" if value == "sqrt" else value
    return {"left": "←", "right": "→", "times": " · ", "norm": "‖"}[str(kind)]


def linked(text: str) -> str:
    """Return a text whose arXiv numbers are links."""
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def hyperparameters(facts: MethodFacts) -> str:
    """Return the table of a method's hyperparameters."""
    if not facts.defaults:
        return "None."
    lines = ["| name | default | valid | meaning |", "|---|---|---|---|"]
    for key, default in facts.defaults.items():
        schema = facts.schema[key]
        valid = valid_values(schema).replace(">=", "≥").replace("<=", "≤")
        lines.append(f"| `{key}` | {_value(default)} | {escape(valid)} | {linked(schema.get('description', ''))} |")
    return "\n".join(lines)


def tuning(facts: MethodFacts) -> str:
    """Say what tuning draws."""
    words = []
    for key, values in facts.search_space.items():
        if key == "lr":
            words.append(f"rates from {values[0]:g} to {values[-1]:g}")
        else:
            words.append(f"`{key}` of {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)}")
    return f"Tuning draws {' and '.join(words)}." if words else "Tuning draws nothing."


def sentence(text: str) -> str:
    """Return a text with a capital at its start and a full stop at its end."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
