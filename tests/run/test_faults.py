"""The fault table of docs/faults.md: what the record says, and what the next command does."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_session
import pytest
from test_pool import carry_out, job, setup, the_record

from peftbench.cli import progress
from peftbench.records import record
from peftbench.records.retries import ATTEMPTS
from peftbench.run import attempt, failures, runner
from peftbench.run.executors import pool as pool_module
from peftbench.run.executors.pool import Pool
from peftbench.run.view import Quiet

DIES = {"segfault": "SIGSEGV", "abort": "SIGABRT", "leave": "exited with code 0", "kill": "SIGKILL"}


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool(setup(tmp_path)) as pool:
        yield pool


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., runner.Outcome]:
    def go(specs: Sequence[Any], **options: Any) -> runner.Outcome:
        kwargs = {"journal": str(tmp_path / "journal")}
        options = {"experiment": "fake", "view": Quiet(), "threads": 1, "session_kwargs": kwargs} | options
        return runner.run(lambda records: specs, tmp_path / "r", session="fake_session:Session", **options)

    return go


def runs_started(tmp_path: Path) -> Counter[str]:
    return Counter(line[4] for line in fake_session.journal(tmp_path / "journal") if line[3] == "run")


@pytest.mark.slow
def test_however_a_process_dies_its_run_is_killed_and_the_grid_goes_on(go: Callable, tmp_path: Path) -> None:
    specs = [fake_session.spec(n, do=do) for n, do in enumerate(DIES)] + [fake_session.spec(9)]
    outcome = go(specs)
    assert (outcome.code, outcome.counts) == (1, {"killed": len(DIES), "finished": 1})
    reasons = {r.spec_id: r.body.reason for r in record.read_all(tmp_path / "r")}
    for spec, said in zip(specs, DIES.values(), strict=False):
        assert said in reasons[spec.id]


@pytest.mark.slow
def test_whatever_a_method_raises_becomes_a_reason_that_a_record_holds(go: Callable, tmp_path: Path) -> None:
    specs = [fake_session.spec(n, do=do) for n, do in enumerate(["odd", "recurse", "exit"])] + [fake_session.spec(9)]
    assert go(specs).counts == {"error": 3, "finished": 1}
    reasons = {r.spec_id: r.body.reason for r in record.read_all(tmp_path / "r")}
    assert reasons[specs[0].id].startswith("Odd: (<_io.TextIOWrapper")
    assert len(reasons[specs[0].id]) <= failures.MESSAGE
    assert reasons[specs[1].id].startswith("RecursionError")
    assert reasons[specs[2].id] == "SystemExit: 7"


def test_a_full_disk_interrupts_a_run_and_the_next_command_repeats_it(go: Callable, tmp_path: Path) -> None:
    specs = [fake_session.spec(0, do="full"), fake_session.spec(1)]
    out = io.StringIO()
    assert go(specs, view=progress.view(False, out)).counts == {"interrupted": 1, "finished": 1}
    assert "killed, interrupted and abandoned runs are repeated by running again" in out.getvalue()
    go(specs)
    assert runs_started(tmp_path) == {specs[0].id: 2, specs[1].id: 1}


@pytest.mark.slow
@pytest.mark.parametrize("do", ["kill", "full"])
def test_what_the_surroundings_end_is_given_up_after_some_attempts_and_tried_again_on_request(
    go: Callable, tmp_path: Path, do: str
) -> None:
    specs = [fake_session.spec(0, do=do), fake_session.spec(1)]
    for _ in range(ATTEMPTS + 2):
        out = io.StringIO()
        assert go(specs, view=progress.view(False, out)).code == 1
    assert runs_started(tmp_path)[specs[0].id] == ATTEMPTS
    assert "1 given up, because 3 or more attempts were killed or interrupted: --retry-failed" in out.getvalue()
    assert "by running again" not in out.getvalue()
    go(specs, retry_failed=True)
    assert runs_started(tmp_path)[specs[0].id] == ATTEMPTS + 1


@pytest.mark.slow
def test_a_run_that_writes_into_the_runners_pipe_costs_itself_alone(pool: Pool, tmp_path: Path) -> None:
    carry_out(pool, job(tmp_path, 0, do="write to every descriptor"))
    assert the_record(tmp_path).status == "killed"
    assert carry_out(pool, job(tmp_path, 1)).facts["status"] == "finished"


@pytest.mark.slow
def test_a_process_that_a_run_leaves_code_running_in_takes_no_other_run(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "RETIRING_SECONDS", 0.3)
    carry_out(pool, job(tmp_path, 0, do="thread"))
    kept = the_record(tmp_path)
    assert (kept.status, "takes longer than" in kept.body.reason) == ("error", True)
    deadline = time.monotonic() + 60
    while pool.workers:
        assert time.monotonic() < deadline, "its thread keeps it"
        pool.poll(0.05)
    assert carry_out(pool, job(tmp_path, 1)).facts["status"] == "finished"
    assert len({line[0] for line in fake_session.journal(tmp_path / "journal")}) == 2


def test_a_body_comes_from_the_sessions_own_exceptions_only(tmp_path: Path) -> None:
    class Foreign(Exception):
        body = {"metrics": "not those of a record", "stopped_at": 10**30}

    host = attempt.SessionHost("fake_session:Session", {"journal": str(tmp_path / "journal")})
    assert host._ending_of(Foreign("an HTTP error has a body, too")).body == {}
