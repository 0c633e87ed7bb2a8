"""What a method starts ends with its run, with its worker and with the runner, however these end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_session
import family
import psutil
import pytest
from test_pool import carry_out, job, pool, setup, the_record, wait_for, wait_until_idle

from peftbench.run import children
from peftbench.run.executors import Ended, Progressed
from peftbench.run.executors.pool import Pool

__all__ = ["pool"]  # the fixture


def wait_until_gone(folder: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while left := family.alive(folder):
        assert time.monotonic() < deadline, f"still alive: {left}"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("do", "status"), [("children", "finished"), ("children raise", "error"), ("children exit", "error")]
)
def test_child_processes_are_gone_once_the_end_of_their_run_is_reported(
    pool: Pool, tmp_path: Path, do: str, status: str
) -> None:
    assert carry_out(pool, job(tmp_path, do=do)).facts["status"] == status
    assert len(list((tmp_path / "children").iterdir())) == len(family.KINDS) + 1
    assert not family.alive(tmp_path / "children")
    while pool.workers:
        pool.poll(0.05)
    assert carry_out(pool, job(tmp_path, 1)).facts["status"] == "finished"
    assert len({line[0] for line in fake_session.journal(tmp_path / "journal")}) == 2, "the worker was not replaced"


@pytest.mark.slow
def test_child_processes_of_a_killed_worker_are_gone_once_its_end_is_reported(pool: Pool, tmp_path: Path) -> None:
    assert carry_out(pool, job(tmp_path, do="children kill")).facts["status"] == "killed"
    assert "signal 9 (SIGKILL" in the_record(tmp_path).body.reason
    left = family.alive(tmp_path / "children")
    assert len(left) <= 1, "only one that leaves the session and clears its environment is not found any more"
    for process in left:
        process.kill()


@pytest.mark.slow
def test_child_processes_end_when_the_pool_is_closed_on_a_run(tmp_path: Path) -> None:
    with Pool(setup(tmp_path)) as pool:
        wait_until_idle(pool)
        pool.give(pool.workers[1], job(tmp_path, do="children hang"))
        while not (tmp_path / "hangs").exists():
            pool.poll(0.05)
    assert not family.alive(tmp_path / "children")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "first"),
    [
        (signal.SIGKILL, "runner"),
        (signal.SIGKILL, "stopped workers"),
        (signal.SIGKILL, "workers and runner"),
        (signal.SIGTERM, "runner"),
        pytest.param(signal.SIGINT, "runner", marks=pytest.mark.full),  # which comes behind each of these signals
        pytest.param(signal.SIGHUP, "runner", marks=pytest.mark.full),
    ],
)
def test_child_processes_end_with_the_runner(tmp_path: Path, number: signal.Signals, first: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = [sys.executable, fake_session.__file__, str(tmp_path / "r"), "--hyper", '{"do": "children hang"}']
    runner = subprocess.Popen(script, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "hangs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    everyone = psutil.Process(runner.pid).children(recursive=True)
    workers = [p for p in everyone if p.ppid() == runner.pid and fake_session.is_worker(p)]
    assert workers
    for worker in workers if first != "runner" else []:
        worker.send_signal(signal.SIGSTOP if first == "stopped workers" else signal.SIGKILL)
    runner.send_signal(number)
    if number != signal.SIGKILL:
        runner.send_signal(signal.SIGINT)  # at once, as the run would not stop by itself
        assert runner.wait(60) == 130
    runner.wait(60)
    _, left = psutil.wait_procs(everyone, timeout=30)
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]
    wait_until_gone(tmp_path / "children")


def test_a_worker_with_a_thread_that_goes_on_after_its_run_is_replaced(pool: Pool, tmp_path: Path) -> None:
    carry_out(pool, job(tmp_path, do="thread"))
    while pool.workers:
        pool.poll(0.05)
    assert carry_out(pool, job(tmp_path, 1)).facts["status"] == "finished"
    assert len({line[0] for line in fake_session.journal(tmp_path / "journal")}) == 2


def test_the_guard_of_a_worker_ends_with_it(tmp_path: Path) -> None:
    with Pool(setup(tmp_path)) as pool:
        wait_until_idle(pool, 2)
        guards = [w.guard for w in pool.workers.values()]
        assert [g.poll() for g in guards] == [None, None]
    assert [g.returncode for g in guards] == [0, 0]


def test_a_terminal_that_goes_away_does_not_reach_workers(pool: Pool, tmp_path: Path) -> None:
    wait_until_idle(pool)
    assert os.getsid(pool.workers[1].process.pid) != os.getsid(0)
    pool.give(pool.workers[1], job(tmp_path, pause=0.05))
    wait_for(pool, Progressed)
    assert wait_for(pool, Ended).facts["status"] == "finished"


def test_a_system_without_proc_and_descriptors_of_processes_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = [sys.executable, "-c", family.STAY, str(tmp_path)]
    worker, guard = children.start(stays, "a-worker", dict(os.environ))
    deadline = time.monotonic() + 30
    while not list(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    here = {p.pid: p for p in children._all(named=True)}[worker.pid]
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(children, "_first_by_descriptor", lambda pids, seconds: 1 / 0)
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert {p.pid: p for p in children._all(named=True)}[worker.pid] == here
    assert (here.parent, here.session, here.name) == (os.getpid(), worker.pid, "a-worker")
    assert here.is_any_of([b"time.sleep"])
    assert not here.is_any_of(children.TIDY)
    assert children._first_to_end([worker.pid], seconds=0.1) is None
    worker.kill()
    assert children._first_to_end([worker.pid], seconds=10) == worker.pid
    worker.wait()
    children.wait_for_guard(guard)
    assert guard.returncode == 0
