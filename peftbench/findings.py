"""pydantic's findings in plain words, for every file and hyperparameter that users write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

WORDS = {
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


def said(error: Mapping[str, Any]) -> str:
    """What is valid where `error` (one of ValidationError.errors()) was found; for a choice, the nearest one too."""
    message = error["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
    if error["type"] == "literal_error":
        near = get_close_matches(str(error["input"]), re.findall(r"'([^']*)'", message), n=1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    return WORDS.get(error["type"], message)
