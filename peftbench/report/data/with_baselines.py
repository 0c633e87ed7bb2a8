"""New runs beside baselines from another directory: one table, and under it where each row comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from peftbench.records.record import ProfileRecord, Record, RunRecord, TrainingRecord
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison


def compare_with(own: Sequence[Record], others: Sequence[Record], other_dir: Path | str) -> list[Comparison]:
    """The comparisons that hold a run of `own`, over the union of both; the others keep their own times."""
    mine, labels = {r.path for r in own}, {r.spec.method.label for r in own if isinstance(r, TrainingRecord)}
    union = [*(_only(r, labels) for r in own), *others]
    return [_with_sources(c, mine, other_dir) for c in compare(union) if any(r.path in mine for r in _runs(c))]


def _only(r: Record, labels: set[str]) -> Record:
    """A profile pass without the reference that was timed beside the new methods: its row has times already."""
    if not isinstance(r, ProfileRecord) or not r.rows:
        return r
    return replace(r, body=structs.replace(r.body, rows=[row for row in r.rows if row.label in labels]))


def _runs(c: Comparison) -> list[RunRecord]:
    return [r for e in c.entries for r in e.runs]


def _with_sources(c: Comparison, mine: set[Path], other_dir: Path | str) -> Comparison:
    """With the note that says which rows are whose."""
    labels = [e.label for e in c.entries if any(r.path in mine for r in e.runs)]
    folder = next(r.path.parent.parent for r in _runs(c) if r.path in mine)
    rest = f"the other {len(c.entries) - len(labels)} rows" if len(c.entries) > len(labels) else "no other row"
    source = f"{', '.join(labels)}: runs in {folder.as_posix()}; {rest}: runs in {Path(other_dir).as_posix()}."
    return replace(c, notes=(source, *c.notes))
