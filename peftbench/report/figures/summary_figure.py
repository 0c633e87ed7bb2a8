"""The summary of a table: score with its interval, and costs relative to the reference, for one task or over tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from peftbench.report.data import verdicts
from peftbench.report.data.average import Average, Standing
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.figures import names, style
from peftbench.report.figures.style import MUTED, Look
from peftbench.report.media.figure import literal, literals

ROW = 0.27  # inches
DARK = "#333333"
COSTS = {"peak memory of a step": ("s", DARK), "time of a step": ("o", "white")}  # marker, face


@dataclass(frozen=True)
class Row:
    """One row of the figure: what the table says of a configuration.

    Attributes:
        label: of the configuration.
        score: in the unit of the axis.
        interval: its 95 % interval; None if it is not known.
        peak: peak memory / the reference's; None if it is not known.
        step: time of a step / the reference's; None if it is not known.
        step_interval: its 95 % interval; None if it is not known.
    """

    label: str
    score: float
    interval: tuple[float, float] | None
    peak: float | None
    step: float | None
    step_interval: tuple[float, float] | None = None

    @property
    def has_cost(self) -> bool:
        """Whether a cost is known."""
        return self.peak is not None or self.step is not None


@dataclass(frozen=True)
class Heading:
    """What the figure says around its rows.

    Attributes:
        title: above the axes.
        setting: below the title.
        score: name of the score's axis.
        reference: of the costs.
        line: where the reference's score lies; None without it.
        constant: where the constant answer's score lies; None without it.
        absent: labels without a score.
    """

    title: str
    setting: str
    score: str
    reference: str
    line: float | None
    constant: float | None = None
    absent: tuple[str, ...] = ()


def of_average(a: Average, slug: str, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figure over tasks; nothing for fewer than two configurations with an average."""
    rows = [_standing(s, s.relative) for s in a.standings if s.relative is not None]
    rows.sort(key=lambda row: -row.score)
    if len(rows) > 1:
        with style.drawing(names.shown(a)):
            reference, experiment = literals([a.reference, a.experiment])
            title = f"{experiment}: score and cost over {len(a.tasks)} tasks"
            axis = f"mean score over {len(a.tasks)} tasks / {reference}'s (bars: 95 % interval)"
            absent = tuple(s.label for s in a.standings if s.relative is None)
            heading = Heading(title, f"relative to {reference}", axis, reference, 1.0, absent=absent)
            yield from style.files(f"{slug}--summary", figure(rows, heading, looks))


def of_task(c: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figure of one table; nothing for fewer than two configurations with a score."""
    rows = sorted(rows_of(c), key=lambda row: row.score, reverse=c.direction != "min")
    if len(rows) > 1:
        with style.drawing(names.shown(c)):
            (reference,) = literals([c.reference])
            better = "lower" if c.direction == "min" else "higher"
            axis = f"test {literal(c.metric)}, {better} is better (bars: 95 % interval)"
            line = next((row.score for row in rows if row.label == c.reference), None)
            absent = tuple(e.label for e in c.entries if e.mean is None)
            title, setting = style.headings(c, c.constant)
            heading = Heading(title, setting, axis, reference, line, c.majority, absent)
            yield from style.files(f"{c.slug}--summary", figure(rows, heading, looks))


def rows_of(c: Comparison) -> list[Row]:
    """The rows of a table that have a score, in its order."""
    base = next((e for e in c.entries if e.label == c.reference), None)
    return [_entry(c, e, e.mean, base) for e in c.entries if e.mean is not None]


def _entry(c: Comparison, e: Entry, score: float, base: Entry | None) -> Row:
    verdict, ratio = verdicts.of(c).get(e.label), e.times.ratio if e.times else None
    peak = e.peak_bytes / base.peak_bytes if e.peak_bytes and base and base.peak_bytes else None
    around = (ratio.low, ratio.high) if ratio and ratio.low is not None and ratio.high is not None else None
    interval = verdict.interval if verdict else None
    return Row(e.label, score, interval, peak, ratio.median if ratio else None, around)


def _standing(s: Standing, score: float) -> Row:
    return Row(s.label, score, s.relative_interval, s.peak_ratio, s.step_ratio)


def figure(rows: Sequence[Row], heading: Heading, looks: Mapping[str, Look]) -> Figure:
    """Draw the rows, the first on top: scores, and beside them costs where any is known."""
    costly = any(row.has_cost for row in rows)
    drawn = Figure(figsize=(10.0 if costly else 7.6, 1.5 + ROW * len(rows)), layout="constrained")
    FigureCanvasAgg(drawn)
    score, *others = drawn.subplots(1, 1 + costly, sharey=True, squeeze=False, width_ratios=(3, 2)[: 1 + costly])[0]
    for y, row in enumerate(rows):
        colour, marker = looks.get(row.label, ("#000000", "o"))
        if row.interval is not None:
            score.plot(row.interval, [y, y], "-", lw=1.4, color=colour)
        score.plot([row.score], [y], marker, ms=6.5, color=colour, label=row.label)
    below = heading.score
    if heading.line is not None:
        score.axvline(heading.line, lw=1.0, color=MUTED, zorder=1)
        below += f"\nline: {heading.reference}"
    if _constant(score, heading.constant):
        below += "; " if heading.line is not None else "\n"
        below += "dotted: the constant answer"
    labels = literals(row.label for row in rows)
    score.set_yticks(range(len(rows)), labels)
    style.make_room(score, labels)
    score.invert_yaxis()
    score.set_xlabel(below)
    for panel in others:
        _costs(panel, rows, heading.reference)
    if heading.absent:
        drawn.supxlabel(f"no finished run: {', '.join(literals(heading.absent))}", fontsize=8.5, color=MUTED)
    style.head(drawn, heading.title, heading.setting)
    style.settle(drawn)
    return drawn


def _constant(panel: Axes, value: float | None) -> bool:
    """Draw a dotted line at the constant answer; False where it is so far that it would compress the scores."""
    low, high = panel.get_xlim()
    if value is None or not low - 0.25 * (high - low) <= value <= high + 0.25 * (high - low):
        return False
    panel.axvline(value, ls=":", lw=1.3, color=MUTED, zorder=1)
    return True


def _costs(panel: Axes, rows: Sequence[Row], reference: str) -> None:
    panel.axvline(1, lw=1.0, color=MUTED, zorder=1)
    for y, row in enumerate(rows):
        if row.step_interval is not None:
            panel.plot(row.step_interval, [y, y], "-", lw=1.2, color=DARK, zorder=2)
        for value, (shape, face) in zip((row.peak, row.step), COSTS.values(), strict=True):
            if value is not None:
                panel.plot([value], [y], shape, color=DARK, mfc=face, ms=5, label=row.label)
    panel.set_xlim(left=0)
    bars = " (bars: 95 % interval)" if any(row.step_interval for row in rows) else ""
    panel.set_xlabel(f"cost / {reference}'s{bars}")
    handles = [panel.plot([], [], shape, color=DARK, mfc=face, ms=5)[0] for shape, face in COSTS.values()]
    panel.legend(
        handles, list(COSTS), frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncol=2
    )
