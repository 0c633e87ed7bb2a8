"""A cluster of one machine: sbatch, srun, squeue, sacct, scancel and scontrol, which run array tasks as processes.

`install` puts them on PATH. Run as a script, this file is each of them, and a process beside each element that plays
its node. Only the standard library is used, so that each call takes milliseconds.

A test plays the scheduler: `kill` is a node that fails, `preempt` and `time_out` send the signals that SLURM sends. By
default a signal reaches the process that srun has started alone, as with proctrack/cgroup; with `to_all` it reaches
every process of the element, as with proctrack/linuxproc.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
WAITING, RUNNING = "PENDING", "RUNNING"
POLL_SECONDS = 0.02
KILL_WAIT = 5.0  # seconds from SIGTERM to SIGKILL; 30 on clusters
PLACE = "FAKE_SLURM"  # the folder of the cluster's state
ELEMENT = "FAKE_SLURM_ELEMENT"  # names the element of a process


class Cluster:
    """The state of the cluster, in a folder: a file for each element, and a file for each order to its node."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for name in ("jobs", "elements", "orders"):
            (place / name).mkdir(parents=True, exist_ok=True)

    def elements(self) -> dict[str, dict]:
        found = {}
        for path in sorted((self.place / "elements").glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                found[path.stem] = json.loads(path.read_text())
        return found

    def states(self) -> dict[str, str]:
        return {key: facts["state"] for key, facts in self.elements().items()}

    def note(self, element: str, **facts: object) -> None:
        path = self.place / "elements" / f"{element}.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        new = path.with_name(f".{element}.{os.getpid()}")
        new.write_text(json.dumps(before | facts))
        os.replace(new, path)

    def order(self, element: str, what: str) -> None:
        new = self.place / "orders" / f".{element} {time.time_ns()}"
        new.write_text(what)
        os.replace(new, self.place / "orders" / f"{element} {time.time_ns()}")

    def orders(self, element: str) -> list[str]:
        texts = []
        for path in sorted((self.place / "orders").glob(f"{element} *")):
            texts.append(path.read_text())
            path.unlink()
        return texts

    # What a test does to the elements of the cluster.

    def kill(self, element: str) -> None:
        """The node of the element fails."""
        self.order(element, "kill")

    def preempt(self, element: str) -> None:
        """The node is taken back, and the element is queued again by the scheduler."""
        self.order(element, "preempt")

    def time_out(self, element: str, to_all: bool = False) -> None:
        """The time limit is near: SIGUSR2 now."""
        self.order(element, "warn all" if to_all else "warn")

    def terminate(self, element: str, to_all: bool = False) -> None:
        """SIGTERM, as a pre-emption without requeue and scancel send."""
        self.order(element, "term all" if to_all else "term")

    def wait(self, seconds: float = 60) -> dict[str, str]:
        """Wait until no element is left in the queue; returns their states."""
        deadline = time.monotonic() + seconds
        while any(state in (WAITING, RUNNING) for state in self.states().values()):
            assert time.monotonic() < deadline, self.states()
            time.sleep(0.05)
        return self.states()

    def close(self) -> None:
        for element, state in self.states().items():
            if state in (WAITING, RUNNING):
                self.order(element, "kill")
        with contextlib.suppress(AssertionError):
            self.wait(20)


def install(place: Path) -> tuple[Path, Cluster]:
    """Make the programs; returns the folder for PATH, and the cluster. PLACE must be in the environment."""
    programs = place / "bin"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -E {shlex.quote(__file__)} {name} "$@"\n')
        script.chmod(0o755)
    return programs, Cluster(place)


def sbatch(cluster: Cluster, path: str) -> int:
    text = Path(path).read_text()
    given = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
    given = {key: "".join(shlex.split(value)) for key, value in given.items()}
    if given.get("partition") == "nowhere":
        print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
        return 1
    number = 100
    while True:
        with contextlib.suppress(FileExistsError):
            (cluster.place / "jobs" / str(number)).mkdir()
            break
        number += 100
    script = cluster.place / "jobs" / str(number) / "script"
    script.write_text(text)
    first, _, last = given.get("array", "").partition("%")[0].partition("-")
    names = [f"{number}_{n}" for n in range(int(first), int(last) + 1)] if first else [str(number)]
    for name in names:
        cluster.note(name, state=WAITING, name=given["job-name"], restarts=0, given=given)
    for name in names:
        subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, "node", name, str(script)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    print(f"Submitted batch job {number}")
    return 0


class Node:
    """Runs one element, and carries out the orders for it."""

    def __init__(self, cluster: Cluster, element: str, script: str) -> None:
        self.cluster, self.element, self.script = cluster, element, script
        self.given = cluster.elements()[element]["given"]
        self.again = False

    def work(self) -> None:
        restarts = 0
        while True:
            state = self._live(restarts)
            if not self.again:
                self.cluster.note(self.element, state=state)
                return
            self.again, restarts = False, restarts + 1
            self.cluster.note(self.element, state=WAITING, restarts=restarts)

    def _live(self, restarts: int) -> str:
        while self._waits():
            if {"cancel", "kill", "kill all"} & set(self.cluster.orders(self.element)):
                return "CANCELLED"
            time.sleep(POLL_SECONDS)
        self.cluster.note(self.element, state=RUNNING)
        batch = subprocess.Popen(["bash", self.script], env=self._env(restarts), start_new_session=True)
        state, kill_at = None, None
        while batch.poll() is None:
            for order in self.cluster.orders(self.element):
                what, _, whom = order.partition(" ")
                if what in ("kill", "requeue"):
                    self.again |= what == "requeue"
                    state, kill_at = state or "NODE_FAIL", 0.0
                elif what == "warn":
                    self._signal(signal.SIGUSR2, batch.pid, bool(whom))
                elif what in ("term", "cancel", "preempt"):
                    self.again |= what == "preempt"
                    state = {"cancel": "CANCELLED by 0", "preempt": "PREEMPTED"}.get(what)
                    kill_at = time.monotonic() + KILL_WAIT
                    self._signal(signal.SIGTERM, batch.pid, bool(whom))
            if kill_at is not None and time.monotonic() > kill_at:
                self._end_all()
            time.sleep(POLL_SECONDS)
        self._end_all()  # what an element leaves ends with it
        self.again |= "requeue" in self.cluster.orders(self.element)
        return state or ("COMPLETED" if batch.returncode == 0 else "FAILED")

    def _waits(self) -> bool:
        """Whether jobs that it depends on have not ended."""
        before = [d for d in self.given.get("dependency", "").replace("afterany:", "").split(":") if d]
        states = self.cluster.states()
        return any(s in (WAITING, RUNNING) for k, s in states.items() if k.partition("_")[0] in before)

    def _env(self, restarts: int) -> dict[str, str]:
        number, _, place = self.element.partition("_")
        env = {"SLURM_JOB_ID": str(int(number) + int(place or 0)), "SLURM_RESTART_COUNT": str(restarts)}
        if place:
            env |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": place}
        nodes = self.given.get("nodes", "1")
        return {**os.environ, **env, ELEMENT: self.element, "SLURM_NTASKS": nodes, "SLURM_JOB_NUM_NODES": nodes}

    def _signal(self, number: int, batch: int, to_all: bool) -> None:
        for pid in processes(self.element):
            if pid != batch and (to_all or parent(pid) == batch):  # the script itself gets no signal
                with contextlib.suppress(OSError):
                    os.kill(pid, number)

    def _end_all(self) -> None:
        while left := processes(self.element):
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)


