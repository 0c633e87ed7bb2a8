"""The loop from plan to records: what is run, what is not run again, and what a person is told."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_session
import family
import psutil
import pytest

import peftbench
from peftbench.cli import progress
from peftbench.errors import UserError
from peftbench.records import record, scratch
from peftbench.records.spec import RunSpec, as_dict
from peftbench.run import lock, runner
from peftbench.run.view import Count, Quiet

COUNT, PAUSE = 8, 0.02


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., runner.Outcome]:
    def go(specs: Sequence[Any] | runner.Planner, **options: Any) -> runner.Outcome:
        planner = specs if callable(specs) else lambda records: specs
        kwargs = {"journal": str(tmp_path / "journal")}
        options = {"experiment": "fake", "view": Quiet(), "threads": 1, "session_kwargs": kwargs} | options
        return runner.run(planner, tmp_path / "r", session="fake_session:Session", **options)

    return go


def statuses(results: Path) -> Counter[str]:
    return Counter(r.status for r in record.read_all(results))


def runs_started(tmp_path: Path) -> Counter[str]:
    return Counter(line[4] for line in fake_session.journal(tmp_path / "journal") if line[3] == "run")


def finished(results: Path) -> dict[str, Any]:
    """By spec: losses and predictions of the one finished record."""
    kept = [r for r in record.read_all(results) if r.is_finished]
    assert len({r.spec_id for r in kept}) == len(kept), "a finished run was repeated"
    return {r.spec_id: (r.curve.loss, r.predictions) for r in kept}


def start(results: Path, *arguments: str) -> subprocess.Popen[str]:
    """A runner in a process of its own, on a fake grid of COUNT runs."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = [sys.executable, fake_session.__file__, str(results), f"--count={COUNT}", f"--pause={PAUSE}", *arguments]
    return subprocess.Popen(script, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def wait_for_files(results: Path, count: int) -> None:
    wait_until(lambda: len(list(results.glob("runs/*.json"))) >= count)


def test_a_record_bears_the_names_of_its_experiment_and_reference(go: Callable, tmp_path: Path) -> None:
    go([fake_session.spec(0)], experiment="mine", reference="lora")
    (r,) = record.read_all(tmp_path / "r")
    assert (r.experiment, r.body.reference) == ("mine", "lora")


def test_progress_counts_runs_that_are_expected_and_not_planned_yet(go: Callable) -> None:
    out = io.StringIO()
    first, second = fake_session.spec(0), fake_session.spec(1)
    go(lambda records: [first, second] if records else [first], view=progress.view(False, out), expected=lambda _: 2)
    lines = out.getvalue().splitlines()
    assert lines[0] == "[0/2] 2 to run"
    assert lines[-1].startswith("[2/2] finished")


def test_the_total_grows_when_a_record_brings_further_runs(go: Callable) -> None:
    out = io.StringIO()
    first, second, final = (fake_session.spec(n) for n in range(3))

    def known(records: list[record.Record]) -> list[RunSpec]:
        return [[first], [first, second], [first, second, final]][min(len(records), 2)]

    go(known, view=progress.view(False, out), expected=lambda records: 3 if records else 2)
    lines = out.getvalue().splitlines()
    assert [line for line in lines if "to run" in line] == ["[0/2] 2 to run", "[1/3] 2 to run"]
    assert lines[-1].startswith("[3/3] finished")


def test_a_grid_that_finishes_exits_with_0_and_is_not_run_again(go: Callable, tmp_path: Path) -> None:
    specs = [fake_session.spec(n) for n in range(4)]
    first = go(specs, jobs=2)
    again = go(specs, jobs=2)
    assert (first.code, again.code) == (0, 0)
    assert again.counts == {"finished": 4}
    assert runs_started(tmp_path) == {s.id: 1 for s in specs}


def test_the_plan_is_called_again_with_the_new_records(go: Callable) -> None:
    seen = []

    def plan(records: list[record.Record]) -> list[RunSpec]:
        seen.append(len(records))
        return [fake_session.spec(n) for n in range(min(len(records) + 2, 4))]

    assert go(plan).counts == {"finished": 4}
    assert seen == [0, 2, 4]


def test_a_plan_may_leave_out_what_is_done(go: Callable) -> None:
    def plan(records: list[record.Record]) -> list[RunSpec]:
        done = {r.spec_id for r in records}
        return [s for s in (fake_session.spec(0), fake_session.spec(1)) if s.id not in done]

    assert go(plan).counts == {"finished": 2}


def test_what_failed_before_still_counts_when_the_plan_leaves_it_out(go: Callable) -> None:
    specs = [fake_session.spec(0, do="raise"), fake_session.spec(1)]
    go(specs)
    out = io.StringIO()
    again = go([], grid=specs, view=progress.view(False, out))
    assert again.code == 1
    assert again.counts == {"error": 1, "finished": 1}
    assert "lora-0 on synthetic/words, seed 0 (error)" in out.getvalue()


def test_failures_do_not_stop_the_grid_and_exit_with_1(go: Callable, tmp_path: Path) -> None:
    out = io.StringIO()
    specs = [fake_session.spec(0, do="diverge"), fake_session.spec(1, do="raise"), fake_session.spec(2)]
    outcome = go(specs, view=progress.view(False, out))
    assert outcome.code == 1
    assert outcome.counts == {"diverged": 1, "error": 1, "finished": 1}
    assert outcome.failed[0] == "lora-0 on synthetic/words, seed 0 (diverged)"
    assert "lora-1 on synthetic/words, seed 1 (error)" in out.getvalue()
    assert "--retry-failed" in out.getvalue()


def test_failed_runs_are_repeated_only_when_asked(go: Callable, tmp_path: Path) -> None:
    specs = [fake_session.spec(0, do="diverge"), fake_session.spec(1)]
    assert [go(specs).code, go(specs).code] == [1, 1]
    assert runs_started(tmp_path) == {s.id: 1 for s in specs}
    go(specs, retry_failed=True)
    assert runs_started(tmp_path) == {specs[0].id: 2, specs[1].id: 1}


def test_a_run_that_kills_its_worker_is_tried_once_an_invocation(go: Callable, tmp_path: Path) -> None:
    specs = [fake_session.spec(0, do="kill once"), *(fake_session.spec(n) for n in range(1, 5))]
    first = go(specs, jobs=2)
    assert first.code == 1
    assert first.counts == {"killed": 1, "finished": 4}
    assert runs_started(tmp_path)[specs[0].id] == 1
    again = go(specs, jobs=2)
    assert again.code == 0
    assert statuses(tmp_path / "r") == {"killed": 1, "finished": 5}


@pytest.mark.slow
def test_killing_a_worker_from_outside_costs_one_run(tmp_path: Path) -> None:
    parent = start(tmp_path / "r", "--pause=0.2")
    wait_for_files(tmp_path / "r", 2)
    journal = tmp_path / "journal"
    victim = int(next(line for line in reversed(fake_session.journal(journal)) if line[3] == "run")[0])
    os.kill(victim, signal.SIGKILL)
    _, err = parent.communicate(timeout=60)
    counts = statuses(tmp_path / "r")
    assert counts["finished"] + counts["killed"] == COUNT
    assert counts["killed"] <= 1
    assert "another takes its place" in err
    assert start(tmp_path / "r", "--pause=0.2").wait(60) == 0
    assert len(finished(tmp_path / "r")) == COUNT


@pytest.mark.slow
def test_a_killed_parent_loses_and_repeats_no_finished_run(tmp_path: Path) -> None:
    parent = start(tmp_path / "r")
    wait_for_files(tmp_path / "r", 3)
    parent.kill()
    resumed = start(tmp_path / "r")  # at once, while the orphans may still be writing
    parent.communicate()
    out, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, out + err
    kept = finished(tmp_path / "r")
    assert set(kept) == {s.id for s in fake_session.grid(COUNT, PAUSE)}
    assert sum(runs_started(tmp_path).values()) <= COUNT + 2  # only what was under way was begun again


@pytest.mark.slow
def test_three_interruptions_change_no_result(tmp_path: Path) -> None:
    results, slowly = tmp_path / "r", "--pause=0.1"
    interrupted = start(results, slowly)
    wait_for_files(results, 1)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(60) == runner.INTERRUPTED
    beheaded = start(results, slowly)
    wait_for_files(results, 4)
    for worker in filter(fake_session.is_worker, psutil.Process(beheaded.pid).children()):
        worker.kill()
        break
    time.sleep(0.1)
    beheaded.kill()
    beheaded.communicate()
    while start(results, slowly).wait(60) != 0:  # a killed run is repeated by running again
        assert sum(statuses(results).values()) < 3 * COUNT
    (tmp_path / "whole").mkdir()
    assert start(tmp_path / "whole" / "r", slowly).wait(60) == 0
    assert finished(results) == finished(tmp_path / "whole" / "r")
    assert len(finished(results)) == COUNT


def test_ctrl_c_abandons_between_steps_and_says_how_to_resume(tmp_path: Path) -> None:
    parent = start(tmp_path / "r", "--pause=0.5")
    wait_until(lambda: runs_started(tmp_path))
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 130, err
    assert "Run the same command again to resume" in err
    assert set(statuses(tmp_path / "r")) == {"abandoned"}


def test_a_second_ctrl_c_kills_a_run_that_does_not_stop(tmp_path: Path) -> None:
    parent = start(tmp_path / "r", "--hyper", '{"do": "hang"}')
    wait_until((tmp_path / "hangs").exists)
    children = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGINT)
    assert parent.stderr is not None
    assert any("Press Ctrl-C again" in line for line in iter(parent.stderr.readline, "")), "it has ended"
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=60)
    assert parent.returncode == 130
    [killed] = record.read_all(tmp_path / "r")
    assert (killed.status, killed.body.reason) == ("killed", "interrupted")  # not because it took too long
    assert not any(child.is_running() for child in children)


