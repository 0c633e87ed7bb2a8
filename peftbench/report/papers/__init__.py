"""Figures and tables of papers, from committed records: the paper's own beside ours, and a verdict that is computed.

A figure is one module of this folder with a constant `FIGURE: PaperFigure`; modules whose name starts with an
underscore are none. Nothing else is edited to add one: the command `figures`, the page and the tests find it. A module

- gives its paper, what the paper says (`published`) and what decides (`criterion`): prose that no record changes;
- has `find(results)`, which reads records through `Results` and returns a `Finding`: our table, scale and claims.
  It raises `NotRun` where records are missing, as `Results` does for it: the page says "not run yet" and how to run;
- never says how it ended: a `Claim` holds our number with its interval and the range that the paper's words allow, and
  the verdict follows from the two.

Imports of this module: neither matplotlib nor pandas; `draw` may import what it draws with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from peftbench.report.papers._records import NotRun, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "NOT_COMPARABLE", "NOT_REPRODUCED", "NOT_RUN", "REPRODUCED", "WITHIN",
    "Claim", "Finding", "NotRun", "Paper", "PaperFigure", "Results", "Table",
]  # fmt: skip

REPRODUCED = "reproduced"  # every interval lies within the range that the paper's words allow
WITHIN = "within interval"  # some interval reaches over an end of its range: these records cannot tell
NOT_REPRODUCED = "not reproduced"  # some interval lies wholly outside
NOT_COMPARABLE = "not comparable at this scale"  # a condition without which the claims mean nothing does not hold
NOT_RUN = "not run yet"


class Paper(NamedTuple):
    """Where the original is."""

    authors: str  # "Hu et al. 2021"
    title: str
    arxiv: str  # "2106.09685"
    place: str  # "table 6"


class Table(NamedTuple):
    """Our numbers as text, for people."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper as a range, and our number with its interval."""

    says: str  # "rank 1 is at most 2 points below rank 64"
    paper: str  # the paper's own number: "+0.1 points on WikiSQL"
    value: float
    low: float  # ends of our interval; both `value` for what is exact
    high: float
    above: float = float("-inf")  # the open range in which the sentence holds
    below: float = float("inf")
    form: str = "{:+.3f}"  # how value and ends are written

    @property
    def verdict(self) -> str:
        if self.above < self.low and self.high < self.below:
            return REPRODUCED
        return NOT_REPRODUCED if self.high <= self.above or self.low >= self.below else WITHIN


@dataclass(frozen=True)
class Finding:
    """What the records say."""

    scale: str  # of our run, from the records: model, data, steps, seeds, machine
    claims: tuple[Claim, ...]
    table: Table
    draw: Callable[[Figure], None]  # fills an empty figure with axes; title, scale and verdict are put around them
    incomparable: str | None = None  # the condition that does not hold, found in the records: then no claim counts
    notes: tuple[str, ...] = ()  # what a reader must know beside it: substitutions, failed runs

    @property
    def verdict(self) -> str:
        """`incomparable` first, then the worst of the claims."""
        if self.incomparable is not None:
            return NOT_COMPARABLE
        found = {c.verdict for c in self.claims}
        return next((v for v in (NOT_REPRODUCED, WITHIN) if v in found), REPRODUCED)

    def __post_init__(self) -> None:
        if not self.claims and self.incomparable is None:
            raise ValueError("a finding without claims has no verdict")


@dataclass(frozen=True)
class PaperFigure:
    """One figure or table of a paper, and how ours is made."""

    number: int  # its place on the page; several may share one, then the name decides
    name: str  # of the module, of experiments/paper/NAME.yaml and of the records' folder results/paper/NAME
    title: str  # what it shows, without a result
    paper: Paper
    published: str  # the paper's own numbers or shape, and at what scale it has them
    criterion: str  # what "reproduced" takes, in words
    find: Callable[[Results], Finding]
    records: tuple[str, ...] = ()  # folders under results/ that `find` reads; default: its own
    commands: tuple[str, ...] = ()  # that make the records; default: run its own experiment
    size: tuple[float, float] = (7.6, 4.8)  # inches

    @property
    def folders(self) -> tuple[str, ...]:
        return self.records or (f"paper/{self.name}",)

    @property
    def recipe(self) -> tuple[str, ...]:
        return self.commands or (run_command(self.name),)


def run_command(name: str) -> str:
    """The command that makes the records of experiments/paper/NAME.yaml."""
    return f"python -m peftbench run experiments/paper/{name}.yaml --results results/paper/{name}"
