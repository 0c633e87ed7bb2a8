"""Figures and tables of papers, reproduced from committed records, each with a verdict that is computed.

One figure is one module of this folder with a constant `FIGURE: PaperFigure`. A module whose name starts with an
underscore is a helper. The command `figures`, the page and the tests discover the modules, so nothing else is edited.

A figure's module

- gives the paper, its numbers (`published`) and the rule of the verdict (`criterion`): text that no record changes;
- defines `reproduce(results)`, which reads records through `Results` and returns a `Reproduction`;
- raises `NotRun` where records are missing; the page then says "not run yet" and gives the commands;
- never states a verdict: it follows from a `Claim`'s value, its interval and the range that the paper claims.

This module imports neither matplotlib nor pandas; a figure's `draw` may import what it draws with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from peftbench.report.papers._records import NotRun, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "EQUAL", "NOT_COMPARABLE", "NOT_REPRODUCED", "NOT_RUN", "REPRODUCED", "WITHIN",
    "Claim", "NotRun", "Paper", "PaperFigure", "Reproduction", "Results", "Table",
]  # fmt: skip

REPRODUCED = "reproduced"  # every interval lies within its range
WITHIN = "within interval"  # some interval crosses an end of its range: undecided
EQUAL = "equal within the margin"  # some claim asks for a difference, and there is none as large as the margin
NOT_REPRODUCED = "not reproduced"  # some interval lies outside its range
NOT_COMPARABLE = "not comparable at this scale"  # a precondition of the claims does not hold
NOT_RUN = "not run yet"
MOST = 1000  # largest number of seeds that a claim is said to need


class Paper(NamedTuple):
    """The paper that the figure comes from, and the place in it."""

    authors: str  # "Hu et al. 2021"
    title: str
    arxiv: str  # "2106.09685"
    place: str  # "table 6"


class Table(NamedTuple):
    """Our numbers as formatted text."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper as an open range (`above`, `below`), with our number and its interval.

    The unit is the claim's own: a share, percentage points, a ratio or a correlation.
    """

    says: str  # "rank 1 is at most 2 points below rank 64"
    paper: str  # the paper's own number: "+0.1 points on WikiSQL"
    value: float
    low: float  # ends of our interval; both equal `value` if the value is exact
    high: float
    half_at: Callable[[int], float] | None = None  # number of seeds -> half the interval, its middle and variances kept
    above: float = float("-inf")  # the sentence holds between `above` and `below`, ends excluded
    below: float = float("inf")
    equal: tuple[float, float] | None = None  # between these, both excluded, a difference is none worth having
    form: str = "{:+.3f}"  # format of the value and of the ends

    @property
    def verdict(self) -> str:
        """Reproduced if the interval lies in the range, not if it lies outside, else equal or within interval."""
        return self._verdict(self.low, self.high)

    @property
    def seeds(self) -> int | None:
        """Number of seeds that would decide it if the value stayed; None if decided, unknown or more than `MOST`."""
        if self.verdict != WITHIN or self.half_at is None:
            return None
        halves = ((n, self.half_at(n)) for n in range(2, MOST + 1))
        return next((n for n, h in halves if self._verdict(self.value - h, self.value + h) != WITHIN), None)

    def _verdict(self, low: float, high: float) -> str:
        if self.above < low and high < self.below:
            return REPRODUCED
        if high <= self.above or low >= self.below:
            return NOT_REPRODUCED
        return EQUAL if self.equal is not None and self.equal[0] < low and high < self.equal[1] else WITHIN


@dataclass(frozen=True)
class Reproduction:
    """Our version of a paper's figure, computed from the records.

    Raises:
        ValueError: without claims, unless a reason in `incomparable` explains why none counts.
    """

    scale: str  # model, data, steps, seeds and machine of our runs
    claims: tuple[Claim, ...]
    table: Table
    draw: Callable[[Figure], None]  # draws into an empty figure; title, scale and verdict are added later
    incomparable: str | None = None  # the precondition that fails; then no claim counts
    notes: tuple[str, ...] = ()  # substitutions, failed runs and other caveats

    @property
    def verdict(self) -> str:
        """ "Not comparable" if `incomparable` gives a reason, else the worst verdict of the claims."""
        if self.incomparable is not None:
            return NOT_COMPARABLE
        verdicts = {c.verdict for c in self.claims}
        return next((v for v in (NOT_REPRODUCED, WITHIN, EQUAL) if v in verdicts), REPRODUCED)

    def __post_init__(self) -> None:
        if not self.claims and self.incomparable is None:
            raise ValueError("a finding without claims has no verdict")


@dataclass(frozen=True)
class PaperFigure:
    """A figure or table of a paper, and how it is reproduced."""

    number: int  # position on the page; the name breaks ties
    name: str  # of the module, experiments/paper/NAME.yaml and results/paper/NAME
    title: str  # the subject, not the result
    paper: Paper
    published: str  # the paper's numbers or shape, and their scale
    criterion: str  # when the verdict is "reproduced"
    reproduce: Callable[[Results], Reproduction]
    records: tuple[str, ...] = ()  # folders under results/ that `reproduce` reads; default: its own
    commands: tuple[str, ...] = ()  # to make the records; default: run its own experiment
    looks: tuple[int, ...] = ()  # numbers of seeds at which its claims are read, the last the most; () for once
    size: tuple[float, float] = (7.6, 4.8)  # inches

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders under `results/` that `reproduce` reads."""
        return self.records or (f"paper/{self.name}",)

    @property
    def recipe(self) -> tuple[str, ...]:
        """The commands that make the records."""
        return self.commands or (run_command(self.name),)


def run_command(name: str) -> str:
    """The command that makes the records of `experiments/paper/NAME.yaml`."""
    return f"python -m peftbench run experiments/paper/{name}.yaml --results results/paper/{name}"
