"""Claims: of several processes one gets a job, with no lock, and a job of a dead one is free again."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import factories
import fake_session
import pytest

from peftbench.records import record
from peftbench.records.retries import ATTEMPTS
from peftbench.run import shared_files
from peftbench.run.executors.claims import Claim, Entry, Ledger, State
from peftbench.run.executors.slurm_task import release
from peftbench.run.jobs import Ending, Job, Start, record_of

RACES = 300


def no_flock(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def race(folder: Path, number: int, start: Any, won: Any) -> None:
    """Try to claim every job at the same moment as the others."""
    fcntl.flock = fcntl.lockf = no_flock  # type: ignore[assignment]
    ledger, mine = Ledger(folder), []
    for key in range(RACES):
        start.wait()
        if ledger.claim(f"{key:016x}", 1, {"task": number}):
            mine.append(key)
    won.put((number, mine))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_of_processes_that_race_for_a_job_one_gets_it_each_time(tmp_path: Path, workers: int) -> None:
    context = multiprocessing.get_context("fork")
    start, won = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=race, args=(tmp_path, n, start, won)) for n in range(workers)]
    for process in processes:
        process.start()
    results = dict(won.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    winners = Counter(key for mine in results.values() for key in mine)
    assert winners == dict.fromkeys(range(RACES), 1)
    ledger = Ledger(tmp_path)
    for number, mine in results.items():
        assert all(ledger.facts_of(Claim(f"{key:016x}", 1)) == {"task": number} for key in mine)
    assert sum(map(bool, results.values())) > 1, "there was a race"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_lost_answer_of_the_file_server_is_no_lost_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def answers_late(source: Any, target: Any) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")  # the client asked twice

    monkeypatch.setattr(os, "link", answers_late)
    assert shared_files.create(tmp_path / "a", 1)
    monkeypatch.setattr(os, "link", link)
    assert not shared_files.create(tmp_path / "a", 2)
    assert shared_files.read(tmp_path / "a") == 1


def test_a_file_system_without_links_is_an_error_and_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(source: Any, target: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuses)
    with pytest.raises(PermissionError):
        shared_files.create(tmp_path / "a", 1)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("run", fake_session.spec(0), "fake", str(tmp_path / "r"))


@pytest.fixture
def ledger(tmp_path: Path, job: Job) -> Ledger:
    made = Ledger(tmp_path / "ledger")
    made.publish({job.spec.id: Entry(job)})
    return made


def claimed(ledger: Ledger, job: Job, number: int = 1) -> Claim:
    facts = {"task": "7_0", "element": "7_0", "env": factories.run()["env"], "at": datetime.now(UTC).isoformat()}
    names = [p.name for p in record.paths(job.results_dir)]
    claim = ledger.claim(job.spec.id, number, {**facts, "records": names})
    assert claim is not None
    return claim


def test_a_list_is_read_as_it_was_written(ledger: Ledger, job: Job) -> None:
    assert Ledger(ledger.folder).jobs() == {job.spec.id: Entry(job)}
    ledger.publish({job.spec.id: Entry(job, 3)})
    assert ledger.jobs()[job.spec.id].first == 3


@pytest.mark.parametrize(
    ("state", "first", "expected"),
    [
        (State(), 1, (1, False, False)),
        (State(1), 1, (None, True, False)),
        (State(1, {"status": "finished"}), 1, (None, False, True)),
        (State(1, {"again": True}), 1, (2, False, False)),
        (State(1, {"status": "error"}), 2, (2, False, False)),
        (State(2), 2, (None, True, False)),
    ],
)
def test_where_a_job_stands(state: State, first: int, expected: tuple[int | None, bool, bool]) -> None:
    assert (state.next_claim(first), state.is_held(first), state.has_ended(first)) == expected


def test_a_claim_ends_once_and_a_late_one_takes_nothing(ledger: Ledger, job: Job) -> None:
    key, claim = job.spec.id, claimed(ledger, job)
    assert ledger.states() == {key: State(1)}
    assert ledger.close(claim, {"status": "killed", "again": True})
    assert not ledger.close(claim, {"status": "finished"}), "the first word counts"
    second = ledger.claim(key, 2, {"task": "7_1"})
    assert second is not None
    assert ledger.claim(key, 1, {"task": "late"}) is None
    assert ledger.claim(key, 2, {"task": "late"}) is None
    assert ledger.states() == {key: State(2)}


def test_the_claim_of_a_dead_task_leaves_a_killed_record_and_a_free_job(ledger: Ledger, job: Job) -> None:
    claim = claimed(ledger, job)
    assert release(ledger, claim, job, "the task 7_0 ended (NODE_FAIL)")
    assert not release(ledger, claim, job, "again"), "only one does it"
    (only,) = record.read_all(job.results_dir)
    assert (only.status, only.body.reason) == ("killed", "the task 7_0 ended (NODE_FAIL)")
    assert ledger.states()[job.spec.id].next_claim(1) == 2


def test_two_that_release_a_claim_at_once_write_one_record(ledger: Ledger, job: Job) -> None:
    claim = claimed(ledger, job)
    begin, results = threading.Barrier(4), []

    def work() -> None:
        begin.wait()
        results.append(release(Ledger(ledger.folder), claim, job, "gone"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]
    assert len(record.read_all(job.results_dir)) == 1


def test_a_task_that_died_after_its_record_has_ended_the_run(ledger: Ledger, job: Job) -> None:
    claim = claimed(ledger, job)
    body = factories.run()
    record.write(job.results_dir, record_of(job, body["env"], Start.now(), Ending("error", "a bug in a method")))
    assert release(ledger, claim, job, "gone")
    state = ledger.states()[job.spec.id]
    assert state.has_ended(1)
    assert state.over is not None
    assert (state.over["status"], state.over["reason"]) == ("error", "a bug in a method")
    assert len(record.read_all(job.results_dir)) == 1


def test_a_run_that_takes_its_task_with_it_is_given_up(ledger: Ledger, job: Job) -> None:
    for number in range(1, ATTEMPTS + 1):
        assert release(ledger, claimed(ledger, job, number), job, "gone")
    assert ledger.states()[job.spec.id].has_ended(1)
    assert [r.status for r in record.read_all(job.results_dir)] == ["killed"] * ATTEMPTS


def test_jobs_of_two_kinds_are_read_back(tmp_path: Path) -> None:
    run = fake_session.spec(0)
    jobs = [Job("run", run, "e", "r"), Job("profile", fake_session.profile(run), "e", "r", overrides=("a=1",))]
    ledger = Ledger(tmp_path)
    ledger.publish({j.spec.id: Entry(replace(j)) for j in jobs})
    assert [e.job for e in Ledger(tmp_path).jobs().values()] == jobs


def test_no_lock_is_ever_asked_for(ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Callable] = []
    monkeypatch.setattr(fcntl, "flock", lambda *_: asked.append(fcntl.flock))
    monkeypatch.setattr(fcntl, "lockf", lambda *_: asked.append(fcntl.lockf))
    claim = claimed(ledger, job)
    ledger.close(claim, {"status": "finished"})
    ledger.ask("a", "stop", "why")
    assert ledger.asked("a") == ("stop", "why")
    assert asked == []
