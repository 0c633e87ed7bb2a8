r"""Text in LaTeX: every special character is written as itself, and a table compiles with every engine.

Letters with accents are written with accent commands, Greek letters and common signs in mathematics. For any other
character XeLaTeX and LuaLaTeX write the character itself, in a font that the user names, and pdfLaTeX its code point.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import groupby

from peftbench.report.media import plain

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\`{}",
    '"': r"{\char34}",  # a shorthand in German
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "•": r"$\bullet$",
    "·": r"$\cdot$",
    "°": r"$^\circ$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "µ": r"$\mu$",
    "¿": "?`",
    "¡": "!`",
    "§": r"\S{}",
    "©": r"\copyright{}",
    "£": r"\pounds{}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
    "\u00a0": "~",
}
GREEK = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi o pi rho varsigma sigma tau upsilon"
)
GREEK += " varphi chi psi omega"
LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True))  # capitals that look like Latin letters
CAPITALS = "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
MATHS = {chr(0x3B1 + i): "o" if name == "o" else f"\\{name}" for i, name in enumerate(GREEK.split())}
MATHS |= {letter: f"\\mathrm{{{latin}}}" for letter, latin in LATIN.items()}
MATHS |= {c: f"\\{name}" for c, name in zip("ΓΔΘΛΞΠΣΥΦΨΩ", CAPITALS.split(), strict=True)}
ACCENTS = dict(
    zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True)
)
LIGATURES = "-',"  # two of them become one sign
NEEDS = "% needs \\usepackage{booktabs} and \\usepackage{graphicx}\n"
COMMAND = r"""% {listed}: XeLaTeX and LuaLaTeX write the text itself, in a font that has it, for example with
% \usepackage{{fontspec}} \setmainfont{{Noto Sans CJK SC}}; pdfLaTeX writes the code points
\providecommand{{\unicodetext}}[2]{{\ifdefined\Umathchar#1\else#2\fi}}
"""


def escape(text: str) -> str:
    r"""Escape a name, or a sentence with names in it, for a cell or a caption.

    >>> escape("50 % of $2_x"), escape("déjà, ε"), escape("a--b")
    ('50 \\% of \\$2\\_x', "d\\'{e}j\\`{a}, $\\varepsilon$", 'a-{}-b')
    >>> escape("漢字 of 2")
    '\\unicodetext{漢字}{U+6F22 U+5B57} of 2'
    """
    written, before = "", ""
    for is_known, group in groupby(_shown(text), key=lambda c: _known(c) is not None):
        run = "".join(group)
        if not is_known:
            written += f"\\unicodetext{{{run}}}{{{plain.code_points(run)}}}"
        for c in run if is_known else "":
            written += "{}" * (c == before and c in LIGATURES) + (_known(c) or "")
            before = c
    return re.sub(r"^\s*([\[*])", r"{\1}", written)  # else an option or a star of the \\ that ends the row above


def preamble(texts: Iterable[str]) -> str:
    """What stands before a table for the characters that pdfLaTeX lacks; empty if it lacks none."""
    runs = dict.fromkeys(c for text in texts for c in _shown(text) if _known(c) is None)
    return COMMAND.format(listed=" ".join(runs)) if runs else ""


def fitted(body: str) -> str:
    """A table as wide as it is, or scaled down to the line: the text's width, or the column's of two."""
    return f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{body}\n}}"


def below(notes: Iterable[str]) -> str:
    """Sentences under a table in small print, as wide as the line; empty without any."""
    whole = " ".join(escape(note if note.endswith(".") else f"{note}.") for note in notes)
    return f"\\par\\smallskip\n\\parbox{{\\linewidth}}{{\\footnotesize\\raggedright {whole}}}\n" if whole else ""


def _shown(text: str) -> str:
    return unicodedata.normalize("NFC", plain.visible(text))


def _known(c: str) -> str | None:
    """A character in every LaTeX; None if only the newer engines have it."""
    if c in SPECIAL or c.isascii():
        return SPECIAL.get(c, c)
    if c in MATHS:
        return f"${MATHS[c]}$"
    base, *accents = list(unicodedata.normalize("NFD", c))
    if len(accents) != 1 or accents[0] not in ACCENTS:
        return None
    if base in MATHS and accents[0] == "\u0301":
        return f"$\\acute{{{MATHS[base]}}}$"
    if not base.isascii():
        return None
    dotless = f"\\{base}" if base in "ij" and accents[0] not in "\u0327" else base
    return f"\\{ACCENTS[accents[0]]}{{{dotless}}}"