def processes(element: str) -> list[int]:
    """The living processes of an element."""
    return [pid for pid in pids() if f"{ELEMENT}={element}".encode() in environment(pid)]


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return None


def srun(words: list[str]) -> None:
    """Become the command, with its output in the files that submitit names; with several tasks, start it for each."""
    options: dict[str, str] = {}
    while words and words[0].startswith("--"):
        word = words.pop(0)
        if word != "--unbuffered" and "=" not in word:
            options[word] = words.pop(0)
    rank, count = 0, int(os.environ["SLURM_NTASKS"])
    if count > 1:
        children = []
        for number in range(count):
            if (child := os.fork()) == 0:
                rank = number
                break
            children.append(child)
        else:
            for child in children:
                os.waitpid(child, 0)
            sys.exit(0)
    os.environ["SLURM_PROCID"], os.environ["SLURM_LOCALID"] = str(rank), "0"
    whole = os.environ.get("SLURM_ARRAY_JOB_ID", "")
    marks = {
        "%A": whole, "%a": os.environ.get("SLURM_ARRAY_TASK_ID", ""), "%j": os.environ["SLURM_JOB_ID"], "%t": str(rank),
    }  # fmt: skip
    for option, number in (("--output", 1), ("--error", 2)):
        path = options[option]
        for mark, value in marks.items():
            path = path.replace(mark, value)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.execvp(words[0], words)


def squeue(cluster: Cluster, words: list[str]) -> int:
    if (cluster.place / "squeue is down").exists():
        return 1
    name = next((w.partition("=")[2] for w in words if w.startswith("--name=")), None)
    for element, facts in cluster.elements().items():
        if facts["state"] in (WAITING, RUNNING) and name in (None, facts["name"]):
            print(element)
    return 0


def sacct(cluster: Cluster, words: list[str]) -> int:
    if (cluster.place / "sacct is down").exists():
        return 1
    asked = {words[n + 1] for n, word in enumerate(words) if word == "-j"}
    print("JobID|State|NodeList")
    for element, facts in cluster.elements().items():
        if element.partition("_")[0] in asked:
            print(f"{element}|{facts['state']}|here")
    return 0


def scancel(cluster: Cluster, words: list[str]) -> int:
    what = "kill" if "--signal=KILL" in words else "cancel"
    asked = {word for word in words if not word.startswith("-")}
    if not asked:
        return 1
    for element, state in cluster.states().items():
        if state in (WAITING, RUNNING) and {element, element.partition("_")[0]} & asked:
            cluster.order(element, what)
    return 0


def scontrol(cluster: Cluster, words: list[str]) -> int:
    if words[0] != "requeue" or (cluster.place / "no requeue").exists():
        return 1
    cluster.order(words[1], "requeue")
    return 0


def main(program: str, words: list[str]) -> int:
    if program == "srun":
        srun(words)
    cluster = Cluster(Path(os.environ[PLACE]))
    if program == "node":
        Node(cluster, *words).work()
        return 0
    if program == "sbatch":
        return sbatch(cluster, words[-1])
    return globals()[program](cluster, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
