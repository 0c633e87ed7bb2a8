"""The executor `slurm` on submitit's executors for one machine: the same records as `local`, and clear refusals."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_session
import pytest
from commands import Call
from interrupting import InterruptOnce

import peftbench
from peftbench.errors import UserError
from peftbench.records import record
from peftbench.run import executors, lock, runner
from peftbench.run.executors import slurm, slurm_options, task_array
from peftbench.run.view import Quiet

TIMES = ("started", "ended", "seconds", "env_id", "checksum")  # what differs between two attempts at one spec
LOCAL = {"cluster": "local"}


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., runner.Outcome]:
    """Run specs on a fake session with an executor, in the results directory `folder`."""

    def go(specs: Sequence[Any], executor: str = "slurm", folder: str = "r", **given: Any) -> runner.Outcome:
        kwargs = {"journal": str(tmp_path / "journal")} | given.pop("session_kwargs", {})
        given = {"view": Quiet(), "threads": 1, "profile_threads": 1} | given
        options = {"options": LOCAL} if executor == "slurm" else {}
        return runner.run(
            lambda _: specs, tmp_path / folder, experiment="fake", session="fake_session:Session", executor=executor,
            session_kwargs=kwargs, **{**options, **given},
        )  # fmt: skip

    return go


def bodies(folder: Path) -> dict[str, dict[str, Any]]:
    """By spec: all that its one record says, except for times."""
    found = {}
    for r in record.read_all(folder):
        assert r.spec_id not in found
        found[r.spec_id] = {k: v for k, v in r.raw().items() if k not in TIMES}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_a_grid_has_the_records_of_local(go: Callable, tmp_path: Path, cluster: str) -> None:
    runs = [fake_session.spec(0), fake_session.spec(1, do="diverge"), fake_session.spec(2, do="raise")]
    specs = [*runs, *fake_session.grid(6, 0.002)[3:], fake_session.profile(*runs)]
    jobs = 2 if cluster == "local" else 1  # debug has one task
    outcomes = [go(specs, "local", "local", jobs=jobs), go(specs, options={"cluster": cluster}, jobs=jobs)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].counts == {"finished": 5, "diverged": 1, "error": 1}
    assert bodies(tmp_path / "local") == bodies(tmp_path / "r")
    assert not (tmp_path / "r" / task_array.FOLDER).exists(), "nothing is left behind"


@pytest.mark.slow
def test_a_task_keeps_its_session_between_runs_and_a_crash_costs_one_run(go: Callable, tmp_path: Path) -> None:
    specs = [fake_session.spec(n, **({"do": "kill"} if n == 2 else {})) for n in range(6)]
    assert go(specs).counts == {"finished": 5, "killed": 1}
    lines = fake_session.journal(tmp_path / "journal")
    assert [line[3] for line in lines].count("opened") == 2, "once at first, and once after the crash"
    assert len([line for line in lines if line[3] == "run"]) == 6
    assert len(record.read_all(tmp_path / "r")) == 6


@pytest.mark.slow
def test_a_session_that_refuses_what_the_user_gave_is_a_user_error(go: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such data directory"):
        go([fake_session.spec(0)], session_kwargs={"refuse": "user"})
    assert go([fake_session.spec(0)]).code == 0, "what the tasks left does no harm"


@pytest.mark.slow
def test_tasks_that_never_begin_are_not_submitted_for_ever(go: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        executors.ExecutorError, match=r"3 tasks in a row ended before they took a job(?s:.*)bug in the"
    ):
        go([fake_session.spec(0)], session_kwargs={"refuse": "bug"})


@pytest.mark.slow
def test_a_file_system_without_locks_will_do(go: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"has no locks .* Choose a --results on a local disk"):
        go([fake_session.spec(0)], "local")
    assert go([fake_session.spec(n) for n in range(3)]).counts == {"finished": 3}
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["runs"]


def test_without_locks_the_second_runner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.hold(tmp_path, needs_locks=False) as fd:
        assert fd is None
        with (
            pytest.raises(UserError, match=r"another run .* is using this directory"),
            lock.hold(tmp_path, needs_locks=False),
        ):
            pass
    dead = {"pid": 2**22 - 1, "host": socket.gethostname(), "start": 1}
    (tmp_path / ".lock-1.json").write_text(json.dumps(dead))
    with lock.hold(tmp_path, needs_locks=False):
        assert not (tmp_path / ".lock-1.json").exists(), "its holder is gone"
    (tmp_path / ".lock-2.json").write_text(json.dumps(dead | {"host": "elsewhere"}))
    with (
        pytest.raises(UserError, match=r"process \d+ on elsewhere.*remove .*\.lock-2\.json"),
        lock.hold(tmp_path, needs_locks=False),
    ):
        pass


def test_a_lock_that_fails_for_another_reason_has_no_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="Input/output error"), lock.hold(tmp_path, needs_locks=False):
        pass


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"finds no sbatch here; run on a login node .*slurm\.cluster=local"):
        executors.check_options("slurm", {})
    executors.check_options("slurm", LOCAL)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(slurm_options, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs submitit: pip install 'peftbench\[slurm\]'"):
        executors.check_options("slurm", LOCAL)


def test_another_executor_does_not_start_beside_a_living_array(
    go: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "still_running", lambda folder: {"17_0", "17_1"} if folder == tmp_path / "r" else set())
    with pytest.raises(UserError, match=r"the array 17 of --executor slurm still runs here"):
        go([fake_session.spec(0)], "local")
    assert go([fake_session.spec(0)], "local", "other").code == 0


def test_a_budget_of_seconds_needs_whole_nodes() -> None:
    spec = fake_session.spec(0)
    timed = replace(spec, train=replace(spec.train, steps=0, seconds=5.0))
    job = executors.Job("run", timed, "e", "r")
    opened = slurm.SlurmExecutor(executors.Setup("s:S", {}, options=LOCAL))
    with pytest.raises(UserError, match=r"nodes that nothing else uses; add --set slurm\.additional\.exclusive=true"):
        opened.submit(job)
    whole = slurm.SlurmExecutor(executors.Setup("s:S", {}, options={**LOCAL, "additional.exclusive": "true"}))
    whole.submit(job)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", pytest.param("debug", marks=pytest.mark.full)])
def test_ctrl_c_abandons_what_runs_and_the_same_command_resumes(go: Callable, tmp_path: Path, cluster: str) -> None:
    specs = [fake_session.spec(n, pause=0.3) for n in range(2)]
    options = {"cluster": cluster}
    assert go(specs, options=options, view=InterruptOnce()).code == runner.INTERRUPTED
    (only,) = record.read_all(tmp_path / "r")
    assert only.status == "abandoned"
    assert not (tmp_path / "r" / task_array.FOLDER).exists()
    assert go(specs, options=options).counts == {"finished": 2}


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", pytest.param("debug", marks=pytest.mark.full)])
def test_a_second_ctrl_c_kills_what_runs(go: Callable, tmp_path: Path, cluster: str) -> None:
    specs = [fake_session.spec(0, do="hang"), fake_session.spec(1)]
    options = {"cluster": cluster}
    assert go(specs, options=options, view=InterruptOnce(twice=True)).code == runner.INTERRUPTED
    (only,) = record.read_all(tmp_path / "r")
    assert (only.status, only.body.reason) == ("killed", "interrupted")


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_losses_and_predictions_are_those_of_local_bit_for_bit(call: Call, tiny: str, tmp_path: Path) -> None:
    """With the true session, as a person runs it."""
    once = ("run", tiny, "--only", "method=lora", "--set", "profile=false", "-q")
    assert call(*once, "--results", "local").code == 0
    done = call(*once, "--results", "slurm", "--executor", "slurm", "--set", "slurm.cluster=local")
    assert done.code == 0, done.err
    local, other = (training(tmp_path / name) for name in ("local", "slurm"))
    assert len(local) == 2
    assert local == other
    kinds = [sorted(r.kind for r in peftbench.records(tmp_path / name)) for name in ("local", "slurm")]
    assert kinds[0] == kinds[1]


def training(folder: Path) -> Mapping[str, Any]:
    """By spec: losses, validation and predictions as the file has them."""
    raws = (r.raw() for r in record.read_all(folder) if r.kind == "run")
    return {raw["spec_id"]: (raw["curve"], raw["predictions"], raw["metrics"], raw["env"]["threads"]) for raw in raws}


def test_the_programs_of_a_cluster_are_not_needed_on_one_machine() -> None:
    if shutil.which("sbatch") is None:
        executors.check_options("slurm", LOCAL)


def test_the_command_line_refuses_with_exit_code_2_before_it_plans(
    call: Call, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for more, message in (
        ((), "finds no sbatch here"),
        (("--set", "slurm.time=4h"), "slurm.time: given '4h'; must be a time such as 04:00:00"),
        (("--set", "slurm.partitoin=gpu"), "did you mean 'partition'?"),
    ):
        refused = call("run", tiny, "--executor", "slurm", *more)
        assert (refused.code, refused.out) == (2, "")
        assert message in refused.err
        assert "Traceback" not in refused.err
