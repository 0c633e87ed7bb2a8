"""Check that a record's body fits its type, when it is read and before it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, ValidationError

from peftbench.records.bodies import Body, Predictions, ProfileBody, RunBody, TrialBody

FILE_KEYS = ("schema", "checksum", "predictions")  # in a file, and not in its body
Place = tuple[str | int, ...]  # the keys and indices that lead to a value
T = TypeVar("T")


def typed(body: Mapping[str, Any]) -> Body:
    """Convert a body of the current format to its type. Unknown fields outside the spec are dropped.

    Args:
        body: the JSON values of a record's body.

    Raises:
        ValueError: the body does not fit its type. The message names the field: "metrics.test.accuracy: expected
            `float | null`, got `str`".
    """
    kind, spec = body.get("kind"), body.get("spec")
    if kind not in ("run", "profile"):
        raise ValueError(f"kind: {kind!r} is neither run nor profile")
    is_trial = isinstance(spec, Mapping) and spec.get("trial") is not None
    type_: Any = ProfileBody if kind == "profile" else TrialBody if is_trial else RunBody
    made: Body = _converted(body, type_)
    if place := _unknown(spec, made.spec):  # without the field it would be another spec
        raise ValueError(f"{_text(('spec', *place))}: this version does not know that field")
    return made


def typed_predictions(predictions: Mapping[str, Any]) -> Predictions:
    """Convert predictions to their type.

    Raises:
        ValueError: they do not fit; the message names the field.
    """
    return _converted(predictions, Predictions, ("predictions",))


def complete(body: Mapping[str, Any]) -> None:
    """Check that a body may be written.

    Args:
        body: the body, with or without predictions.

    Raises:
        ValueError: the body does not fit its type, has an unknown field, or lacks predictions.
    """
    made = typed(body)
    if place := _unknown({k: v for k, v in body.items() if k not in FILE_KEYS}, made):
        raise ValueError(f"{_text(place)}: no record has that field")
    if body.get("predictions") is not None:
        typed_predictions(body["predictions"])
    elif isinstance(made, RunBody) and made.status == "finished":
        raise ValueError("a finished run must have predictions")


def _converted(value: Any, to: type[T], root: Place = ()) -> T:
    """Convert a value to a type; raise ValueError that names the field, after the keys in `root`."""
    try:
        return msgspec.convert(value, to)
    except ValidationError as e:
        message, place = str(e).partition(" - at `")[0], (*root, *_place(e, value, to))
        if missing := re.fullmatch(r"Object missing required field `(\w+)`", message):
            message, place = "It is missing", (*place, missing[1])
        raise ValueError(f"{_text(place)}: {message[0].lower()}{message[1:]}" if place else message) from None


def _place(error: ValidationError, value: Any, to: type) -> Place:
    """Return the place of an error. msgspec names fields and indices, but writes "[...]" for a key of a mapping."""
    place: Place = ()
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", str(error).partition(" - at `$")[2]):
        place += (name or (_key(error, value, place, to) if index == "..." else int(index)),)
    return place


def _key(error: ValidationError, value: Any, place: Place, to: type) -> str:
    """Return the key at fault in the mapping at `place`: the one that alone gives the same error."""
    at = value
    for step in place:
        at = at[step]
    for key in at:
        try:
            msgspec.convert(_replaced(value, place, {key: at[key]}), to)
        except ValidationError as e:
            if str(e) == str(error):
                return str(key)
    return "..."


def _replaced(value: Any, place: Place, new: Any) -> Any:
    """Return a copy of `value` with `new` at `place`."""
    if not place:
        return new
    copied: Any = dict(value) if isinstance(value, Mapping) else list(value)
    copied[place[0]] = _replaced(copied[place[0]], place[1:], new)
    return copied


def _unknown(value: Any, made: Any) -> Place | None:
    """Return the place of a field of `value` that the type of `made` lacks; None if there is none."""
    type_: Any = type(made)
    names = _fields(type_)
    if names is not None and (extra := sorted(value.keys() - names)):
        return (extra[0],)
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if type(inner) not in (dict, list):
            continue
        if place := _unknown(inner, made[key] if names is None else getattr(made, str(key))):
            return (key, *place)
    return None


@cache
def _fields(type_: Any) -> frozenset[str] | None:
    """Return the names of the fields of a struct or dataclass; None for other types."""
    if issubclass(type_, Struct):
        return frozenset(type_.__struct_fields__)
    return frozenset(f.name for f in fields(type_)) if is_dataclass(type_) else None


def _text(place: Place) -> str:
    """Return a place as text: `rows[1].latency[0].batch`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")
