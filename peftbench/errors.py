"""Mistakes a user can mend: one clear message, exit code 2, no traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """What was given, what is valid, and the fix. The command line prints it and exits with code 2."""


def unknown(what: str, given: object, valid: Iterable[str], where: str = "") -> UserError:
    """The error for a name outside its set, with the nearest valid name.

    >>> print(unknown("method", "lroa", ["lora", "dora"]))
    unknown method 'lroa'; did you mean 'lora'? Valid: dora, lora
    """
    names = sorted(valid)
    near = get_close_matches(str(given), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    place = f"{where}: " if where else ""
    return UserError(f"{place}unknown {what} {str(given)!r}{hint} Valid: {', '.join(names)}")


def unknown_method(given: object, valid: Iterable[str], where: str = "") -> UserError:
    """The error for a method that is not there: it may stand in a file that was not given."""
    return UserError(f"{unknown('method', given, valid, where)}. A method of your own is given with --plugin FILE")
