"""The design of a table, from its records: the newest says what is asked, the oldest what was asked before the runs."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from peftbench.records.design import FIXED, Claim, Design
from peftbench.records.record import RunRecord
from peftbench.records.spec import TaskSpec


def of(runs: Sequence[RunRecord]) -> tuple[Design, tuple[Claim, ...]]:
    """The design of a table, and the claims that were added after runs.

    A claim is planned if every run of the method that it is about knows it: a run of before the claim could have led
    to it.

    Args:
        runs: the runs of the table; not empty.

    Returns:
        (the newest run's design with the planned claims on this task, the other claims on it).
    """
    newest = max(runs, key=lambda r: r.body.started).body.design or FIXED
    asked = on_task(newest, runs[0].spec.task)
    planned = [claim for claim in asked.claims if _is_planned(claim, runs)]
    return structs.replace(asked, claims=planned), tuple(claim for claim in asked.claims if claim not in planned)


def on_task(design: Design, task: TaskSpec) -> Design:
    """The design with the claims on one task alone."""
    names = {None, task.name, task.stand_in_for}
    return structs.replace(design, claims=[claim for claim in design.claims if claim.task in names])


def _is_planned(claim: Claim, runs: Sequence[RunRecord]) -> bool:
    mine = [r.body.design for r in runs if r.spec.method.label == claim.method]
    return all(design is not None and claim in design.claims for design in mine)
