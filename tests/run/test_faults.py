"""The fault table of docs/faults.md: what the record says, and what the next command does."""

from __future__ import annotations

import contextlib
import errno
import io
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_session
import pytest
from test_pool import carry_out, job, setup, the_record

from peftbench.cli import progress
from peftbench.errors import UserError
from peftbench.records import record
from peftbench.records.retries import ATTEMPTS
from peftbench.run import attempt, failures, runner
from peftbench.run.executors import ExecutorError
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("do", "said"), [("no more files", "Too many open files"), ("no larger files", "File too large")]
)
def test_a_limit_of_one_process_costs_its_run_alone(go: Callable, tmp_path: Path, do: str, said: str) -> None:
    specs = [fake_session.spec(0, do=do), fake_session.spec(1)]
    assert go(specs).counts == {"interrupted": 1, "finished": 1}
    [interrupted] = [r for r in record.read_all(tmp_path / "r") if not r.is_finished]
    assert said in interrupted.body.reason
    assert not list((tmp_path / "r" / "runs").glob(".*.tmp"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB; `grow` makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_grid_with_one_message_and_the_next_command_finishes(
    go: Callable, tmp_path: Path, disk: Path
) -> None:
    (tmp_path / "r").symlink_to(disk)
    specs = [fake_session.spec(n) for n in range(24)]
    full = r"could not be written \(No space left on device\)\. Free some space"
    with pytest.raises(UserError, match=full) as stopped:
        go(specs)
    assert "\n" not in str(stopped.value)
    kept = record.read_all(disk)  # no half file: all can be read
    assert 0 < len(kept) < len(specs)
    assert all(r.is_finished for r in kept)
    assert not list((disk / "runs").glob(".*.tmp"))
    remount(disk, "size=4m")
    assert go(specs).counts == {"finished": len(specs)}
    started = runs_started(tmp_path)
    assert all(started[r.spec_id] == 1 for r in kept), "what was written is not run again"


@pytest.mark.slow
def test_a_disk_that_is_full_before_anything_runs_is_said(go: Callable, tmp_path: Path, disk: Path) -> None:
    (tmp_path / "r").symlink_to(disk)
    with contextlib.suppress(OSError), open(disk / "ballast", "wb") as f:
        f.write(bytes(1 << 20))
    with pytest.raises(UserError, match="No space left on device"):
        go([fake_session.spec(0)])
    (disk / "ballast").unlink()
    assert go([fake_session.spec(0)]).code == 0


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_is_said(go: Callable, tmp_path: Path, disk: Path) -> None:
    (tmp_path / "r").symlink_to(disk)
    go([fake_session.spec(0)])
    remount(disk, "ro")
    with pytest.raises(UserError, match="Read-only file system"):
        go([fake_session.spec(1)])
    remount(disk, "rw,size=1m")
    assert go([fake_session.spec(0), fake_session.spec(1)]).counts == {"finished": 2}
    assert set(runs_started(tmp_path).values()) == {1}


def only(processes: int, error: OSError, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Let so many processes start and then no more; returns the list of those that do."""
    popen, made = subprocess.Popen, list[Any]()

    def start(*args: Any, **more: Any) -> Any:
        if sum(process.poll() is None for process in made) >= processes:
            raise error
        made.append(popen(*args, **more))
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return made


@pytest.mark.parametrize("processes", [0, 1], ids=["no worker", "a worker without a guard"])
def test_a_machine_that_starts_no_process_says_so(
    go: Callable, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    made = only(processes, BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), monkeypatch)
    with pytest.raises(ExecutorError, match=r"a worker process cannot be started: .*temporarily unavailable.*resume"):
        go([fake_session.spec(0)])
    assert len(made) == processes
    assert all(process.returncode == -signal.SIGKILL for process in made)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3], ids=["one worker", "a second worker without a guard"])
def test_where_the_machine_starts_fewer_processes_the_grid_goes_on_with_those(
    go: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    made = only(processes, OSError(errno.EMFILE, "Too many open files"), monkeypatch)
    assert go([fake_session.spec(n) for n in range(4)], jobs=2).code == 0
    workers = {line[0] for line in fake_session.journal(tmp_path / "journal") if line[3] == "run"}
    assert len(workers) == 1
    assert all(process.returncode is not None for process in made), "left behind"


def test_the_fault_table_names_tests_that_exist() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "faults.md").read_text()))
    written = "".join(p.read_text() for p in (root / "tests").rglob("test_*.py"))
    assert named
    assert not {name for name in named if f"def {name}(" not in written}
