"""Formats a figure's page and the index of all as Markdown, and frames a figure's image."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftbench.report.papers import (
    EQUAL,
    MOST,
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    WITHIN,
    Claim,
    PaperFigure,
    Reproduction,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "paper-figures"  # of the figures, next to the index
INDEX = f"{FOLDER}.md"
WIDTH = 14  # characters of the footer per inch
MEANING = {
    REPRODUCED: "each interval of ours lies within the range that the paper's words allow",
    WITHIN: "an interval of ours reaches over an end of its range, so these records cannot tell",
    EQUAL: "a claim asks for a difference, and our interval holds none beyond its margin; the others are reproduced",
    NOT_REPRODUCED: "an interval of ours lies wholly outside its range",
    NOT_COMPARABLE: "a condition without which the claims mean nothing does not hold in our run",
    NOT_RUN: "there are no records, or not all that it takes",
}


@dataclass(frozen=True)
class FigureResult:
    """A figure with its reproduction, or with the records that are missing."""

    figure: PaperFigure
    reproduction: Reproduction | None
    missing: str = ""

    @property
    def verdict(self) -> str:
        """The verdict of the reproduction, or "not run yet"."""
        return self.reproduction.verdict if self.reproduction else NOT_RUN


def page(r: FigureResult) -> str:
    """The page of one figure: caption, claims, our numbers and the commands."""
    f = r.figure
    parts = [f"# {f.title}", caption(r, "")]
    if r.reproduction:
        parts += [f"![{f.title}]({f.name}.png)", _claims(r.reproduction), "## Our numbers", _table(r.reproduction)]
        parts += ["\n".join(f"- {note}" for note in r.reproduction.notes)] if r.reproduction.notes else []
        parts += ["## The records", f"In {_folders(f)}, made by", _code(f)]
    parts += [f"Made by `python -m peftbench figures {f.name}`; not edited by hand."]
    return "\n\n".join(parts) + "\n"


def index(results: Sequence[FigureResult]) -> str:
    """The page of all figures."""
    head = "| | figure | paper | verdict |\n|---|---|---|---|\n"
    rows = "\n".join(
        f"| {r.figure.number} | [{r.figure.title}](#{_anchor(r.figure)}) | {_source(r.figure)} | {r.verdict} |"
        for r in results
    )
    meanings = "\n".join(f"- **{verdict}**: {meaning}." for verdict, meaning in MEANING.items())
    intro = (
        "# Figures of the papers, from our records\n\n"
        "Made by `python -m peftbench figures` from the records under `results/`, which nothing else enters; "
        "`--check` says whether this is still what they give. Our runs are small: what is compared is the shape that "
        "a paper claims, as a range that the figure's module states, never its numbers as such. The ranges of figures "
        "1, 6, 12 and 13 were written when some of their records were there, those of the others before any; what "
        "counts as equal, 2 points or 2 percent either way, before any seed beyond the third.\n\n"
        f"{meanings}\n\nThe verdict of a figure is the worst of its claims. It follows from the records alone."
    )
    return "\n\n".join([intro, head + rows, *map(_section, results)]) + "\n"


def _section(r: FigureResult) -> str:
    f = r.figure
    parts = [f'<a id="{_anchor(f)}"></a>\n\n## {f.number}. {f.title}']
    if r.reproduction:
        parts += [f"![{f.title}]({FOLDER}/{f.name}.png)"]
    parts += [caption(r, f"{FOLDER}/")]
    if r.reproduction:
        parts += [_claims(r.reproduction), f"[Our numbers]({FOLDER}/{f.name}.md)"]
    return "\n\n".join(parts)


def caption(r: FigureResult, to_figures: str) -> str:
    """The verdict, the paper and its numbers, the scale of our runs, and the criterion."""
    f = r.figure
    lines = [f"**{r.verdict[0].upper()}{r.verdict[1:]}.**"]
    if r.reproduction and r.reproduction.incomparable:
        lines[0] += f" {_sentence(r.reproduction.incomparable)}"
    lines += [f"- Paper: {_source(f)}. {f.published}"]
    if r.reproduction:
        lines += [f"- Our run, not the paper's: {r.reproduction.scale}."]
    lines += [f"- Reproduced means: {f.criterion}"]
    if r.reproduction is None:
        lines += [f"- Missing: {r.missing}. To be made by\n\n{textwrap.indent(_code(f), '      ')}".rstrip()]
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def image(r: FigureResult) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figure as PNG and SVG, framed by title, scale and verdict."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from peftbench.report.figures import style

    if (reproduction := r.reproduction) is None:
        return
    with style.drawing():
        canvas = Figure(figsize=r.figure.size, layout="constrained")
        FigureCanvasAgg(canvas)
        reproduction.draw(canvas)
        _frame(canvas, r.figure, reproduction)
        style.settle(canvas)
        yield from style.files(r.figure.name, canvas)


def _frame(canvas: Figure, f: PaperFigure, reproduction: Reproduction) -> None:
    """State scale and verdict in the image itself, as an image may be seen without its page."""
    from peftbench.report.figures.style import MUTED

    text = f"After {f.paper.authors} (arXiv:{f.paper.arxiv}), {f.paper.place}; verdict: {reproduction.verdict}. "
    text += f"Our run, not the paper's: {reproduction.scale}."
    canvas.suptitle(f.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    canvas.supxlabel("\n".join(textwrap.wrap(text, int(WIDTH * f.size[0]))), fontsize=8, color=MUTED)


def _claims(reproduction: Reproduction) -> str:
    """The table of claims; without verdicts if the figure is not comparable."""
    counts = reproduction.incomparable is None
    rows = [(c.says, c.paper, _ours(c), _range(c), _decided(c) if counts else "—") for c in reproduction.claims]
    return _markdown(("claim", "paper", "ours [interval]", "range", "verdict"), rows)


def _ours(c: Claim) -> str:
    """Our number with its interval, unless it is exact."""
    value, low, high = (c.form.format(v) for v in (c.value, c.low, c.high))
    if c.low == -math.inf and c.high == math.inf:
        return f"{value}, without a bound yet"  # one seed, or a look too early to decide anything
    return value if c.low == c.high else f"{value} [{low}, {high}]"


def _range(c: Claim) -> str:
    ends = [f"above {c.form.format(c.above)}"] * (c.above > float("-inf"))
    ends += [f"below {c.form.format(c.below)}"] * (c.below < float("inf"))
    equal = f"; equal within {' and '.join(map(c.form.format, c.equal))}" if c.equal else ""
    return " and ".join(ends) + equal


def _decided(c: Claim) -> str:
    """The verdict; for an open claim with the number of seeds that would decide it if its value stayed."""
    if c.verdict != WITHIN or c.half_at is None:
        return c.verdict
    return f"{c.verdict}; {f'about {c.seeds} seeds would' if c.seeds else f'{MOST:,} seeds would not'} decide"


def _table(reproduction: Reproduction) -> str:
    return _markdown(reproduction.table.head, reproduction.table.rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _source(f: PaperFigure) -> str:
    p = f.paper
    return f"{p.authors}, *{p.title}* ([arXiv:{p.arxiv}](https://arxiv.org/abs/{p.arxiv})), {p.place}"


def _folders(f: PaperFigure) -> str:
    return ", ".join(f"`results/{folder}`" for folder in f.folders)


def _code(f: PaperFigure) -> str:
    return "\n".join(f"    {command}" for command in f.recipe)


def _anchor(f: PaperFigure) -> str:
    return f.name.replace("_", "-")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
