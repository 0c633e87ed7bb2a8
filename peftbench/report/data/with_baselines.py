"""Puts new runs and baselines from another directory into one table, with a note on where each row comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from peftbench.records.record import ProfileRecord, Record, RunRecord, TrainingRecord
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison


def compare_with(own: Sequence[Record], others: Sequence[Record], other_dir: Path | str) -> list[Comparison]:
    """Compare new runs with baselines.

    Args:
        own: the new records.
        others: the records of the baselines, which keep their own times.
        other_dir: the directory of the baselines, named in the note.

    Returns:
        The comparisons that contain at least one run of `own`.
    """
    mine, labels = {r.path for r in own}, {r.spec.method.label for r in own if isinstance(r, TrainingRecord)}
    union = [*(_only(r, labels) for r in own), *others]
    return [_with_sources(c, mine, other_dir) for c in compare(union) if any(r.path in mine for r in _runs(c))]


def _only(r: Record, labels: set[str]) -> Record:
    """Drop the reference's row from a new profile pass: the baselines' own pass has its times."""
    if not isinstance(r, ProfileRecord) or not r.rows:
        return r
    return replace(r, body=structs.replace(r.body, rows=[row for row in r.rows if row.label in labels]))


def _runs(c: Comparison) -> list[RunRecord]:
    return [r for e in c.entries for r in e.runs]


def _with_sources(c: Comparison, mine: set[Path], other_dir: Path | str) -> Comparison:
    """Add the note that names the directory of each row."""
    labels = [e.label for e in c.entries if any(r.path in mine for r in e.runs)]
    folder = next(r.path.parent.parent for r in _runs(c) if r.path in mine)
    rest = f"the other {len(c.entries) - len(labels)} rows" if len(c.entries) > len(labels) else "no other row"
    source = f"{', '.join(labels)}: runs in {folder.as_posix()}; {rest}: runs in {Path(other_dir).as_posix()}."
    return replace(c, notes=(source, *_on_looks(c, mine), *c.notes))


def _on_looks(c: Comparison, mine: set[Path]) -> Iterator[str]:
    """A note where the baselines' seeds ran until decided, and the new methods have as many as the reference."""
    designs = (r.body.design for r in _runs(c) if r.path not in mine)
    if not c.design.looks and any(design is not None and design.looks for design in designs):
        yield (
            "The baselines' seeds ran until decided, which the tests here do not take into account: what is sure among "
            "the baselines stands in their own report, and the planned questions here are about new methods."
        )
