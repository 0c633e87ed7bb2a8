"""Seeds until decided: which seeds of each row are wanted now, from what the records decide.

The verdicts of a look are computed from the first seeds of each row alone, so the next runs follow from the records: a
grid that was killed goes on with the same runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from peftbench.plan.grid import Planned
from peftbench.records import comparable
from peftbench.records.design import Design
from peftbench.records.record import RunRecord
from peftbench.report.data import collect, decisions, designs


def wanted(
    planned: Sequence[Planned],
    records: Collection[RunRecord],
    design: Design,
    has_ended: Callable[[str], bool],
) -> list[Planned]:
    """The runs that are wanted now: all trials, and the final runs up to the next look of their row.

    Args:
        planned: the runs of the grid, with the values of their best trials.
        records: one record for each spec that has one.
        design: looks and margin.
        has_ended: whether a spec, by its id, is not to be attempted again.
    """
    tables: dict[str, list[Planned]] = defaultdict(list)
    for p in planned:
        if p.spec.trial is None:
            tables[comparable.key(p.spec)].append(p)
    ended = {r.spec_id: r for r in records if has_ended(r.spec_id)}
    chosen = {p.spec.id for table in tables.values() for p in _of_table(table, ended, design)}
    return [p for p in planned if p.spec.trial is not None or p.spec.id in chosen]


def _of_table(table: Sequence[Planned], ended: dict[str, RunRecord], design: Design) -> list[Planned]:
    rows: dict[str, list[Planned]] = defaultdict(list)
    for p in sorted(table, key=lambda p: p.spec.seed):
        rows[p.label].append(p)
    counts = dict.fromkeys(rows, design.looks[0])
    if all(not p.waits and p.spec.id in ended for runs in rows.values() for p in runs[: design.looks[0]]):
        counts = _decided(rows, ended, design)
    return [p for label, runs in rows.items() for p in runs[: counts[label]]]


def _decided(rows: dict[str, list[Planned]], ended: dict[str, RunRecord], design: Design) -> dict[str, int]:
    """label -> number of seeds, once every row has those of the first look."""
    there = [ended[p.spec.id] for runs in rows.values() for p in _without_gap(runs, ended)]
    asked = designs.on_task(design, there[0].spec.task)
    state = decisions.of(replace(collect.table(there), design=asked))
    return {label: state.going_on.get(label, state.rows[label].seeds) for label in rows}


def _without_gap(runs: Sequence[Planned], ended: dict[str, RunRecord]) -> list[Planned]:
    """The runs up to the first that has not ended, as a look takes the first seeds."""
    missing = next((i for i, p in enumerate(runs) if p.spec.id not in ended), len(runs))
    return list(runs[:missing])
