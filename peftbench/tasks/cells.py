"""The cells of a user's table: which are missing, and which hold a text that every tokenizer and record can keep."""

from __future__ import annotations

from typing import Any


class BadCell(ValueError):
    """A cell holds no text. The message begins with its column, and the reader of the file puts its place before it."""


LONGEST = 10**7  # characters of a text: ten long novels
WORDS = frozenset({"NaN", "nan", "NAN", "null", "Null", "NULL", "None", "<NA>"})  # what programs write for no value


def is_missing(value: Any, words: bool = True) -> bool:
    """Whether a cell has no value: nothing, NaN, white space, or a word that programs write for no value.

    Args:
        value: the cell.
        words: whether `WORDS` count as missing; otherwise they are text.
    """
    if isinstance(value, str):
        stripped = value.strip()
        return not stripped or (words and stripped in WORDS)
    return value is None or value != value or (isinstance(value, list) and not value)  # only NaN differs from itself


def text(value: Any, column: str) -> str:
    """Return the text of a cell that is not missing.

    Args:
        value: the cell.
        column: the name of its column.

    Raises:
        BadCell: the cell holds no text or number, or characters that are no valid text.
    """
    if isinstance(value, str):
        content = value
    elif isinstance(value, (dict, list, bytes)):
        raise BadCell(f"a {type(value).__name__} in column {column!r}, where a text or a number is needed")
    else:
        content = str(value).lower() if isinstance(value, bool) else str(value)
    if len(content) > LONGEST:
        raise BadCell(f"column {column!r} has a text of {len(content):,} characters, and at most {LONGEST:,} are read")
    if not content.isascii() and (at := _lone_surrogate(content)) is not None:
        raise BadCell(
            f"column {column!r} has half a character (U+{ord(content[at]):04X}, a lone surrogate) at position "
            f"{at + 1}; the text was cut or damaged: repair the row or leave it out"
        )
    if "\0" in content:
        raise BadCell(f"column {column!r} has a NUL character; repair the row or leave it out")
    return content


def _lone_surrogate(content: str) -> int | None:
    """Return the place of the first character that UTF-8 cannot encode; None if there is none."""
    try:
        content.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
