"""The executor `ray` on clusters of several nodes on this machine: records, deaths, interruptions, versions, files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fake_session
import psutil
import pytest
import run_specs
from commands import Call
from ray_nodes import HELPERS, Nodes, nodes
from test_executors import InterruptOn, records

from peftbench.errors import UserError
from peftbench.records import record
from peftbench.records.retries import TimeLimits
from peftbench.records.spec import Spec
from peftbench.run import runner
from peftbench.run.executors import ray_cluster
from peftbench.run.session import Session
from peftbench.run.view import Quiet

pytestmark = pytest.mark.slow

Go = Callable[..., runner.Outcome]


class Watch(Quiet):
    """Does something when so many runs have made a step, and keeps what is said."""

    def __init__(self, do: Callable[[], object] = lambda: None, runs: int = 1) -> None:
        self.do, self.runs, self.notes, self.stepping = do, runs, list[str](), set[int]()
        self.started_at: Counter[str] = Counter()

    def started(self, worker: int, spec: Spec) -> None:
        self.started_at[spec.id] += 1

    def stepped(self, worker: int, facts: Mapping[str, Any]) -> None:
        self.stepping.add(worker)
        if self.runs and len(self.stepping) >= self.runs:
            self.runs = 0
            self.do()

    def ended(self, worker: int, spec: Spec, facts: Mapping[str, Any]) -> None:
        return

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Two nodes of one core each."""
    with nodes() as made:
        made.add(resources={"quiet_room": 1})
        yield made


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """Run specs of a fake session, on a cluster or on this machine, in a results directory of the executor's name."""

    def go(specs: Sequence[Spec], on: Nodes | None = None, **options: Any) -> runner.Outcome:
        own = {} if on is None else {"address": on.address, "memory": "0.5", **options.pop("ray", {})}
        kwargs = {"journal": str(tmp_path / "journal"), **options.pop("session", {})}
        options = {"view": Quiet(), "threads": 1, "profile_threads": 1, **options}
        name = "local" if on is None else "ray"
        return runner.run(
            lambda _: specs,
            tmp_path / name,
            experiment="fake",
            session="fake_session:Session",
            session_kwargs=kwargs,
            executor=name,
            options=own,
            **options,
        )

    return go


def worker_of(journal: Path, spec: Spec) -> int:
    """The process that began the spec last."""
    return next(int(line[0]) for line in reversed(fake_session.journal(journal)) if line[4:5] == [spec.id])


def statuses(folder: Path) -> dict[str, Counter[str]]:
    """How often each spec has a record with each status."""
    found: dict[str, Counter[str]] = {}
    for r in record.read_all(folder):
        found.setdefault(r.spec_id, Counter())[r.status] += 1
    return found


def actor_of(pid: int) -> int:
    """The process that ray knows, above a worker process."""
    return psutil.Process(pid).ppid()


def test_a_grid_on_two_nodes_has_the_records_of_this_machine(go: Go, cluster: Nodes, tmp_path: Path) -> None:
    runs = [fake_session.spec(0), fake_session.spec(1, do="diverge"), fake_session.spec(2, do="raise")]
    specs = [*runs, *fake_session.grid(9, 0.05)[3:], fake_session.profile(*runs)]
    view = Watch()
    outcomes = [go(specs, jobs=2), go(specs, cluster, jobs=2, view=view)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].counts == {"finished": 8, "diverged": 1, "error": 1}
    assert records(tmp_path / "local") == records(tmp_path / "ray")
    assert view.notes[:-1] == [], "nothing of ray's own is said; the last note is the runner's advice"
    lines = [line for line in fake_session.journal(tmp_path / "journal") if line[3] == "opened"][-3:]
    assert len({actor_of_line for actor_of_line, *_ in lines}) == 3, "two workers trained, a third one took the pass"
    assert [line[1:3] for line in lines] == [["1", "True"], ["1", "True"], ["1", "False"]]
    assert "alone" in fake_session.journal(tmp_path / "journal")[-1]
    assert not list((tmp_path / "ray").glob("**/.*.tmp"))


def test_without_an_address_this_machine_is_the_cluster(go: Go, tmp_path: Path) -> None:
    outcome = runner.run(
        lambda _: [fake_session.spec(n) for n in range(2)],
        tmp_path / "r",
        experiment="fake",
        session="fake_session:Session",
        session_kwargs={"journal": str(tmp_path / "journal")},
        executor="ray",
        options={"memory": "0.1", "env.PYTHONPATH": HELPERS},
        view=Quiet(),
    )
    assert outcome.counts == {"finished": 2}


def test_a_node_that_dies_costs_no_run_and_doubles_none(go: Go, cluster: Nodes, tmp_path: Path) -> None:
    third = cluster.add(cpus=2)
    specs = fake_session.grid(12, 0.25)
    view = Watch(lambda: cluster.kill(third), runs=4)
    outcome = go(specs, cluster, view=view)
    assert outcome == runner.Outcome(0, {"finished": 12}, ())
    found = statuses(tmp_path / "ray")
    assert all(found[spec.id]["finished"] == 1 for spec in specs)
    lost = {key: count["killed"] for key, count in found.items() if count["killed"]}
    assert lost, "a run was under way on the node"
    assert all(view.started_at[key] == count + 1 for key, count in lost.items())
    assert any("the node is gone" in note and "is placed again" in note for note in view.notes), view.notes


