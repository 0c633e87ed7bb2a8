"""Names that look the same and are not: the same characters in other code points, such as é as one or as two."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

MOST = 6  # code points that are shown of a name


def told_apart(names: Sequence[str], show: Callable[[str], str] = repr) -> list[str]:
    """Return names as they are shown; behind those that look the same, the code points in which they differ.

    Args:
        names: different names.
        show: makes of a name what a reader sees.
    """
    shown = [show(name) for name in names]
    looks = [unicodedata.normalize("NFC", text) for text in shown]
    alike = {look: [n for n, other in zip(names, looks, strict=True) if other == look] for look in looks}
    return [
        f"{text} ({_code_points(name, alike[look])})" if len(alike[look]) > 1 else text
        for name, text, look in zip(names, shown, looks, strict=True)
    ]


def mistaken(what: str, given: str, valid: Iterable[str]) -> str | None:
    """Return what is wrong with a name that looks like a valid one; None if it looks like none.

    Args:
        what: the kind of name, such as "label".
        given: the name that is not valid.
        valid: the valid names.
    """
    look = unicodedata.normalize("NFC", given)
    twin = next((name for name in valid if unicodedata.normalize("NFC", name) == look), None)
    if twin is None:
        return None
    wrong, right = told_apart([given, twin])
    return (
        f"{what} {wrong} looks like {right} and has other code points. Write both the same way, such as in Unicode's "
        "form NFC"
    )


def _code_points(name: str, alike: Sequence[str]) -> str:
    """Return the code points of a name between the beginning and the end that it shares with those that look alike."""
    start = _shared(alike)
    end = _shared([n[start:][::-1] for n in alike])
    own = name[start : len(name) - end]
    more = " …" if len(own) > MOST else ""
    return " ".join(f"U+{ord(c):04X}" for c in own[:MOST]) + more or "nothing there"


def _shared(texts: Sequence[str]) -> int:
    """Return how many characters all texts begin with."""
    return sum(1 for _ in takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False)))
