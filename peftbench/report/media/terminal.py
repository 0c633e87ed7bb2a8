"""Text for a terminal: no control characters, and widths as the terminal counts them."""

from __future__ import annotations

import re
import textwrap

from peftbench.report.media import plain

FILLER = "\ue000"  # stands for the second cell of a wide character while lines are broken


def lines(text: str) -> str:
    r"""A text of one or more lines without control characters but the ends of lines.

    >>> lines("a message\nwith \x1b[2J in it")
    'a message\nwith \\x1b[2J in it'
    """
    return "\n".join(plain.lines(text))


def json_lines(text: str) -> str:
    r"""JSON without control characters: within its strings they are written as JSON's own escapes.

    >>> json_lines('{"name": "\x9b31m"}')
    '{"name": "\\u009b31m"}'
    """
    return re.sub(r"[^\n -~\U00010000-\U0010ffff]", lambda found: _in_json(found[0]), text)


def width(text: str) -> int:
    """Cells that a line takes.

    >>> width("déjà"), width("漢字"), width("😀")
    (4, 4, 2)
    """
    from wcwidth import wcswidth  # its tables take longer to load than `--help` may

    cells = wcswidth(text)
    return cells if cells >= 0 else len(text)


def padded(text: str, cells: int) -> str:
    """A text filled up with spaces on the right.

    >>> padded("漢字", 6) + "|"
    '漢字  |'
    """
    return text + " " * (cells - width(text))


def wrapped(text: str, cells: int, first: str = "", rest: str = "") -> list[str]:
    """Break a text into lines.

    Args:
        text: the text.
        cells: largest width of a line.
        first: start of the first line.
        rest: start of every other line.
    """
    from wcwidth import wcwidth

    wide = "".join(c + FILLER if wcwidth(c) == 2 else c for c in plain.visible(text))
    broken = textwrap.wrap(wide, cells, initial_indent=first, subsequent_indent=rest)
    return [line.replace(FILLER, "") for line in broken]


def _in_json(c: str) -> str:
    return c if plain.visible(c) == c else f"\\u{ord(c):04x}"
