"""User errors: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

WHERE_PATHS_START = (  # the one rule, for messages of missing files and folders
    "Relative paths in an experiment's file start at the file's folder; on the command line and in Python, at the "
    "working directory"
)


class UserError(Exception):
    """A mistake of the user. The message says what was given, what is valid, and the fix.

    The command line prints the message and exits with code 2.
    """


class SetAside(UserWarning):
    """Files among the records that are none: they count neither as done nor in tables."""


def unknown(what: str, given: object, valid: Iterable[str], where: str = "") -> UserError:
    """Return the error for a name that is not valid, with the nearest valid name.

    Args:
        what: the kind of name, such as "method".
        given: the name that the user wrote.
        valid: all valid names.
        where: the place of the mistake, to begin the message with.

    >>> print(unknown("method", "lroa", ["lora", "dora"]))
    unknown method 'lroa'; did you mean 'lora'? Valid: dora, lora
    """
    names = sorted(valid)
    near = get_close_matches(str(given), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    place = f"{where}: " if where else ""
    return UserError(f"{place}unknown {what} {str(given)!r}{hint} Valid: {', '.join(names)}")


def unknown_method(given: object, valid: Iterable[str], where: str = "") -> UserError:
    """Return the error for a method that is not registered. Its message names --plugin, which may be missing."""
    return UserError(f"{unknown('method', given, valid, where)}. A method of your own is given with --plugin FILE")


VALID_TYPES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must have at least one entry",
}


def validation_message(error: Mapping[str, Any]) -> str:
    """Translate one error of pydantic: "must be a whole number".

    Args:
        error: one entry of `ValidationError.errors()`.

    Returns:
        What is valid. For a wrong choice, the nearest valid choice too.
    """
    message = error["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
    if error["type"] == "literal_error":
        near = get_close_matches(str(error["input"]), re.findall(r"'([^']*)'", message), n=1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    return VALID_TYPES.get(error["type"], message)
