"""What `plan` says of runs that may follow, from rows alone."""

from __future__ import annotations

from typing import Any

from peftbench.cli.plan_view import _if_undecided


def rows(task: str, done: int, wanted: int, most: int) -> list[dict[str, Any]]:
    """The rows of one method's seeds: so many are done, wanted up to the next look, and planned at the most."""
    facts = {"task": task, "train_size": None, "steps": 5, "predicted_seconds": 1.0}
    return [
        {**facts, "if_undecided": seed >= wanted, "status": "finished" if seed < done else None} for seed in range(most)
    ]


def test_runs_may_follow_while_those_of_a_look_are_missing() -> None:
    (said,) = _if_undecided(rows("one", 2, 3, 8), 8, 1)
    assert said.startswith("and 0 to 5 runs more")


def test_a_table_in_which_nothing_is_missing_is_decided_and_no_run_follows() -> None:
    assert _if_undecided(rows("one", 3, 3, 8), 8, 1) == []


def test_only_tables_that_are_not_decided_go_on() -> None:
    (said,) = _if_undecided([*rows("one", 3, 3, 8), *rows("two", 3, 5, 8)], 8, 1)
    assert said.startswith("and 0 to 3 runs more")