def test_a_worker_that_the_system_kills_costs_an_attempt_and_its_run_goes_on(
    go: Go, cluster: Nodes, tmp_path: Path
) -> None:
    specs = fake_session.grid(3, 0.5)  # seconds that a busy machine may take to tell of a step

    def kill() -> None:  # not the process that has opened and has no run yet
        began = [int(line[0]) for line in fake_session.journal(tmp_path / "journal") if line[3] == "run"]
        os.kill(actor_of(began[-1]), signal.SIGKILL)

    view = Watch(kill)
    assert go(specs, cluster, view=view).counts == {"finished": 3}
    totals = sum(statuses(tmp_path / "ray").values(), Counter())
    assert totals == {"finished": 3, "killed": 1}
    assert any("its process on the node is gone" in note for note in view.notes), view.notes


def test_what_a_run_does_to_its_own_process_is_recorded_as_on_this_machine(
    go: Go, cluster: Nodes, tmp_path: Path
) -> None:
    specs = [fake_session.spec(0, do="kill"), fake_session.spec(1, do="hang"), fake_session.spec(2)]
    outcome = go(specs, cluster, limits=TimeLimits(step=1.0))
    assert outcome.counts == {"killed": 1, "timeout": 1, "finished": 1}
    reasons = {r.spec_id: r.body.reason for r in record.read_all(tmp_path / "ray")}
    assert "SIGKILL" in reasons[specs[0].id]
    assert reasons[specs[1].id] == "no step ended within the 1 s that a step may take"


def test_a_run_whose_node_dies_goes_on_from_its_checkpoint_on_another_node(tmp_path: Path) -> None:
    """No file system is shared: the command has brought the checkpoint home before the node died."""
    asked = run_specs.spec("adalora", steps=600)
    saved = {"folder": str(tmp_path / "ray" / "checkpoints"), "every": 20}
    kwargs = {"device": "cpu", "checkpoints": saved}

    class Kills(Quiet):
        """Ends the node of the run once a checkpoint of it is here, and brings another node."""

        done = False

        def stepped(self, worker: int, facts: Mapping[str, Any]) -> None:
            if not self.done and list((tmp_path / "ray" / "checkpoints").glob("[0-9a-f]*.pt")):
                self.done = True
                made.add(resources={"room": 1})
                made.kill(first)

    with nodes(cpus=0) as made:
        first = made.add()
        view = Kills()
        outcome = runner.run(
            lambda _: [asked],
            tmp_path / "ray",
            experiment="e",
            session_kwargs=kwargs,
            executor="ray",
            options={"address": made.address, "memory": "0.5"},
            threads=1,
            view=view,
        )
    assert (outcome.code, view.done) == (0, True)
    records = record.read_all(tmp_path / "ray")
    (rest,) = [r for r in records if r.is_finished]
    assert [r.status for r in records if not r.is_finished] == ["killed"]
    whole = Session("cpu", threads=1).execute(asked)
    assert rest.raw()["resumed"][0]["step"] >= 20
    assert rest.raw()["curve"] == whole["curve"]
    assert rest.raw()["predictions"] == whole["predictions"]


def test_a_runner_killed_at_once_leaves_no_half_record_and_the_same_command_resumes(
    cluster: Nodes, tmp_path: Path
) -> None:
    options = json.dumps({"address": cluster.address, "memory": "0.5"})
    command = [sys.executable, f"{HELPERS}/fake_session.py", str(tmp_path / "r"), "--count", "8", "--pause", "0.15"]
    command += ["--executor", "ray", "--options", options]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(record.paths(tmp_path / "r")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout.splitlines()[-1]) == {"code": 0, "counts": {"finished": 8}}, done.stderr
    found = statuses(tmp_path / "r")
    assert len(found) == 8
    assert all(count == {"finished": 1} for count in found.values())
    assert all(p.name.endswith(".json") for p in (tmp_path / "r" / "runs").iterdir())


def test_ctrl_c_abandons_what_runs_and_a_second_one_kills(go: Go, cluster: Nodes, tmp_path: Path) -> None:
    specs = [fake_session.spec(n, pause=0.2) for n in range(5)]
    assert go(specs, cluster, view=InterruptOn()).code == runner.INTERRUPTED
    assert set(sum(statuses(tmp_path / "ray").values(), Counter())) == {"abandoned"}
    hanging = [fake_session.spec(9, do="hang")]
    assert go(hanging, cluster, view=InterruptOn(twice=True)).code == runner.INTERRUPTED
    assert statuses(tmp_path / "ray")[hanging[0].id] == {"killed": 1}
    assert go(specs, cluster).counts == {"finished": 5}


