"""Formats comparisons as Markdown, CSV, LaTeX and terminal text.

Markdown and LaTeX are for reading: rounded, each value with its uncertainty, a dash where nothing was measured. CSV is
for programs: one column per number, unrounded, empty where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftbench.errors import unknown
from peftbench.report.data import verdicts
from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison, Entry, mean, spread
from peftbench.report.data.times import BATCHES, Latency, Summary, Times
from peftbench.report.media import latex as tex
from peftbench.report.media import plain, sheet, terminal
from peftbench.report.media.markdown import escape
from peftbench.report.tables import formatting

KIB, MIB = 2**10, 2**20
ALL = "all"  # in place of names: every column, in LaTeX as well
TIED = "•"  # marks the best and the configurations tied with it
WIDTH = 120  # of a terminal, in characters


@dataclass(frozen=True)
class Column:
    """A column of a readable table.

    Attributes:
        heading: its heading.
        cell: row -> text of the cell.
        rank: 0 is always shown; on a narrow terminal, columns of the highest rank are dropped first.
        short: heading on a terminal; default: `heading`.
        brief: row -> text of the cell on a terminal; default: `cell`.
        name: what `--columns` calls it; default: its heading.
    """

    heading: str
    cell: Callable[[Any], str]
    rank: int = 0
    short: str | None = None
    brief: Callable[[Any], str] | None = None
    name: str | None = None

    @property
    def key(self) -> str:
        """The name by which it is chosen."""
        return self.name or self.heading


def _step(e: Entry) -> Summary | None:
    return e.times.step if e.times else None


def _step_ratio(e: Entry) -> Summary | None:
    return e.times.ratio if e.times else None


def _latency(times: Times | None, batch: str) -> Latency:
    return (times.latency.get(batch) if times else None) or Latency(None, None)


def _score(c: Comparison) -> Callable[[Entry], str]:
    def cell(e: Entry) -> str:
        v = verdicts.of(c).get(e.label)
        tied = TIED if v and v.tied and verdicts.some_are_behind(c) else ""
        return formatting.estimate(e.mean, v.interval if v else None, e.n, tied)

    return cell


def _relative(c: Comparison) -> Callable[[Entry], str]:
    def cell(e: Entry) -> str:
        v = verdicts.of(c).get(e.label)
        return formatting.estimate(e.relative, v.relative.interval() if v and v.relative else None)

    return cell


def _ratio(e: Entry) -> str:
    return formatting.interval(_step_ratio(e))


def _sized(e: Entry) -> str:
    """Trainable parameters with the size mark, for a terminal without room for the size column."""
    mark = formatting.size(e.size, e.deviation).replace("matched ", "") if e.size in ("matched", "nearest") else e.size
    return f"{formatting.count(e.parameter('trainable'))} {mark}"


def _latencies(batch: str) -> Callable[[Entry], str]:
    def cell(e: Entry) -> str:
        at = _latency(e.times, batch)
        return (
            f"{formatting.milliseconds(at.unmerged)} / {formatting.milliseconds(at.merged)}"
            if at.unmerged
            else formatting.DASH
        )

    return cell


def _metric(name: str) -> Callable[[Entry], str]:
    return lambda e: formatting.score(mean(v := e.others.get(name, ())), spread(v))


def latency_columns() -> list[Column]:
    """Columns of the latencies in `Entry.times`."""
    return [
        Column(
            f"latency, batch {b}, ms (unmerged / merged)",
            _latencies(b),
            9 + (b != "1"),
            f"latency {b}, ms",
            name=f"latency-{b}",
        )
        for b in BATCHES
    ]


def columns(c: Comparison, names: Sequence[str] = ()) -> list[Column]:
    """Columns of a comparison's readable tables; of these names, or all."""
    arrow = "↓" if c.direction == "min" else "↑"
    others = [Column(name, _metric(name), 3) for name in c.other_metrics]
    all_ = [
        Column("method", lambda e: e.label),
        Column(f"{c.metric} {arrow}, mean [95 %] (n)", _score(c), 0, f"{c.metric} {arrow}", name="score"),
        Column("sd over seeds", lambda e: formatting.score(e.sd), 14, "sd", name="sd"),
        Column(f"relative to {c.reference} [95 %]", _relative(c), 6, f"/ {c.reference}", name="relative"),
        *others,
        Column("trainable", lambda e: formatting.count(e.parameter("trainable")), 1, brief=_sized),
        Column("head", lambda e: formatting.count(e.parameter("head")), 12),
        Column("size", lambda e: formatting.size(e.size, e.deviation), 13),
        Column("stored, KiB", lambda e: formatting.scaled(e.parameter("stored_bytes"), KIB), 11, name="stored"),
        Column("peak memory, MiB", lambda e: formatting.scaled(e.peak_bytes, MIB), 2, "peak MiB", name="memory"),
        Column("step, ms", lambda e: formatting.milliseconds(_step(e), spread=True), 7, name="step"),
        Column(
            f"step / {c.reference}",
            _ratio,
            4,
            "step ×",
            lambda e: formatting.ratio(r.median if (r := _step_ratio(e)) else None),
            name="step-ratio",
        ),
        *latency_columns(),
        Column("failed runs", lambda e: formatting.failures(e.failures), 0, "failed", name="failed"),
    ]
    return _chosen(all_, names)


def require_known(names: Sequence[str], comparisons: Sequence[Comparison], averages: Sequence[Average]) -> None:
    """Raise a UserError that names the columns that there are, if one of `names` is not among them."""
    tables = [*(columns(c) for c in comparisons), *(average_columns(a) for a in averages)]
    known = list(dict.fromkeys(column.key for table in tables for column in table[1:]))
    for name in names:
        if name not in known and list(names) != [ALL]:
            raise unknown("column", name, [*known, ALL], where="--columns")


