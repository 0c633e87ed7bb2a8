"""The settings in which a method is tried: its defaults, then one other value of each hyperparameter that has one.

They come from the fields' types, so that a new method file is tried in all its modes without a list of them anywhere.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from peftbench.errors import UserError
from peftbench.method.base import Method
from peftbench.method.registry import defaults, make

ROLES = "k up down"  # another value for a field called `roles`: layers that are not square, and none of q and v
SMALL = (2, 3)  # values of the size knob


def variants(cls: type[Method]) -> list[dict[str, Any]]:
    """Hyperparameters to try: {} for the defaults first, then dictionaries with one value changed.

    The size knob is set small; a switch, a choice or a value that may be null gets each of its others; a probability
    (a number from 0, below 1) gets a half. Values that the method refuses with a UserError are left out; one that makes
    it fail otherwise stays, so that the promises meet the fault.
    """
    found: list[dict[str, Any]] = [{}]
    hints = get_type_hints(cls, include_extras=True)
    standard = defaults(cls)
    for field in fields(cls):
        name, default = field.name, standard[field.name]
        values = iter(SMALL[:1]) if name == cls.size_knob else _others(cls, name, hints[name], default)
        for value in values:
            if value != default and {name: value} not in found and not isinstance(_error(cls, name, value), UserError):
                found.append({name: value})
    return found


def _others(cls: type[Method], name: str, hint: Any, default: Any) -> Iterator[Any]:
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if name == "roles":
        yield ROLES
    elif get_origin(hint) is Literal:
        yield from get_args(hint)
    elif hint is bool:
        yield from (False, True)
    elif get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            if option is type(None):
                yield None
            elif option in (int, float):
                yield option(2)
            else:
                yield from _others(cls, name, option, default)
    elif hint is float and default == 0 and (error := _error(cls, name, 1.0)) is not None:
        yield 0.5
        if not isinstance(error, UserError):
            yield 1.0


def _error(cls: type[Method], name: str, value: Any) -> Exception | None:
    """What making the method with this value raises."""
    try:
        make(cls, {name: value})
    except Exception as error:  # a method's __post_init__ is foreign code
        return error
    return None
