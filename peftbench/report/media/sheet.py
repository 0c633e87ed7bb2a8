"""Text in a CSV file: a spreadsheet takes no cell for a formula."""

from __future__ import annotations

from typing import Any

from peftbench.report.media import plain

STARTS = "=+-@＝＋－＠"  # what spreadsheets take for the start of a formula; also the full-width forms


def cell(value: Any) -> Any:
    r"""A value as a cell: text that would be a formula starts with an apostrophe, numbers stay numbers.

    Control characters, which only a quoted field could hold, are written as escapes.

    >>> cell("=1+1"), cell("-5"), cell("-a"), cell(-5.0), cell("lora\tr8")
    ("'=1+1", '-5', "'-a", -5.0, 'lora\\tr8')
    """
    if not isinstance(value, str):
        return value
    text = plain.visible(value)
    return f"'{text}" if text.lstrip().startswith(tuple(STARTS)) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text
