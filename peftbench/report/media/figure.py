"""Text in figures: no mathematics comes from a name, and characters are drawn that a font installed here has.

Figures are drawn with DejaVu Sans, which comes with matplotlib. For characters that it lacks, such as Chinese ones, the
installed fonts that have most of them are its fallbacks. What no font has is written as its code point.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import groupby
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager

from peftbench.report.media import plain

FONT = "DejaVu Sans"  # comes with matplotlib: the same figure on every machine
LONGEST = 48  # characters of a name in a legend, beside an axis or in a title
LAST_RESORT = "Last Resort"  # a font of boxes that has a box for everything
NOTE = (
    "No font installed here has {characters}: figures show code points, such as {example}. Install a font that has "
    "them, for example one of Noto's, and write the report again."
)


def literal(text: str) -> str:
    r"""A text as it was written, for matplotlib: a dollar is a dollar, and what no font has is a code point.

    >>> literal("GPU $2_{ vs $3")
    'GPU \\$2_{ vs \\$3'
    """
    return _drawable(text).replace("$", r"\$")


def literals(names: Iterable[str], longest: int = LONGEST) -> list[str]:
    """Names as `literal` writes them, cut to a width, but told apart."""
    drawable = [_drawable(name) for name in names]
    short = plain.shortened(drawable, longest)
    return [short[name].replace("$", r"\$") for name in drawable]


def _drawable(text: str) -> str:
    """A text without control characters, with code points for what no font has."""
    shown = plain.visible(text)
    if not shown.isascii():
        runs = ((missing, "".join(run)) for missing, run in groupby(shown, key=_is_missing))
        shown = "".join(plain.code_points(run) if missing else run for missing, run in runs)
    return shown


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Use the fonts within the block that the texts need, DejaVu Sans first."""
    fallbacks = _fallbacks(_lacking(FONT, texts))
    # Journals refuse the fonts of type 3, but as type 42 matplotlib embeds only TrueType as it should, such as DejaVu.
    settings: dict[Any, Any] = {"font.family": [FONT, *fallbacks], "pdf.fonttype": 3 if fallbacks else 42}
    with _quiet(), mpl.rc_context(settings):
        yield


def missing_note(texts: Iterable[str]) -> str:
    """A sentence on the characters that figures of these texts show as code points; empty if there are none."""
    lacking = _lacking(FONT, texts)
    for family in _fallbacks(lacking):
        lacking = [c for c in lacking if ord(c) not in _characters(family)]
    return NOTE.format(characters=" ".join(lacking), example=plain.code_points(lacking[0])) if lacking else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep matplotlib from logging that a fallback has no bold face: then its regular one is drawn."""
    logger = logging.getLogger("matplotlib.font_manager")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_missing(c: str) -> bool:
    return not any(ord(c) in _characters(family) for family in mpl.rcParams["font.family"])


def _lacking(family: str, texts: Iterable[str]) -> list[str]:
    """The characters of the texts that a font lacks, sorted."""
    used = {c for text in texts if not text.isascii() for c in plain.visible(text)}
    return sorted(c for c in used if ord(c) not in _characters(family))


def _fallbacks(lacking: list[str]) -> list[str]:
    """The installed fonts to draw characters with: those first that have most of what is left."""
    if not lacking:
        return []
    left, chosen = {ord(c) for c in lacking}, list[str]()
    candidates = _installed()
    while candidates and left:
        best = max(candidates, key=lambda name: len(left & _characters(name)))  # the first of equals
        if not left & _characters(best):
            break
        chosen.append(best)
        left -= _characters(best)
    return chosen


@cache
def _installed() -> list[str]:
    """The names of all installed fonts that can be scaled, sorted; also of those that matplotlib's cache lacks."""
    manager = font_manager.fontManager
    cached = {entry.fname for entry in manager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - cached):
        with suppress(OSError, RuntimeError, ValueError):  # a font that matplotlib cannot read, such as one of colours
            manager.addfont(path)
    names = sorted({entry.name for entry in manager.ttflist if entry.size == "scalable"} - {FONT})
    return [name for name in names if not name.startswith((LAST_RESORT, "."))]


@cache
def _characters(family: str) -> frozenset[int]:
    """The code points that a font has in the two weights that figures use."""
    weights = (font_manager.FontProperties(family=[family], weight=weight) for weight in ("normal", "bold"))
    with _quiet():
        paths = {font_manager.findfont(one, fallback_to_default=False) for one in weights}
    return frozenset.intersection(*(frozenset(font_manager.get_font(path).get_charmap()) for path in paths))
