"""Executors by name: how one is found, and that the runner needs no more of one than its interface says."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fake_session
import pytest
import thread_executor
from commands import Call

import peftbench
from peftbench.errors import UserError
from peftbench.records import record
from peftbench.records.spec import Spec, title
from peftbench.run import executors, runner
from peftbench.run.executors.local import LocalExecutor
from peftbench.run.jobs import Ending, Job, Start, record_of
from peftbench.run.view import Quiet

LOADED = ("cpu", "blas")  # read from libraries, where the process has loaded them; a fake session loads none
TIMES = ("started", "ended", "seconds", "env_id", "checksum")  # what differs between two attempts at one spec


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that installs a package with these executors, by name, as pip would."""

    def install(**points: str) -> None:
        folder = tmp_path / "site" / "somebody-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
        lines = [f"{name} = {value}\n" for name, value in points.items()]
        (folder / "entry_points.txt").write_text(f"[{executors.GROUP}]\n{''.join(lines)}")
        monkeypatch.syspath_prepend(str(folder.parent))

    return install


@pytest.fixture
def go(tmp_path: Path, installed: Callable[..., None]) -> Callable[..., runner.Outcome]:
    """Run specs on a fake session, each executor in a results directory of its name."""
    installed(threads="thread_executor:ThreadExecutor")
    thread_executor.opened.clear()

    def go(specs: list[Spec], executor: str, **options: Any) -> runner.Outcome:
        kwargs = {"journal": str(tmp_path / "journal")}
        options = {"view": Quiet(), "threads": 1, "profile_threads": 1, "session_kwargs": kwargs} | options
        return runner.run(
            lambda _: specs,
            tmp_path / executor,
            experiment="fake",
            session="fake_session:Session",
            executor=executor,
            **options,
        )

    return go


class LosesJobs(LocalExecutor):
    """Says that it has nothing left to do, and has done nothing."""

    def submit(self, job: object) -> None:
        pass


class InterruptOn(Quiet):
    """Presses Ctrl-C when the first run of so many has made its first step, and again if `twice`."""

    def __init__(self, twice: bool = False) -> None:
        self.presses = 2 if twice else 1

    def stepped(self, worker: int, facts: Mapping[str, Any]) -> None:
        while self.presses:
            self.presses -= 1
            signal.raise_signal(signal.SIGINT)


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """By spec: all that its one record says, except for times."""
    found = {}
    for r in record.read_all(folder):
        assert r.spec_id not in found
        body = {k: v for k, v in r.raw().items() if k not in TIMES}
        body["env"] = {k: v for k, v in body["env"].items() if k not in LOADED}
        body["traceback"] = (body["traceback"] or "").splitlines()[-1:]  # above it: the executor's own functions
        found[r.spec_id] = body
    return found


def test_local_is_an_executor_and_an_unknown_name_lists_the_valid_ones(installed: Callable[..., None]) -> None:
    assert executors.find("local") is LocalExecutor
    installed(threads="thread_executor:ThreadExecutor")
    with pytest.raises(
        UserError, match=r"unknown executor 'lokal'; did you mean 'local'\? Valid: local, ray, slurm, threads"
    ):
        executors.find("lokal")


def test_two_executors_of_one_name_are_refused(installed: Callable[..., None]) -> None:
    installed(local="thread_executor:ThreadExecutor")
    with pytest.raises(UserError, match=r"two executors are named 'local'.*uninstall"):
        executors.find("local")


@pytest.mark.parametrize("value", ["no_such_module_at_all:Executor", "thread_executor:NoSuchClass"])
def test_an_executor_that_cannot_be_imported_is_named(installed: Callable[..., None], value: str) -> None:
    installed(broken=value)
    with pytest.raises(UserError, match=f"'broken' \\({value}\\) cannot be imported"):
        executors.find("broken")


@pytest.mark.slow
def test_the_same_grid_has_the_same_records_whichever_executor_ran_it(go: Callable, tmp_path: Path) -> None:
    runs = [fake_session.spec(0), fake_session.spec(1, do="diverge"), fake_session.spec(2, do="raise")]
    specs = [*runs, *fake_session.grid(4, 0.002)[3:], fake_session.profile(*runs)]
    outcomes = [go(specs, name, jobs=2) for name in ("local", "threads")]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].counts == {"finished": 3, "diverged": 1, "error": 1}
    assert records(tmp_path / "local") == records(tmp_path / "threads")


