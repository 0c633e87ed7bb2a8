"""The executor `slurm` on a cluster of one machine (fake_slurm.py): what the scheduler does to tasks costs no run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_session
import fake_slurm
import pytest
from interrupting import InterruptOnce

from peftbench.errors import UserError
from peftbench.records import record
from peftbench.records.spec import RunSpec
from peftbench.run import runner
from peftbench.run.executors import scheduler, slurm, slurm_task, task_array
from peftbench.run.executors.claims import Claim, Ledger
from peftbench.run.view import Quiet

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the fake cluster reads /proc")]
pytest.importorskip("submitit")

SLOW = 0.1  # seconds of a step


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_slurm.Cluster]:
    place = tmp_path / "cluster"
    programs, made = fake_slurm.install(place)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(fake_slurm.PLACE, str(place))
    monkeypatch.setattr(scheduler.Slurm, "check_seconds", 0.5)
    monkeypatch.setitem(slurm.LOOK_SECONDS, "slurm", 0.1)
    yield made
    made.close()


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., runner.Outcome]:
    def go(specs: Sequence[Any], **given: Any) -> runner.Outcome:
        kwargs = {"journal": str(tmp_path / "journal")} | given.pop("session_kwargs", {})
        given = {"view": Quiet(), "threads": 1, "profile_threads": 1, "options": {"time": "00:10:00"}} | given
        return runner.run(
            lambda _: specs, tmp_path / "r", experiment="fake", session="fake_session:Session", executor="slurm",
            session_kwargs=kwargs, **given,
        )  # fmt: skip

    return go


class On(Quiet):
    """Calls a function with the element of each slow run that starts, and keeps the notes."""

    def __init__(self, folder: Path, act: Callable[[str, RunSpec], None]) -> None:
        self.ledger, self.act, self.notes = Ledger(folder), act, list[str]()

    def started(self, worker: int, spec: Any) -> None:
        numbers = {key: state.number for key, state in self.ledger.states().items()}
        if spec.method.hyper["pause"] >= SLOW:
            self.act(self.ledger.facts_of(Claim(spec.id, numbers[spec.id]))["element"], spec)

    def note(self, text: str) -> None:
        self.notes.append(text)


def training(tmp_path: Path) -> Path:
    return task_array.folder_of(tmp_path / "r", exclusive=False)


def started(tmp_path: Path) -> Counter[str]:
    return Counter(line[4] for line in fake_session.journal(tmp_path / "journal") if line[3] == "run")


def statuses(tmp_path: Path) -> Counter[str]:
    return Counter(r.status for r in record.read_all(tmp_path / "r"))


def finished_once(tmp_path: Path) -> set[str]:
    """The specs with a finished record; none has two."""
    done = [r.spec_id for r in record.read_all(tmp_path / "r") if r.is_finished]
    assert len(set(done)) == len(done), "a run was finished twice"
    return set(done)


def grid(count: int, slow: Container[int] = (), pause: float = 0.8) -> list[RunSpec]:
    """Runs of which some take seconds. A task of four begins at every fourth run."""
    return [fake_session.spec(n, pause=pause if n in slow else 0.01) for n in range(count)]


def test_four_tasks_of_which_one_is_killed_and_one_reaches_its_time_limit(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path
) -> None:
    specs, hit = grid(16, slow=(0, 4, 8, 12)), dict[str, str]()

    def act(element: str, spec: RunSpec) -> None:
        if len(hit) < 2 and element not in hit:
            hit[element] = spec.id
            cluster.kill(element) if len(hit) == 1 else cluster.time_out(element)

    view = On(training(tmp_path), act)
    outcome = go(specs, jobs=4, view=view)
    assert (outcome.code, outcome.counts) == (0, {"finished": 16})
    assert finished_once(tmp_path) == {s.id for s in specs}
    assert statuses(tmp_path) == {"finished": 16, "killed": 1, "abandoned": 1}
    assert {r.spec_id: r.status for r in record.read_all(tmp_path / "r") if not r.is_finished} == dict(
        zip(hit.values(), ("killed", "abandoned"), strict=True)
    )
    assert started(tmp_path) == Counter({s.id: 1 for s in specs}) + Counter(hit.values())
    killed, timed_out = hit
    states = cluster.wait()
    assert states[killed] == "NODE_FAIL"
    assert states[timed_out] == "COMPLETED"
    assert cluster.elements()[timed_out]["restarts"] == 1
    notes = [n for n in view.notes if "its run" in n]
    assert notes == [f"the task {killed} ended (NODE_FAIL); its run starts again"]


def test_a_pre_empted_task_is_queued_by_the_scheduler_and_goes_on(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path
) -> None:
    specs, hit = grid(3, slow=(0,)), list[str]()

    def act(element: str, spec: RunSpec) -> None:
        if not hit:
            hit.append(element)
            cluster.preempt(element)

    assert go(specs, jobs=1, options={"array_parallelism": "1"}, view=On(training(tmp_path), act)).code == 0
    assert statuses(tmp_path) == {"finished": 3, "abandoned": 1}
    finished_once(tmp_path)
    assert cluster.wait() == {hit[0]: "COMPLETED"}
    assert cluster.elements()[hit[0]]["restarts"] == 1


@pytest.mark.parametrize("signalled", [pytest.param("time_out", marks=pytest.mark.full), "terminate"])
def test_signals_that_reach_all_processes_do_not_end_the_worker(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path, signalled: str
) -> None:
    hit: list[str] = []

    def act(element: str, spec: RunSpec) -> None:
        if not hit:
            hit.append(element)
            getattr(cluster, signalled)(element, to_all=True)

    assert go(grid(2, slow=(0,)), jobs=1, view=On(training(tmp_path), act)).code == 0
    assert statuses(tmp_path) == {"finished": 2, "abandoned": 1}


def test_a_task_that_may_not_queue_itself_again_is_replaced(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path
) -> None:
    (cluster.place / "no requeue").touch()
    hit: list[str] = []

    def act(element: str, spec: RunSpec) -> None:
        if not hit:
            hit.append(element)
            cluster.time_out(element)

    assert go(grid(3, slow=(0,)), options={"array_parallelism": "1"}, view=On(training(tmp_path), act)).code == 0
    assert statuses(tmp_path) == {"finished": 3, "abandoned": 1}
    assert len(cluster.states()) == 2


def test_a_run_that_does_not_fit_into_the_time_limit_is_given_up(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task_array.TaskArray._task

    def short(array: task_array.TaskArray, name: str, share: float) -> slurm_task.Task:
        task = made(array, name, share)
        task.limit_seconds = 1.0
        return task

    monkeypatch.setattr(task_array.TaskArray, "_task", short)

    def act(element: str, spec: RunSpec) -> None:
        if spec.id == specs[0].id:
            time.sleep(1.2)
            cluster.time_out(element)

    specs = grid(2, slow=(0,), pause=2.0)
    outcome = go(specs, options={"array_parallelism": "1"}, view=On(training(tmp_path), act))
    assert (outcome.code, outcome.counts) == (1, {"finished": 1, "abandoned": 1})
    assert started(tmp_path)[specs[0].id] == 1


def test_a_run_that_fails_takes_no_other_with_it(cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path) -> None:
    bad = ["kill", "raise", "segfault", "exit", "diverge", "user"]
    specs = [fake_session.spec(n, do=bad[n]) if n < len(bad) else fake_session.spec(n) for n in range(12)]
    outcome = go(specs, jobs=3)
    assert outcome.counts == {"finished": 6, "killed": 2, "error": 3, "diverged": 1}
    assert started(tmp_path) == {s.id: 1 for s in specs}
    assert len(record.read_all(tmp_path / "r")) == 12


@pytest.mark.parametrize("down", ["sacct is down", "squeue is down"])
def test_one_of_the_programs_that_say_who_lives_is_enough(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path, down: str
) -> None:
    (cluster.place / down).touch()
    hit: list[str] = []

    def act(element: str, spec: RunSpec) -> None:
        if not hit:
            hit.append(element)
            cluster.kill(element)

    assert go(grid(4, slow=(0,)), jobs=2, view=On(training(tmp_path), act)).code == 0
    assert statuses(tmp_path) == {"finished": 4, "killed": 1}
    finished_once(tmp_path)


def test_a_silent_task_that_the_scheduler_says_lives_keeps_its_run(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path
) -> None:
    """A task that is stopped gives no sign of life. Clocks alone do not take its run away."""
    hit: list[str] = []

    def wake(element: str) -> None:
        for pid in fake_slurm.processes(element):
            os.kill(pid, signal.SIGCONT)

    def act(element: str, spec: RunSpec) -> None:
        if not hit and spec.id == specs[0].id:
            hit.append(element)
            for pid in fake_slurm.processes(element):
                os.kill(pid, signal.SIGSTOP)
            threading.Timer(4, wake, [element]).start()  # eight looks at the scheduler, two signs of life

    specs = grid(4, slow=(0,), pause=0.1)
    assert go(specs, jobs=2, view=On(training(tmp_path), act)).code == 0
    assert statuses(tmp_path) == {"finished": 4}
    assert started(tmp_path) == {s.id: 1 for s in specs}


def test_the_profile_pass_is_one_task_alone_after_the_array(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path
) -> None:
    runs = grid(3)
    options = {"constraint": "a100", "profile_constraint": "h100", "cpus": "1"}
    assert go([*runs, fake_session.profile(*runs)], options=options, jobs=3).code == 0
    elements = cluster.elements()
    arrays, alone = [
        {k: e for k, e in elements.items() if ("exclusive" in e["given"]) is exclusive} for exclusive in (False, True)
    ]
    assert {e["given"]["constraint"] for e in arrays.values()} == {"a100"}
    (profile,) = alone.values()
    assert profile["given"]["constraint"] == "h100"
    (line,) = [x for x in fake_session.journal(tmp_path / "journal") if x[3] == "profile"]
    assert line[2] == "False", "the session is not told that others use the machine"
    assert {x[2] for x in fake_session.journal(tmp_path / "journal") if x[3] == "run"} == {"True"}


def test_an_array_that_sbatch_refuses_is_a_user_error(cluster: fake_slurm.Cluster, go: Callable) -> None:
    with pytest.raises(UserError, match=r"sbatch refuses the array: .*invalid partition specified: nowhere"):
        go(grid(2), options={"partition": "nowhere"})


@pytest.mark.parametrize("twice", [False, pytest.param(True, marks=pytest.mark.full)])
def test_ctrl_c_ends_the_tasks_and_the_same_command_resumes(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path, twice: bool
) -> None:
    specs = grid(6, slow=range(6), pause=0.5)
    assert go(specs, jobs=2, view=InterruptOnce(twice)).code == runner.INTERRUPTED
    assert set(statuses(tmp_path)) <= ({"killed", "abandoned"} if twice else {"abandoned"})
    assert not {fake_slurm.WAITING, fake_slurm.RUNNING} & set(cluster.wait(10).values())
    assert not training(tmp_path).exists()
    assert go(grid(6, slow=range(6), pause=0.5), jobs=3).counts == {"finished": 6}
    finished_once(tmp_path)


def driver(tmp_path: Path, count: int, pause: float) -> subprocess.Popen[str]:
    """A runner in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = [
        sys.executable, fake_session.__file__, str(tmp_path / "r"), f"--count={count}", f"--pause={pause}",
        "--executor=slurm", '--options={"array_parallelism": "2"}', "--jobs=2",
    ]  # fmt: skip
    return subprocess.Popen(script, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_records(tmp_path: Path, count: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while len(list((tmp_path / "r" / "runs").glob("*.json"))) < count:
        assert time.monotonic() < deadline, "there are too few records"
        time.sleep(0.02)


def test_the_array_outlives_its_driver_and_the_same_command_follows_it(
    cluster: fake_slurm.Cluster, tmp_path: Path
) -> None:
    first = driver(tmp_path, 12, 0.1)
    wait_for_records(tmp_path, 2)
    first.kill()
    first.communicate()
    wait_for_records(tmp_path, 5)  # nobody follows it
    second = driver(tmp_path, 12, 0.1)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == {"code": 0, "counts": {"finished": 12}}
    assert len(record.read_all(tmp_path / "r")) == 12
    assert set(started(tmp_path).values()) == {1}, "nothing ran twice"
    assert len(cluster.states()) == 2, "the second driver submitted nothing"


def test_what_died_without_a_driver_is_found_by_the_next_one(cluster: fake_slurm.Cluster, tmp_path: Path) -> None:
    first = driver(tmp_path, 6, 0.3)
    wait_for_records(tmp_path, 1)
    first.kill()
    first.communicate()
    for element in cluster.states():
        cluster.kill(element)
    cluster.wait()
    lost = 6 - len(list((tmp_path / "r" / "runs").glob("*.json")))
    assert lost > 0
    second = driver(tmp_path, 6, 0.3)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert len(finished_once(tmp_path)) == 6
    assert statuses(tmp_path)["killed"] in (1, 2), "those that ran"


def test_a_command_with_other_settings_does_not_mix_with_a_living_array(
    cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path
) -> None:
    first = driver(tmp_path, 8, 0.3)
    wait_for_records(tmp_path, 1)
    first.kill()
    first.communicate()
    with pytest.raises(UserError, match=r"still run here with other settings.*scancel 100"):
        go(fake_session.grid(8, 0.3), jobs=2, threads=2)
    with pytest.raises(UserError, match="the array 100 of --executor slurm still runs here"):
        runner.run(lambda _: fake_session.grid(8, 0.3), tmp_path / "r", experiment="fake")
    subprocess.run(["scancel", "100"], check=True)
    assert set(cluster.wait(20).values()) == {"CANCELLED by 0"}
    assert go(fake_session.grid(8, 0.3), jobs=2).code == 0
    finished_once(tmp_path)


def test_each_node_of_an_element_carries_out_runs(cluster: fake_slurm.Cluster, go: Callable, tmp_path: Path) -> None:
    specs = [*grid(6, slow=range(6), pause=0.15), fake_session.profile(fake_session.spec(0))]
    assert go(specs, options={"nodes": "2", "array_parallelism": "1"}).code == 0
    finished_once(tmp_path)
    lines = fake_session.journal(tmp_path / "journal")
    assert len({line[0] for line in lines if line[3] == "run"}) == 2, "two processes"
    assert [e["given"]["nodes"] for e in cluster.elements().values()] == ["2", "1"], "the profile pass takes one"
