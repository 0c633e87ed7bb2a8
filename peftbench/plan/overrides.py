"""`--set budget.steps=10`: values in place of those of an experiment's file, checked as if they stood there.

A key is the path of a value in the file: `budget.steps`, `train.head_lr`, `backbone.model`. In `methods` and `tasks`
the second part names the entries: `methods.lora.rank` is every entry of the method `lora`, or the one of that label;
`tasks.glue/rte.steps` every entry of that task. `*` is all of them. A value is written as in YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftbench.errors import UserError, unknown
from peftbench.plan import strict_yaml
from peftbench.plan.strict_yaml import Document, Place

LISTS = ("methods", "tasks")  # of entries that a key names
SHORT = {"backbone": "model", "tasks": "task"}  # what a plain word there stands for


def applied(document: Document, texts: Sequence[str]) -> Document:
    """The document with each `KEY=VALUE` in its place, the last of equal keys first of all.

    Raises UserError for a text that is no KEY=VALUE, and for a key that names no entry of a list; whether the value is
    valid there, the check of the whole file says, in the name of the option.
    """
    if not texts:
        return document
    value, origins = dict(document.value), dict(document.origins)
    for text in texts:
        key, equals, given = text.partition("=")
        option = f"--set {text!r}"
        section, _, inner = key.strip().partition(".")
        parts = [section, *(inner.rsplit(".", 1) if section in LISTS else inner.split("."))] if inner else [section]
        if not equals or not all(parts):
            raise UserError(f"{option}: give KEY=VALUE, such as budget.steps=10 or methods.lora.rank=4")
        parsed = strict_yaml.scalar(given)
        if parts[0] in LISTS and len(parts) > 1:
            value[parts[0]] = _in_list(value.get(parts[0]), parts, parsed, option, origins)
        else:
            value = _placed(value, tuple(parts), (), parsed, option, origins)
    return Document(document.path, value, document.lines, origins)


def _placed(
    mapping: dict[str, Any], parts: Place, above: Place, value: Any, option: str, origins: dict[Place, str]
) -> dict[str, Any]:
    """A copy of the mapping with the value at the end of the path `parts`."""
    name, *rest = parts
    place = (*above, name)
    if not rest or name not in mapping:
        origins[place] = option
    if not rest:
        return {**mapping, str(name): value}
    inner = mapping.get(str(name))
    if isinstance(inner, str) and name in SHORT:
        inner = {SHORT[str(name)]: inner}
    if inner is not None and not isinstance(inner, dict):
        raise UserError(f"{option}: {strict_yaml.spell(place)} is {inner!r}, which has no keys")
    return {**mapping, str(name): _placed(dict(inner or {}), tuple(rest), place, value, option, origins)}


def _in_list(entries: Any, parts: Sequence[str], value: Any, option: str, origins: dict[Place, str]) -> list[Any]:
    """A copy of `methods` or `tasks` with the value set in every entry that the key names."""
    section, wanted, *inner = parts
    if not isinstance(entries, list):
        raise UserError(f"{option}: the file has no list of {section}")
    if not inner:
        raise UserError(f"{option}: say which value, such as {section}.{wanted}.{_example(section)}")
    key, new, hit = inner[0], list(entries), False
    for i, entry in enumerate(entries):
        if wanted == "*" or wanted in _names(section, entry):
            hit = True
            if section == "tasks":
                whole = {"task": entry} if isinstance(entry, str) else dict(entry)
                origins[section, i, key] = option
                new[i] = {**whole, key: value}
            else:
                ((name, given),) = ({entry: None} if isinstance(entry, str) else entry).items()
                origins[section, i, name, key] = option
                new[i] = {name: {**(given or {}), key: value}}
    if not hit:
        raise unknown(section[:-1], wanted, {n for e in entries for n in _names(section, e)}, where=option)
    return new


def _names(section: str, entry: Any) -> list[str]:
    """What a key may call an entry: a method's name or label, a task's name."""
    if isinstance(entry, str):
        return [entry]
    if not isinstance(entry, dict):
        return []
    if section == "tasks":
        return [str(entry[k]) for k in ("task", "name") if k in entry]
    labels = [inner["label"] for inner in entry.values() if isinstance(inner, dict) and "label" in inner]
    return [*map(str, entry), *map(str, labels)]


def _example(section: str) -> str:
    return "lr=1e-3" if section == "methods" else "steps=100"
