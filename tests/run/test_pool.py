"""The executor `local`: what the end of a run becomes, what the death of a worker or of the parent costs."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import fake_session
import psutil
import pytest

from peftbench.errors import UserError
from peftbench.records import record
from peftbench.run import heap
from peftbench.run.executors import Ended, Event, ExecutorError, Notice, Progressed, Setup
from peftbench.run.executors.local import affinity
from peftbench.run.executors.pool import Pool, environment_of
from peftbench.run.jobs import Job


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool(setup(tmp_path)) as pool:
        yield pool


def setup(tmp_path: Path, **kwargs: str) -> Setup:
    return Setup("fake_session:Session", {"journal": str(tmp_path / "journal"), **kwargs}, threads=1)


def job(tmp_path: Path, number: int = 0, task: str = "synthetic/words", **hyper: object) -> Job:
    return Job("run", fake_session.spec(number, task, **hyper), "fake", str(tmp_path))


E = TypeVar("E", bound=Event)


def wait_for(pool: Pool, kind: type[E], seconds: float = 60) -> E:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for event in pool.poll(0.05):
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no event {kind.__name__} within {seconds} s")


def wait_until_idle(pool: Pool, workers: int = 1, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    pool.grow(workers)
    while len(pool.idle()) < workers:
        assert time.monotonic() < deadline, f"no {workers} idle workers within {seconds} s"
        pool.poll(0.05)


def carry_out(pool: Pool, job: Job) -> Ended:
    wait_until_idle(pool)
    pool.give(pool.idle()[0], job)
    return wait_for(pool, Ended)


def the_record(tmp_path: Path) -> record.Record:
    [only] = record.read_all(tmp_path)
    return only


def test_a_finished_run_is_on_disk_when_its_end_is_reported(pool: Pool, tmp_path: Path) -> None:
    event = carry_out(pool, job(tmp_path))
    kept = the_record(tmp_path)
    assert event.facts["status"] == kept.status == "finished"
    assert kept.spec_id == fake_session.spec(0).id
    assert kept.experiment == "fake"
    assert len(kept.curve.loss) == fake_session.STEPS
    assert kept.env.threads == 1
    assert kept.body.seconds.total > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("do", "status", "reason"),
    [
        ("diverge", "diverged", "not finite at step 2"),
        ("oom", "oom", "can't allocate memory"),
        ("memory", "interrupted", "MemoryError"),
        ("raise", "error", "ZeroDivisionError: a bug in a method"),
        ("user", "error", "label 7 is outside 0..5"),
        ("exit", "error", "SystemExit: 7"),
    ],
)
def test_a_failed_run_becomes_a_record_with_its_reason(
    pool: Pool, tmp_path: Path, do: str, status: str, reason: str
) -> None:
    event = carry_out(pool, job(tmp_path, do=do))
    kept = the_record(tmp_path)
    assert event.facts["status"] == kept.status == status
    assert reason in kept.body.reason
    assert ("Traceback" in (kept.body.traceback or "")) == (do not in ("diverge", "user"))


def test_the_session_is_built_once_for_many_runs(pool: Pool, tmp_path: Path) -> None:
    for n in range(3):
        carry_out(pool, job(tmp_path, n))
    lines = fake_session.journal(tmp_path / "journal")
    assert [line[3] for line in lines] == ["opened", "run", "run", "run"]
    assert len({line[0] for line in lines}) == 1


def test_a_worker_goes_on_after_a_failed_run(pool: Pool, tmp_path: Path) -> None:
    carry_out(pool, job(tmp_path, 0, do="raise"))
    assert carry_out(pool, job(tmp_path, 1)).facts["status"] == "finished"
    assert len({line[0] for line in fake_session.journal(tmp_path / "journal")}) == 1


def test_a_worker_whose_device_is_broken_takes_no_further_run(pool: Pool, tmp_path: Path) -> None:
    carry_out(pool, job(tmp_path, 0, do="cuda"))
    deadline = time.monotonic() + 60
    while pool.workers:
        assert time.monotonic() < deadline, "it stayed"
        pool.poll(0.05)
    assert carry_out(pool, job(tmp_path, 1)).facts["status"] == "finished"
    assert len({line[0] for line in fake_session.journal(tmp_path / "journal")}) == 2


def test_a_killed_worker_leaves_a_killed_record_and_can_be_replaced(pool: Pool, tmp_path: Path) -> None:
    event = carry_out(pool, job(tmp_path, 0, do="kill"))
    kept = the_record(tmp_path)
    assert event.facts["status"] == kept.status == "killed"
    assert "signal 9 (SIGKILL" in kept.body.reason
    assert carry_out(pool, job(tmp_path, 1)).facts["status"] == "finished"


def test_a_run_whose_worker_died_after_writing_counts_as_finished(pool: Pool, tmp_path: Path) -> None:
    carry_out(pool, job(tmp_path))
    [worker] = pool.workers.values()
    worker.process.send_signal(signal.SIGSTOP)
    pool.give(worker, job(tmp_path))  # as if it were still on the run whose record is there
    worker.process.kill()
    assert wait_for(pool, Ended).facts["status"] == "finished"
    assert the_record(tmp_path).is_finished


def test_an_idle_worker_that_is_killed_writes_no_record(pool: Pool, tmp_path: Path) -> None:
    wait_until_idle(pool)
    pool.workers[1].process.kill()
    assert "signal 9 (SIGKILL" in wait_for(pool, Notice).text
    assert record.read_all(tmp_path) == []


def test_abandoning_stops_a_run_between_two_steps(pool: Pool, tmp_path: Path) -> None:
    wait_until_idle(pool)
    pool.give(pool.workers[1], job(tmp_path, pause=0.5))
    wait_for(pool, Progressed)
    pool.abandon()
    assert wait_for(pool, Ended).facts["status"] == "abandoned"
    assert the_record(tmp_path).status == "abandoned"


def test_workers_ignore_ctrl_c(pool: Pool, tmp_path: Path) -> None:
    pool.grow(1)
    pool.workers[1].process.send_signal(signal.SIGINT)  # at once: before any of its code has run
    wait_until_idle(pool)
    pool.workers[1].process.send_signal(signal.SIGINT)
    assert carry_out(pool, job(tmp_path)).facts["status"] == "finished"


def test_closing_ends_every_worker_even_one_that_hangs(tmp_path: Path) -> None:
    with Pool(setup(tmp_path)) as pool:
        wait_until_idle(pool, 2)
        pool.give(pool.workers[1], job(tmp_path, do="hang"))
        processes = [w.process for w in pool.workers.values()]
    assert all(p.returncode is not None for p in processes)
    assert processes[1].returncode == 0  # the idle one went by itself


@pytest.mark.parametrize(
    ("refuse", "error", "words"),
    [
        ("user", UserError, "no such data directory"),
        ("bug", ExecutorError, "bug in the session"),
        ("die", ExecutorError, "SIGSEGV"),
    ],
)
def test_a_session_that_cannot_be_built_stops_everything(
    tmp_path: Path, refuse: str, error: type[Exception], words: str
) -> None:
    with Pool(setup(tmp_path, refuse=refuse)) as pool, pytest.raises(error, match=words):
        start_again_and_again(pool)


def start_again_and_again(pool: Pool) -> None:
    for _ in range(200):
        pool.grow(1)
        pool.poll(0.1)


def test_a_record_that_cannot_be_written_is_the_users_to_fix(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(UserError, match="in the way"):
        carry_out(pool, job(tmp_path))


@pytest.mark.slow
def test_a_parent_that_dies_leaves_no_worker_and_no_half_written_file(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = [sys.executable, fake_session.__file__, str(tmp_path / "r"), "--hyper", '{"do": "hang"}']
    parent = subprocess.Popen(script, env=env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any("run" in line for line in fake_session.journal(tmp_path / "journal")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert children
    parent.kill()
    parent.wait()
    _, left = psutil.wait_procs(children, timeout=20)
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]
    assert not list((tmp_path / "r").glob("runs/.*"))


def test_work_goes_to_the_worker_that_has_it_loaded(pool: Pool, tmp_path: Path) -> None:
    pool.grow(2)
    one, two = pool.workers.values()
    one.last_job, two.last_job = job(tmp_path, task="a"), job(tmp_path, task="b")
    waiting = [job(tmp_path, 1, task="b"), job(tmp_path, 2, task="c"), job(tmp_path, 3, task="a")]
    ranked = sorted(waiting, key=lambda j: affinity(j, one, [two]))
    assert [j.spec.task.name for j in ranked] == ["a", "c", "b"]


def test_a_worker_keeps_the_memory_it_frees_unless_the_user_tuned_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert "mmap_threshold" in environment_of(1)["GLIBC_TUNABLES"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert environment_of(1)["GLIBC_TUNABLES"] == "glibc.malloc.check=3"


def test_a_run_that_grows_gives_its_free_pages_back_and_what_each_step_takes_again_is_no_growth() -> None:
    sizes = iter([0.9, 1.3, 1.4, 1.0, 1.4, 1.6, 1.2, 1.7, 1.9])  # GiB after each step
    told, released = list[Mapping[str, Any]](), list[int]()
    report = heap.tended(told.append, lambda: int(next(sizes) * 2**30), lambda: released.append(told[-1]["step"]))
    for step in range(9):
        report({"step": step})
    assert [facts["step"] for facts in told] == list(range(9))
    assert released == [2, 5, 8], "above 1.35 of 0.9, 1.5 of 1.0 and 1.8 of 1.2"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of glibc keeps what is freed")
def test_between_two_runs_a_worker_holds_no_memory_of_the_first(pool: Pool, tmp_path: Path) -> None:
    """Small blocks below one that lives stay with the process, and a run of large ones would stand beside them."""
    carry_out(pool, job(tmp_path))
    (worker,) = {int(line[0]) for line in fake_session.journal(tmp_path / "journal")}
    before = psutil.Process(worker).memory_info().rss
    assert carry_out(pool, job(tmp_path, 1, do="scatter")).facts["status"] == "finished"
    assert psutil.Process(worker).memory_info().rss - before < 100e6