def test_a_cluster_that_is_stopped_interrupts_and_fails_no_run(go: Go, tmp_path: Path) -> None:
    specs = fake_session.grid(6, 0.3)
    with nodes() as own:
        own.add()
        view = Watch(own.stop, runs=2)
        assert go(specs, own, view=view).code == runner.INTERRUPTED
    assert set(sum(statuses(tmp_path / "ray").values(), Counter())) <= {"finished", "interrupted"}
    assert any("interrupted" in note for note in view.notes), view.notes


def test_a_node_with_other_versions_is_refused_before_any_run(go: Go, tmp_path: Path) -> None:
    other = tmp_path / "other" / "transformers-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 0.1\n")
    with nodes() as own:
        path = os.pathsep.join([str(other.parent), os.environ["PYTHONPATH"]])
        own.add(env_vars={"PYTHONPATH": path})
        with pytest.raises(UserError, match=r"node .* transformers is 0\.1 there and .* `pip install transformers=="):
            go(fake_session.grid(4, 0.01), own)
    assert not record.paths(tmp_path / "ray")


def test_jobs_that_fit_nowhere_and_clusters_that_are_not_there_are_one_sentence(go: Go, cluster: Nodes) -> None:
    with pytest.raises(UserError, match=r"no node has room for a run, which needs 3 CPUs and 0.5 GB of memory"):
        go([fake_session.spec(0)], cluster, ray={"threads": "3", "wait": "0"})
    with pytest.raises(UserError, match="no node is called basement"):
        go([fake_session.profile(fake_session.spec(0))], cluster, ray={"profile_node": "basement"})
    with pytest.raises(UserError, match=r"--address 127.0.0.1:9: nothing answers there"):
        go([fake_session.spec(0)], cluster, ray={"address": "127.0.0.1:9"})
    with pytest.raises(UserError, match="no such data directory"):
        go([fake_session.spec(0)], cluster, session={"refuse": "user"})


def test_a_pass_runs_on_the_node_that_is_named(go: Go, cluster: Nodes, tmp_path: Path) -> None:
    specs = [fake_session.profile(fake_session.spec(0))]
    assert go(specs, cluster, ray={"profile_node": "quiet_room"}).counts == {"finished": 1}
    assert "alone" in fake_session.journal(tmp_path / "journal")[-1]


def test_predicted_peaks_decide_how_many_runs_a_node_has(go: Go, cluster: Nodes, tmp_path: Path) -> None:
    specs = fake_session.grid(2, 0.01)
    peaks = {specs[0].id: 10**6, specs[1].id: 10**12}
    options = {"address": cluster.address, "wait": "0"}
    with pytest.raises(UserError, match=r"no node has room for a run, which needs 1 CPU and 1001.0 GB"):
        go(specs, cluster, ray={**options, "memory": "1001"})
    assert ray_cluster.RayExecutor.needs_peaks(options)
    with pytest.raises(UserError, match=r"no node has room for a run, which needs 1 CPU and 1001.0 GB"):
        runner.run(
            lambda _: specs,
            tmp_path / "r",
            experiment="fake",
            session="fake_session:Session",
            session_kwargs={"journal": str(tmp_path / "journal")},
            executor="ray",
            options=options,
            peaks=peaks,
            view=Quiet(),
        )


TINY = """\
name: tiny
backbone: tiny-encoder
tasks:
  - {task: synthetic/classification, rows: 60}
  - {task: local, name: tickets, train: FOLDER/tickets.csv, text: body, label: queue}
budget: {trainable_params: 2000, tolerance: 0.2, steps: 3, seeds: 1, max_length: 16, batch_size: 4}
save_adapters: true
profile: false
methods: [full, lora]
"""


@pytest.mark.usefixtures("in_this_process")
def test_true_runs_have_the_same_losses_predictions_and_adapters(
    call: Call, cluster: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are where only the driver's working directory leads to, so that nodes must have them sent."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    texts = "".join(f"ticket {n} is {'late' if n % 2 else 'done'},{'ab'[n % 2]}\n" for n in range(80))
    Path("tickets.csv").write_text(f"body,queue\n{texts}")
    Path("tiny.yaml").write_text(TINY.replace("FOLDER", "/proc/self/cwd"))
    options = ["--executor", "ray", "--address", cluster.address, "--set", "ray.memory=0.5"]
    done = call("run", "tiny.yaml", "--results", "ray", *options)
    assert done.code == 0, done.err
    assert done.err == ""
    assert call("run", "tiny.yaml", "--results", "local", "-q").code == 0
    found = {name: record.latest(record.read_all(tmp_path / name)) for name in ("ray", "local")}
    assert found["ray"].keys() == found["local"].keys()
    trained = [key for key, r in found["local"].items() if r.kind == "run"]
    assert len(trained) == 4
    for key in trained:
        one, other = (found[name][key].raw() for name in ("ray", "local"))
        same = ("spec", "curve", "predictions", "metrics", "parameters", "data", "env")
        assert {k: one[k] for k in same} == {k: other[k] for k in same}
    files = {name: sorted((tmp_path / name / "adapters").glob("*.safetensors")) for name in ("ray", "local")}
    assert len(files["ray"]) == 8
    for one, other in zip(files["ray"], files["local"], strict=True):
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())
