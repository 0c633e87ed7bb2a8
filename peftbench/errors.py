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


LONGEST_MESSAGE = 1_800  # characters: with what is printed around it, less than 2,000
LONGEST_WORD = 300  # characters between two spaces: longer than the paths that people write
LONGEST_VALUE = 100  # characters of a value that a message repeats


class UserError(Exception):
    """A mistake of the user. The message says what was given, what is valid, and the fix.

    The command line prints the message and exits with code 2. A message is brief, whatever it repeats.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(brief(str(message)))


def brief(message: str) -> str:
    """Return a message of at most `LONGEST_MESSAGE` characters. Long words and a long middle are cut out.

    >>> brief("unknown key " + "x" * 5000)
    'unknown key xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx[... 5,000 characters]xxxxxxxxxxxxxxxxxxxx'
    """
    message = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: _cut(word[0], 40, 20), message)
    return message if len(message) <= LONGEST_MESSAGE else _cut(message, 1_200, 500)


def shown(value: object) -> str:
    """Return a value as messages repeat it: as Python writes it, with its middle cut out if it is long.

    >>> shown("a b"), shown(10**400)
    ("'a b'", '10000000000000000000000000000000000000000000000000000000000000[... 401 characters]00000000000000000000')
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists without end
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_VALUE else _cut(text, 62, 20)


def _cut(text: str, start: int, end: int) -> str:
    return f"{text[:start]}[... {len(text):,} characters]{text[-end:]}"


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
    near = nearest(given, names)
    hint = f"; did you mean {near!r}?" if near else "."
    place = f"{where}: " if where else ""
    return UserError(f"{place}unknown {what} {shown(str(given))}{hint} Valid: {', '.join(names)}")


def nearest(given: object, valid: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the valid name that resembles a given one most; None if none does, or the given one is very long."""
    name = str(given)
    return next(iter(get_close_matches(name, valid, n=1, cutoff=cutoff)), None) if len(name) <= LONGEST_WORD else None


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
        near = nearest(error["input"], re.findall(r"'([^']*)'", message))
        message += f"; did you mean {near!r}?" if near else ""
    return VALID_TYPES.get(error["type"], message)
