"""The design of a table, from its records: the newest says what is asked, the oldest what was asked before the runs."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from peftbench.records.design import FIXED, Claim, Design
from peftbench.records.record import RunRecord


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
    names = {runs[0].spec.task.name, runs[0].spec.task.stand_in_for}
    claims = [claim for claim in newest.claims if claim.task is None or claim.task in names]
    planned = [claim for claim in claims if _is_planned(claim, runs)]
    return structs.replace(newest, claims=planned), tuple(claim for claim in claims if claim not in planned)


def _is_planned(claim: Claim, runs: Sequence[RunRecord]) -> bool:
    mine = [r.body.design for r in runs if r.spec.method.label == claim.method]
    return all(design is not None and claim in design.claims for design in mine)
