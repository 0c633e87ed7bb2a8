"""The one rule for what another command repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import factories
import pytest

from peftbench.records import record
from peftbench.records.retries import ATTEMPTS, STOPPED, Retries, TimeLimits


def after(
    tmp_path: Path, *statuses: str, failed: bool = False, limits: TimeLimits | None = None, **body: Any
) -> Retries:
    """What is repeated after attempts at one spec that ended in these ways."""
    for status in statuses:
        made = factories.run("lora", 0, status=status)
        more = {"time_limit": {"of": "run", "seconds": 10}} if status == "timeout" else {}
        record.write(tmp_path, {**made, **more, **body})
    return Retries(record.read_all(tmp_path), failed, limits or TimeLimits())


def the_id(retries: Retries) -> str:
    (only,) = retries.latest
    return only


@pytest.mark.parametrize(
    ("statuses", "is_open"),
    [
        (["finished"], False),
        (["error"], False),
        (["oom"], False),
        (["diverged"], False),
        (["killed"], True),
        (["interrupted"], True),
        (["abandoned"], True),
        (["killed", "interrupted", "killed"], False),
        (["abandoned"] * 9, True),
        (["killed", "killed", "abandoned"], True),
        (["error", "killed"], True),
    ],
    ids=str,
)
def test_what_running_again_repeats(tmp_path: Path, statuses: list[str], is_open: bool) -> None:
    retries = after(tmp_path, *statuses)
    assert retries.is_open(the_id(retries)) == is_open
    assert retries.has_ended(the_id(retries)) == (not is_open), "a trial that is not repeated no longer waits"


@pytest.mark.parametrize("status", ["error", "timeout", "killed"])
def test_a_request_repeats_all_but_what_finished(tmp_path: Path, status: str) -> None:
    retries = after(tmp_path, *[status] * (ATTEMPTS + 1), failed=True)
    assert retries.is_open(the_id(retries))


def test_what_the_user_had_killed_is_not_counted(tmp_path: Path) -> None:
    retries = after(tmp_path, *["killed"] * 5, reason=STOPPED)
    assert retries.is_open(the_id(retries))


@pytest.mark.parametrize(
    ("limits", "is_open"),
    [
        (TimeLimits(run=5), False),
        (TimeLimits(run=10), False),
        (TimeLimits(run=11), True),
        (TimeLimits(), True),
        (TimeLimits(run=10, step=99), False),
    ],
    ids=str,
)
def test_a_timeout_is_repeated_when_its_own_limit_is_raised(tmp_path: Path, limits: TimeLimits, is_open: bool) -> None:
    retries = after(tmp_path, "timeout", limits=limits)
    assert retries.is_open(the_id(retries)) == is_open
