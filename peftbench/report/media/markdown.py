"""Text in Markdown and in the HTML made of it: no tag, link, image, emphasis or new cell comes from a name.

The escapes hold in GitHub's Markdown, in CommonMark and in Python-Markdown, which mkdocs uses. A backslash escapes the
same characters in all three only in part; the others are written as entities.
"""

from __future__ import annotations

import re

from peftbench.report.media import plain

BACKSLASH = re.compile(
    r"[\\`*{}|]"  # code, emphasis, attributes, the next cell
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis: an underscore that is not within a word
    r"|\](?=[(\[:])|^\[|!(?=\[)"  # links, images, footnotes, boxes to tick
    r"|^[-+](?=[\s-]|$)|^#|#(?=#*\s*$)"  # lists, headings and their ends
)
ENTITY = re.compile(
    r"[~$]"  # struck out, mathematics
    r"|<(?=[A-Za-z/!?])|^>|&(?=#?\w+;)"  # tags, quotations, entities
    r"|:(?=//)|(?<=www)\.|@(?=\w)"  # addresses and users
    r"|:(?=[a-z+-][\w+-]*:)",  # an emoji's name
    re.IGNORECASE,
)


NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def escape(text: str) -> str:
    r"""Escape a name, or a sentence with names in it, for a paragraph, a heading, a cell or an item of a list.

    >>> escape("<b>a_b</b> | *c* [d](e)"), escape("0.742 [0.701, 0.783] (2), p < 0.001")
    ('&#60;b>a_b&#60;/b> \\| \\*c\\* [d\\](e)', '0.742 [0.701, 0.783] (2), p < 0.001')
    """
    shown = ENTITY.sub(lambda found: f"&#{ord(found[0])};", plain.visible(text))
    return NUMBERED.sub(r"\1\\\2", BACKSLASH.sub(_backslash, shown))


def code_block(text: str) -> str:
    """A text of several lines as a block of code, in which nothing has a meaning."""
    return "".join(f"    {line}\n" for line in plain.lines(text))


def _backslash(found: re.Match[str]) -> str:
    return f"\\{found[0]}"