def test_jobs_that_measure_time_have_an_executor_to_themselves(go: Callable) -> None:
    run = fake_session.spec(0)
    assert go([fake_session.profile(run), run], "threads", jobs=2, profile_threads=3).code == 0
    training, timing = thread_executor.opened
    assert (training.exclusive, training.slots, training.session_kwargs(8)["shared"]) == (False, 2, True)
    assert (timing.exclusive, timing.slots, timing.session_kwargs(8)["shared"]) == (True, 1, False)
    assert timing.session_kwargs(8)["threads"] == 3


def test_any_executor_resumes_what_another_began(go: Callable, tmp_path: Path) -> None:
    specs = [fake_session.spec(n) for n in range(3)]
    go(specs[:2], "local")
    (tmp_path / "local").rename(tmp_path / "threads")
    assert go(specs, "threads").counts == {"finished": 3}
    assert len(record.read_all(tmp_path / "threads")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "threads"])
def test_ctrl_c_abandons_what_runs_and_starts_nothing_more(go: Callable, tmp_path: Path, name: str) -> None:
    specs = [fake_session.spec(n, pause=0.1) for n in range(3)]
    assert go(specs, name, view=InterruptOn()).code == runner.INTERRUPTED
    (only,) = record.read_all(tmp_path / name)
    assert only.status == "abandoned"
    assert go(specs, name).counts == {"finished": 3}


@pytest.mark.parametrize("name", ["local", "threads"])
def test_a_second_ctrl_c_kills_what_runs(go: Callable, tmp_path: Path, name: str) -> None:
    specs = [fake_session.spec(0, do="hang"), fake_session.spec(1)]
    assert go(specs, name, view=InterruptOn(twice=True)).code == runner.INTERRUPTED
    (only,) = record.read_all(tmp_path / name)
    assert (only.status, only.body.reason) == ("killed", "interrupted")


@pytest.mark.full
@pytest.mark.slow
def test_the_command_line_and_python_take_an_executor_by_name(
    call: Call, tiny: str, tmp_path: Path, installed: Callable[..., None]
) -> None:
    refused = call("run", tiny, "--executor", "slrum")
    assert (refused.code, refused.out) == (2, "")
    assert "unknown executor 'slrum'" in refused.err
    installed(threads="thread_executor:ThreadExecutor")
    thread_executor.opened.clear()
    done = call("run", tiny, "--executor", "threads", "--only", "method=full", "--results", "r", "-q")
    assert (done.code, len(thread_executor.opened)) == (0, 2), done.err
    plan = peftbench.plan(tiny, only=["method=full"])
    assert peftbench.run(plan, tmp_path / "r", executor="threads").outcome == runner.Outcome(0, {"finished": 3}, ())
    assert len(thread_executor.opened) == 2, "nothing was left to run"
    with pytest.raises(UserError, match="unknown executor 'slrum'"):
        peftbench.run(plan, tmp_path / "r", executor="slrum")


def test_a_job_that_an_executor_loses_is_told_and_is_no_success(
    tmp_path: Path, installed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    installed(loses=f"{__name__}:LosesJobs")
    spec = fake_session.spec(0)
    outcome = runner.run(
        lambda _: [spec],
        tmp_path / "r",
        experiment="fake",
        session="fake_session:Session",
        session_kwargs={"journal": str(tmp_path / "journal")},
        executor="loses",
        view=Quiet(),
    )
    assert outcome.code == 1
    assert outcome.failed == (f"{title(spec)} (not run)",)
    assert "the executor left no record of those not run" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["sys:maxsize", "json:decoder"])
def test_an_executor_that_is_no_function_is_refused(installed: Callable[..., None], value: str) -> None:
    installed(odd=value)
    with pytest.raises(UserError, match="it must be a function of a Setup"):
        executors.find("odd")


def test_seconds_are_never_negative_though_the_clock_is_set_back() -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    started = Start(tomorrow, time.monotonic() - 2)  # the clock has been set back by a day since
    spec = fake_session.spec(0)
    body = record_of(Job("run", spec, "e", "r"), {}, started, Ending("killed"))
    assert 2 <= body["seconds"]["total"] < 60
    assert body["ended"] > body["started"]
