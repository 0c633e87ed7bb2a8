"""`--set budget.steps=10`: replace values of an experiment file, which are then checked like the file's own.

A key is the path of a value in the file: `budget.steps`, `train.head_lr`, `backbone.model`. In `methods` and `tasks`
the second part selects entries: `methods.small.rank` the entry with that label, or else `methods.lora.rank` the entries
of that method; the label of an entry without one is the method's name. `tasks.glue/rte.steps` selects the entries of
that task; `*` selects every entry. A value is written as in YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from peftbench.errors import UserError, unknown
from peftbench.plan import strict_yaml
from peftbench.plan.strict_yaml import Document, Place

LISTS = ("methods", "tasks")  # sections whose entries a key selects
SHORTHANDS = {"backbone": "model", "timeout": "run"}  # the key that a plain value in place of a mapping gives


def apply(document: Document, texts: Sequence[str]) -> Document:
    """Return the document with the values of `KEY=VALUE` texts. The last of several equal keys wins.

    The check of the whole file decides later whether the values are valid, and names the option then.

    Args:
        document: the experiment file.
        texts: `KEY=VALUE` texts, as `--set` takes them.

    Raises:
        UserError: a text is not KEY=VALUE, or its key selects no entry of a list.
    """
    if not texts:
        return document
    value, origins = dict(document.value), dict(document.origins)
    for text in texts:
        key, equals, value_text = text.partition("=")
        option = f"--set {text!r}"
        section, _, inner = key.strip().partition(".")
        parts = [section, *(inner.rsplit(".", 1) if section in LISTS else inner.split("."))] if inner else [section]
        if not equals or not all(parts) or not all(key.strip().split(".")):
            raise UserError(f"{option}: give KEY=VALUE, such as budget.steps=10 or methods.lora.rank=4")
        parsed = strict_yaml.scalar(value_text)
        if parts[0] in LISTS and len(parts) > 1:
            value[parts[0]] = _in_list(value.get(parts[0]), parts, parsed, option, origins)
        else:
            value = _placed(value, tuple(parts), (), parsed, option, origins)
    return Document(document.path, value, document.lines, origins)


def _placed(
    mapping: dict[str, Any], parts: Place, above: Place, value: Any, option: str, origins: dict[Place, str]
) -> dict[str, Any]:
    """Return a copy of the mapping with the value at the end of the path `parts`."""
    name, *rest = parts
    place = (*above, name)
    if not rest or name not in mapping:
        origins[place] = option
    if not rest:
        return {**mapping, str(name): value}
    inner = mapping.get(str(name))
    if isinstance(inner, str | int | float) and name in SHORTHANDS:
        inner = {SHORTHANDS[str(name)]: inner}
    if inner is not None and not isinstance(inner, dict):
        raise UserError(f"{option}: {strict_yaml.spell(place)} is {inner!r}, which has no keys")
    return {**mapping, str(name): _placed(dict(inner or {}), tuple(rest), place, value, option, origins)}


def _in_list(entries: Any, parts: Sequence[str], value: Any, option: str, origins: dict[Place, str]) -> list[Any]:
    """Return a copy of `methods` or `tasks` with the value set in every entry that the key selects."""
    section, selected, *inner = parts
    if not isinstance(entries, list):
        raise UserError(f"{option}: the file has no list of {section}")
    if not inner:
        raise UserError(f"{option}: say which value, such as {section}.{selected}.{_example(section)}")
    key, new = inner[0], list(entries)
    chosen = _chosen(section, selected, entries)
    for i in chosen:
        entry = entries[i]
        if section == "tasks" and isinstance(entry, (str, dict)):
            origins[section, i, key] = option
            new[i] = {**({"task": entry} if isinstance(entry, str) else entry), key: value}
        elif section == "methods" and _is_method(entry):
            ((name, values),) = ({entry: None} if isinstance(entry, str) else entry).items()
            origins[section, i, name, key] = option
            new[i] = {name: {**(values or {}), key: value}}
    if not chosen:
        raise _not_in_the_file(section, selected, key, entries, option)
    return new


def _chosen(section: str, selected: str, entries: Sequence[Any]) -> list[int]:
    """The entries with the selected label; if there is none, those with the selected name."""
    if selected == "*":
        return list(range(len(entries)))
    labelled = [i for i, entry in enumerate(entries) if selected in names(section, entry)[-1:]]
    return labelled or [i for i, entry in enumerate(entries) if selected in names(section, entry)]


def _not_in_the_file(section: str, selected: str, key: str, entries: Sequence[Any], option: str) -> UserError:
    """The error for a key that selects no entry. `--method` adds a method, and is where its values belong."""
    listed = {n for e in entries for n in names(section, e)}
    mistake = unknown(section[:-1], selected, listed, where=f"{option}: not in the file")
    if section == "tasks" or get_close_matches(selected, listed, n=1, cutoff=0.8):
        return mistake
    return UserError(f"{mistake}. To add a method: --method '{selected}: {{{key}: VALUE}}'")


def _is_method(entry: Any) -> bool:
    """Whether an entry has the form of a method. The check of the whole file reports one that has not."""
    if isinstance(entry, dict):
        return len(entry) == 1 and all(isinstance(values, dict | None) for values in entry.values())
    return isinstance(entry, str)


def names(section: str, entry: Any) -> list[str]:
    """The names that select an entry, its label last: a method's name and label, a task's name."""
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
