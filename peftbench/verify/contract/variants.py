"""The hyperparameters with which a method is tried: its defaults, then each hyperparameter with another value.

The values follow from the types of the fields, so that a new method is tried in all its modes without a list of them.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from peftbench.errors import UserError
from peftbench.method.base import Method
from peftbench.method.registry import defaults, make

ROLES = "k up down"  # another value for a field `roles`: non-square layers, without q and v
SMALL = (2, 3)  # values of the size knob


def variants(cls: type[Method]) -> list[dict[str, Any]]:
    """Return the hyperparameters to try.

    The size knob gets a small value. A bool, a choice or an optional value gets each of its other values. A probability
    (a number from 0 to below 1) gets 0.5. Values that the method rejects with a UserError are left out. A value that
    raises another error stays, so that a promise reports it.

    Args:
        cls: the method.

    Returns:
        {} for the defaults, then dictionaries with one changed value.
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
    """Yield values for a field of the type `hint`; `default` may be among them."""
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
    """Return the exception that the method raises for this value; None if it accepts it."""
    try:
        make(cls, {name: value})
    except Exception as error:  # a method's __post_init__ is foreign code
        return error
    return None