def _chosen(columns: list[Column], names: Sequence[str]) -> list[Column]:
    """The first column and those of the names, in their order; all for `ALL`, or of a table that has none of them."""
    by_name = {column.key: column for column in columns[1:]}
    return [columns[0], *found] if (found := [by_name[name] for name in names if name in by_name]) else columns


def with_values(columns: Sequence[Column], rows: Sequence[Any]) -> list[Column]:
    """The columns without those in which every row has a dash."""
    return [column for column in columns if any(column.cell(row) != formatting.DASH for row in rows)]


def average_columns(a: Average, names: Sequence[str] = ()) -> list[Column]:
    """Columns of a readable table over tasks; of these names, or all."""
    all_ = [
        Column("method", lambda s: s.label),
        Column(
            f"score relative to {a.reference}, mean [95 %]",
            lambda s: formatting.estimate(s.relative, s.relative_interval),
            0,
            "score",
            name="score",
        ),
        Column(
            "average rank", lambda s: formatting.DASH if s.rank is None else f"{s.rank:.1f}", 1, "rank", name="rank"
        ),
        Column("trainable, mean", lambda s: formatting.count(s.trainable), 3, "trainable", name="trainable"),
        Column(f"peak memory / {a.reference}", lambda s: formatting.ratio(s.peak_ratio), 4, name="memory"),
        Column(f"step / {a.reference}", lambda s: formatting.ratio(s.step_ratio), 5, name="step-ratio"),
        Column("failed runs", lambda s: formatting.count(s.failed), 0, "failed", name="failed"),
    ]
    return _chosen(all_, names)


def grid(columns: Sequence[Column], rows: Sequence[Any]) -> list[list[str]]:
    """Cells by row."""
    return [[column.cell(row) for column in columns] for row in rows]


def markdown(columns: Sequence[Column], rows: Sequence[Any]) -> str:
    """A GitHub table."""
    from tabulate import tabulate

    cells = [[escape(cell) for cell in row] for row in grid(columns, rows)]
    align = ["left", *["right"] * (len(columns) - 1)]
    return tabulate(cells, [escape(c.heading) for c in columns], "pipe", disable_numparse=True, colalign=align) + "\n"


def latex(
    columns: Sequence[Column],
    rows: Sequence[Any],
    caption: str,
    label: str,
    notes: Sequence[str] = (),
    narrow: bool = False,
) -> str:
    """A booktabs table without columns of dashes; it is scaled down where it is wider than the line.

    Args:
        columns: the columns.
        rows: the rows, in the type that the columns' cells take.
        caption: text above the table, of a line or two.
        label: what `\\ref` calls it, after `tab:`.
        notes: sentences below the table, in small print.
        narrow: whether to use the short headings of a terminal.
    """
    import pandas as pd

    columns = with_values(columns, rows)
    cells, headings = grid(columns, rows), [c.short or c.heading if narrow else c.heading for c in columns]
    frame = pd.DataFrame([[tex.escape(cell) for cell in row] for row in cells])
    frame.columns = pd.Index([tex.escape(heading) for heading in headings])
    body = frame.to_latex(index=False, escape=False, column_format="l" + "r" * (len(columns) - 1)).rstrip()
    return (
        f"{tex.NEEDS}{tex.preamble([caption, *notes, *headings, *(cell for row in cells for cell in row)])}"
        f"\\begin{{table}}\n\\centering\n\\caption{{{tex.escape(caption)}}}\n\\label{{tab:{label}}}\n"
        f"{tex.fitted(body)}\n{tex.below(notes)}\\end{{table}}\n"
    )


def csv(rows: Sequence[dict[str, Any]]) -> str:
    """Flat rows as CSV; None becomes an empty field."""
    import pandas as pd

    columns = [sheet.cell(name) for name in rows[0]]
    cells = [[sheet.cell(row[name]) for name in rows[0]] for row in rows]
    return pd.DataFrame(cells, columns=columns, dtype=object).to_csv(index=False, lineterminator="\n")


def text(columns: Sequence[Column], rows: Sequence[Any], width: int = WIDTH) -> str:
    """A plain-text table of limited width: high-rank columns are dropped first, then long names are wrapped.

    Args:
        columns: the columns.
        rows: the rows, in the type that the columns' cells take.
        width: largest number of characters per line.
    """
    from tabulate import tabulate

    kept = [replace(c, heading=c.short or c.heading, cell=c.brief or c.cell) for c in columns]
    limits = {id(kept[0]): 32, id(kept[-1]): 20}

    def fitted(c: Column, cell: str) -> str:
        """The cell in lines of the column's width. `tabulate` fails on a name such as 1,000, as on a number."""
        most = limits.get(id(c))
        return cell if most is None or terminal.width(cell) <= most else "\n".join(terminal.wrapped(cell, most))

    def render() -> str:
        align = ["left", *["right"] * (len(kept) - 1)]
        return tabulate(
            [[fitted(c, plain.visible(cell)) for c, cell in zip(kept, row, strict=True)] for row in grid(kept, rows)],
            [plain.visible(c.heading) for c in kept],
            "simple",
            disable_numparse=True,
            colalign=align,
            missingval=formatting.DASH,
        )

    table = render()
    while max(map(terminal.width, table.splitlines())) > width and any(c.rank for c in kept):
        kept.remove(max(kept, key=lambda c: c.rank))
        table = render()
    return table
