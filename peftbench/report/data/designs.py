"""The design of a table, from its records: the newest says what is asked, the oldest what was asked before the runs."""

from __future__ import annotations

from collections import Counter
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


def changed(runs: Sequence[RunRecord]) -> str | None:
    """A sentence on runs that were made for another margin or other looks than the newest; None if there are none.

    Runs of baselines in another directory have a plan of their own.

    Args:
        runs: the runs of a table; not empty.
    """
    newest = max(runs, key=lambda r: r.body.started)
    plans = Counter(_plan(r.body.design or FIXED) for r in runs if r.path.parent == newest.path.parent)
    now = _plan(newest.body.design or FIXED)
    if len(plans) == 1:
        return None
    before = " and ".join(f"{n} for {plan}" for plan, n in sorted(plans.items()) if plan != now)
    return (
        f"The plan was changed after runs: of {plans.total()} runs, {before} were made, and {plans[now]} for {now}, "
        "which counts here. What is called sure keeps its level only where the plan stands before the runs."
    )


def _plan(design: Design) -> str:
    """The margin and the looks in words."""
    margin = "no margin of its own" if design.margin is None else f"a margin of {design.margin:.6g}"
    if not design.looks:
        return f"{margin} and a fixed number of seeds"
    return f"{margin} and looks after {', '.join(map(str, design.looks))} seeds ({design.spending})"


def on_task(design: Design, task: TaskSpec) -> Design:
    """The design with the claims on one task alone."""
    names = {None, task.name, task.stand_in_for}
    return structs.replace(design, claims=[claim for claim in design.claims if claim.task in names])


def _is_planned(claim: Claim, runs: Sequence[RunRecord]) -> bool:
    mine = [r.body.design for r in runs if r.spec.method.label == claim.method]
    return all(design is not None and claim in design.claims for design in mine)