def test_a_second_runner_on_the_same_directory_is_refused_with_the_pid(tmp_path: Path) -> None:
    parent = start(tmp_path / "r", "--hyper", '{"do": "hang"}')
    wait_until(lambda: runs_started(tmp_path))
    try:
        begun = time.monotonic()
        with pytest.raises(UserError, match=rf"process {parent.pid} on .*choose another --results"):
            lock.hold(tmp_path / "r", patience_seconds=1000).__enter__()
        assert time.monotonic() - begun < 100  # a living runner is not waited for
    finally:
        parent.kill()
        parent.communicate()


def test_the_lock_of_a_dead_runner_is_taken_over(go: Callable, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / lock.NAME).write_text(json.dumps({"pid": dead.pid, "host": os.uname().nodename}))
    assert go([fake_session.spec(0)]).code == 0
    assert not (tmp_path / "r" / lock.NAME).exists()


def test_an_ended_runner_whose_exit_code_nobody_asks_for_is_dead_while_its_workers_end(tmp_path: Path) -> None:
    path = tmp_path / lock.NAME
    ended = subprocess.Popen(["true"])
    family.wait_until_ended(ended.pid)
    path.write_text(json.dumps({"pid": ended.pid, "host": os.uname().nodename}))
    with path.open() as worker:
        fcntl.flock(worker, fcntl.LOCK_EX)
        refused = pytest.raises(UserError, match=rf"the workers of a run that has ended \(process {ended.pid}\)")
        with refused, lock.hold(tmp_path, patience_seconds=0.2):
            pass
    with lock.hold(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    ended.wait()


def test_a_lock_on_a_file_that_lost_its_name_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock, calls = tmp_path / lock.NAME, fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if not calls:  # between opening and locking, the last holder removed the file and another runner made it anew
            path.unlink()
            path.touch()
        calls.append(fd)
        flock(fd, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with lock.hold(tmp_path) as fd:
        assert os.path.samestat(os.fstat(fd), os.stat(path))
    assert len(calls) == 2


def test_workers_that_outlive_a_dead_runner_are_waited_for_and_then_named(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    path = tmp_path / lock.NAME
    path.write_text(json.dumps({"pid": dead.pid, "host": os.uname().nodename}))
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refusal = pytest.raises(UserError, match="workers of a run that has ended")
        with refusal, lock.hold(tmp_path, patience_seconds=0.2):
            pass


def test_what_killed_writers_left_is_swept(go: Callable, tmp_path: Path) -> None:
    machine = scratch.beside(tmp_path).name[1:9]
    left = tmp_path / "r" / "runs" / f".{machine}-1-0-abc.tmp"  # no process of this number has this start
    left.parent.mkdir(parents=True)
    left.write_text("{")
    go([fake_session.spec(0)])
    assert not left.exists()


def test_profiles_come_last_alone_and_with_all_cores(go: Callable, tmp_path: Path) -> None:
    runs = [fake_session.spec(n) for n in range(3)]
    outcome = go([fake_session.profile(*runs), *runs], jobs=2, threads=1, profile_threads=7)
    assert outcome.counts == {"finished": 4}
    lines = fake_session.journal(tmp_path / "journal")
    [profile] = [line for line in lines if line[3] == "profile"]
    assert lines[-1] == profile
    assert profile[1:3] == ["7", "False"]
    assert profile[5] == "alone"
    assert all(line[1:3] == ["1", "True"] for line in lines if line[3] == "run")


def test_again_attempts_what_is_finished_once_more_and_the_first_still_counts(go: Callable, tmp_path: Path) -> None:
    passed = fake_session.profile(fake_session.spec(0))
    assert go([passed]).code == go([passed], again=True).code == 0
    records = record.read_all(tmp_path / "r")
    assert [r.attempt for r in sorted(records, key=lambda r: r.order)] == [1, 2]
    assert record.latest(records)[passed.id].attempt == 1
    assert go([passed]).code == 0
    assert len(record.read_all(tmp_path / "r")) == 2, "without it, what is finished is not repeated"


def test_again_tells_how_the_new_attempt_ended_though_an_earlier_one_finished(go: Callable, tmp_path: Path) -> None:
    good, bad = fake_session.spec(0), fake_session.spec(1, do="raise")
    go([good])
    (earlier,) = record.read_all(tmp_path / "r")
    ids = {"spec": as_dict(bad), "spec_id": bad.id, "slug": bad.slug, "hyper": {}}
    record.write(tmp_path / "r", {**earlier.raw(), **ids})
    assert go([bad]).code == 0, "it has a finished record"
    outcome = go([bad], again=True)
    assert (outcome.code, outcome.counts) == (1, {"error": 1})


@pytest.mark.slow
def test_each_profile_pass_has_a_process_that_ends_with_it(go: Callable, tmp_path: Path) -> None:
    run = fake_session.spec(0)
    passes = [replace(fake_session.profile(run), process=n) for n in range(3)]
    outcome = go([run, *passes], threads=3, profile_threads=3)
    assert (outcome.code, outcome.counts) == (0, {"finished": 4})
    by = [line[0] for line in fake_session.journal(tmp_path / "journal") if line[3] == "profile"]
    assert len(set(by)) == len(by) == 3


def test_a_pipe_gets_one_line_for_each_start_and_end(go: Callable) -> None:
    out = io.StringIO()
    go([fake_session.spec(0), fake_session.spec(1, do="raise")], view=progress.view(False, out))
    lines = out.getvalue().splitlines()
    assert lines[0] == "[0/2] 2 to run"
    assert lines[1] == "[0/2] started lora-0 on synthetic/words, seed 0 (worker 1)"
    assert lines[2].startswith("[1/2] finished lora-0 on synthetic/words, seed 0: accuracy 0.500, ")
    assert lines[4].startswith("[2/2] error lora-1 on synthetic/words, seed 1: ZeroDivisionError: a bug in a method, ")


def test_quiet_tells_only_what_went_wrong(go: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    go([fake_session.spec(0)], view=progress.view(True))
    told = capsys.readouterr()
    assert told.out + told.err == ""
    go([fake_session.spec(1, do="diverge")], view=progress.view(True))
    told = capsys.readouterr()
    assert told.out == ""
    assert "diverged: lora-1 on synthetic/words" in told.err


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.slow
def test_a_terminal_gets_a_growing_table_and_the_current_loss(go: Callable) -> None:
    out = FakeTerminal()
    go([fake_session.spec(0, pause=0.15), fake_session.spec(1, do="raise")], view=progress.view(False, out))
    text = out.getvalue()
    assert "loss 0." in text
    assert re.search(r"train \d/5", text)
    assert "accuracy 0.500" in text
    assert "ZeroDivisionError" in text


def test_the_time_left_counts_only_this_invocation() -> None:
    count = Count(began=time.monotonic() - 10)
    count.plan(total=10, done=6)
    assert count.seconds_left is None
    count.step(1, {"step": 1, "steps": 2})
    count.end(2)
    assert count.seconds_left == pytest.approx(10 / 1.5 * 2.5, rel=0.01)


def left_in(folder: Path) -> list[Path]:
    """Files and folders of each kind, as a process that is gone left them."""
    owner = re.sub(r"-\d+-\d+-$", "-1-0-", scratch._owner())  # no process of this number has this start
    folder.mkdir(parents=True, exist_ok=True)
    left = [folder / name for name in (f".{owner}ab.tmp", f".m.part-{owner}ab", f"peftbench-verify-{owner}ab")]
    left[0].write_text("half")
    for path in left[1:]:
        (path / "m").mkdir(parents=True)
    return left


def test_the_next_run_sweeps_every_place_where_something_is_written(
    go: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "system"))
    places = [tmp_path / "system", tmp_path / "cache"]
    places += [tmp_path / "cache" / name for name in ("answers", "tokens", "snapshots", "embedded", "wheels", "models")]
    places += [tmp_path / "r", tmp_path / "r" / "runs", tmp_path / "r" / "adapters"]
    left = [path for place in places for path in left_in(place)]
    (tmp_path / "r" / lock.NAME).write_text('{"pid": 1, "host": "gone"}')
    go([fake_session.spec(0)])
    assert not [path for path in left if path.exists()]
    assert not (tmp_path / "r" / lock.NAME).exists()


def test_an_interruption_stops_a_python_program_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = peftbench.plan("ci_smoke", only=["method=lora"])
    monkeypatch.setattr(runner, "run", lambda *_, **__: runner.Outcome(runner.INTERRUPTED, {}, ()))
    with pytest.raises(KeyboardInterrupt, match="the same call resumes") as stopped:
        peftbench.run(plan, tmp_path / "r")
    assert isinstance(stopped.value, peftbench.Interrupted)
    assert list(stopped.value.records) == []
