"""The one check of a record's body, when it is read and before it is written: does it fit its type?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
    """A body of today's format as its type. Fields that only newer code writes are left out, but for the spec's.

    Raises ValueError naming the place: "metrics.test.accuracy: expected `float | null`, got `str`".
    """
    kind, spec = body.get("kind"), body.get("spec")
    if kind not in ("run", "profile"):
        raise ValueError(f"kind: {kind!r} is neither run nor profile")
    is_trial = isinstance(spec, Mapping) and spec.get("trial") is not None
    type_: Any = ProfileBody if kind == "profile" else TrialBody if is_trial else RunBody
    made: Body = _converted(body, type_)
    if place := _unknown(spec, made.spec):  # left out, it would make another spec
        raise ValueError(f"{_text(('spec', *place))}: this version does not know that field")
    return made


def typed_predictions(predictions: Mapping[str, Any]) -> Predictions:
    """Predictions as their type. Raises ValueError naming the place."""
    return _converted(predictions, Predictions, ("predictions",))


def complete(body: Mapping[str, Any]) -> None:
    """Raise ValueError for a body that is not to be written: it misfits, or has a field that no reader knows."""
    made = typed(body)
    if place := _unknown({k: v for k, v in body.items() if k not in FILE_KEYS}, made):
        raise ValueError(f"{_text(place)}: no record has that field")
    if body.get("predictions") is not None:
        typed_predictions(body["predictions"])
    elif isinstance(made, RunBody) and made.status == "finished":
        raise ValueError("a finished run must have predictions")


def _converted(value: Any, to: type[T], root: Place = ()) -> T:
    try:
        return msgspec.convert(value, to)
    except ValidationError as e:
        said, place = str(e).partition(" - at `")[0], (*root, *_place(e, value, to))
        if missing := re.fullmatch(r"Object missing required field `(\w+)`", said):
            said, place = "It is missing", (*place, missing[1])
        raise ValueError(f"{_text(place)}: {said[0].lower()}{said[1:]}" if place else said) from None


def _place(error: ValidationError, value: Any, to: type) -> Place:
    """Where the error is: msgspec names fields and indices, and says "[...]" for a key of a mapping."""
    place: Place = ()
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", str(error).partition(" - at `$")[2]):
        place += (name or (_key(error, value, place, to) if index == "..." else int(index)),)
    return place


def _key(error: ValidationError, value: Any, place: Place, to: type) -> str:
    """Which key of the mapping at `place` is at fault: the one that gives the same error alone."""
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
    """A copy of `value` with `new` at `place`."""
    if not place:
        return new
    copied: Any = dict(value) if isinstance(value, Mapping) else list(value)
    copied[place[0]] = _replaced(copied[place[0]], place[1:], new)
    return copied


def _unknown(value: Any, made: Any) -> Place | None:
    """The place of a field of `value` that the type of `made` does not have."""
    cls: Any = type(made)
    if issubclass(cls, Struct) or is_dataclass(cls):
        if extra := sorted(value.keys() - _fields(cls)):
            return (extra[0],)
        inner: Iterable[tuple[Any, Any]] = ((key, getattr(made, key)) for key in value)
    elif isinstance(made, Mapping):
        inner = made.items()
    else:
        inner = enumerate(made)
    for key, m in inner:
        if type(m) not in _PLAIN and (place := _unknown(value[key], m)):
            return (key, *place)
    return None


_PLAIN = {str, int, float, bool, type(None)}


@cache
def _fields(type_: Any) -> frozenset[str]:
    """The names of a struct's or a data class's fields."""
    return frozenset(type_.__struct_fields__ if issubclass(type_, Struct) else (f.name for f in fields(type_)))


def _text(place: Place) -> str:
    """`rows[1].latency[0].batch`"""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")
