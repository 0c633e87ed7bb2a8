"""Text without control characters: what every medium builds on, and the order in which names are shown."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, takewhile

# format characters that reorder or hide what is around them: bidirectional overrides, zero-width spaces, marks
HIDDEN = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), *map(chr, range(0xFFF9, 0xFFFC))}
HIDDEN |= {"\u200b", "\u2060", "\ufeff"}
ROUNDS = 3  # of telling apart names that start alike; those of a group may have more in common than the group has
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", re.IGNORECASE)


def visible(text: str) -> str:
    r"""Write characters that have no glyph as Python escapes, so that they neither act nor hide.

    >>> visible("two\nlines\tand \x1b[31mred"), visible("déjà 漢 😀")
    ('two\\nlines\\tand \\x1b[31mred', 'déjà 漢 😀')
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def lines(text: str) -> list[str]:
    r"""The lines of a text, each as `visible` writes it.

    >>> lines("one\r\ntwo\x0bstill two")
    ['one', 'two\\x0bstill two']
    """
    return [visible(line) for line in re.split(r"\r\n|\r|\n", text)]


def natural(*names: str) -> tuple[tuple[tuple[str | float, ...], str], ...]:
    """A sort key, of one name or of several in turn, under which numbers within names count as numbers.

    >>> sorted(["r10", "r2", "lr 0.1", "lr 0.05", "lr 1e-3"], key=natural)
    ['lr 1e-3', 'lr 0.05', 'lr 0.1', 'r2', 'r10']
    """
    return tuple((tuple(float(p) if i % 2 else p for i, p in enumerate(NUMBER.split(n))), n) for n in names)


def shortened(names: Iterable[str], longest: int) -> dict[str, str]:
    """Each name cut to a width: at its end; where others start alike, within it, so that it shows what differs.

    Those that are still alike have a number.

    Args:
        names: the names.
        longest: the width in characters; a wide one, such as a Chinese one, counts as two.

    >>> shortened(["lora-of-rank-8", "lora-of-rank-16", "full"], 9)
    {'lora-of-rank-8': 'lora…nk-8', 'lora-of-rank-16': 'lora…k-16', 'full': 'full'}
    >>> shortened(["漢漢漢漢漢漢"], 9)
    {'漢漢漢漢漢漢': '漢漢漢漢…'}
    >>> list(shortened(["orders of ours / late / closed", "orders of ours / open / closed"], 16).values())
    ['order…late / cl…', 'order…open / cl…']
    """
    shown = {name: visible(name) for name in names}
    cut = {text: _without_end(text, longest) for text in shown.values()}
    for group in _alike(cut):
        cut |= {text: _without_middle(text, (longest - 1) // 2) for text in group}
    for _ in range(ROUNDS):
        for group in _alike(cut):
            common = _common_start(group)
            start = len(re.sub(rf"\w{{1,{longest // 6}}}$", "", common))  # a whole word, if it fits
            cut |= {text: _without_start(text, start, longest) for text in group}
    alike = [text for group in _alike(cut) for text in group]
    cut |= {text: _numbered(cut[text], i, longest) for i, text in enumerate(alike, 1)}
    return {name: cut[text] for name, text in shown.items()}


def code_points(text: str) -> str:
    """The code points of a text that cannot be shown.

    >>> code_points("漢字")
    'U+6F22 U+5B57'
    """
    return " ".join(f"U+{ord(c):04X}" for c in text)


def _visible(c: str) -> str:
    is_noncharacter = ord(c) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(c) <= 0xFDEF
    if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in HIDDEN or is_noncharacter:
        return c.encode("unicode_escape").decode()
    return c


def _alike(cut: Mapping[str, str]) -> list[list[str]]:
    """Texts that are cut to the same, group by group."""
    groups: dict[str, list[str]] = defaultdict(list)
    for text, short in cut.items():
        groups[short].append(text)
    return [group for group in groups.values() if len(group) > 1]


def _common_start(texts: Sequence[str]) -> str:
    same = takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
    return texts[0][: sum(1 for _ in same)]


def _without_end(text: str, width: int) -> str:
    return text if _width(text) <= width else f"{_start(text, width - 1)}…"


def _without_start(text: str, start: int, width: int) -> str:
    """A text that begins a second time at what differs."""
    if _width(text) <= width:
        return text
    first = _start(text[:start], width // 3)
    return f"{first}…{_without_end(text[start:], width - _width(first) - 1)}"


def _numbered(text: str, i: int, width: int) -> str:
    mark = f"… ({i})"
    return f"{_start(text.removesuffix('…'), width - len(mark))}{mark}"


def _without_middle(text: str, half: int) -> str:
    return f"{_start(text, half)}…{_start(text[::-1], half)[::-1]}" if _width(text) > 2 * half + 1 else text


def _start(text: str, width: int) -> str:
    """As much of a text's start as has the width."""
    ends = accumulate(map(_width, text))
    return text[: sum(end <= width for end in ends)]


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
