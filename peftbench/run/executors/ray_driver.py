"""The driver process of the executor `ray`: ray's client, which places workers on nodes and hands them jobs.

It is to the runner's process (ray_cluster.py) what a worker is to a pool: JSON lines on two pipes, and it ends when the
runner is gone. Ray then ends the workers, as they belong to this process.

The death of a node or of a worker on it is not the fault of the runs there. Each leaves a `killed` record, and its job
goes to another worker, up to ATTEMPTS times in all.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from peftbench.errors import UserError
from peftbench.records import record, scratch
from peftbench.records.retries import ATTEMPTS
from peftbench.records.spec import title
from peftbench.run import failures
from peftbench.run.attempt import write_killed
from peftbench.run.executors import Ended, Event, ExecutorError, Notice, Progressed, Setup, Started
from peftbench.run.executors.local import affinity
from peftbench.run.executors.ray_connection import ClusterLost
from peftbench.run.executors.ray_workers import Worker, Workers
from peftbench.run.executors.worker import Channel
from peftbench.run.jobs import Job

PIECE_BYTES = 2**26  # of an adapter file that travel together
KILLED_SECONDS = 10.0  # for a worker to end a job that it was to kill
SETTLES_SECONDS = 2.0  # after the death of a worker, until it is clear whether the whole cluster goes


class RayDriver:
    """Carries out jobs; see `Executor` for what each method promises."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.workers = Workers(setup)
        self._queue: list[Job] = []
        self._deaths: Counter[str] = Counter()  # by spec id
        self._dying: list[tuple[float, Worker, str]] = []  # since when, the worker, and how
        self._abandoned = False

    @property
    def busy(self) -> bool:
        return bool(self._queue or any(w.job for w in self.workers) or any(w.job for _, w, _ in self._dying))

    def submit(self, job: Job) -> None:
        self._queue.append(job)
        self.workers.read_files_of(job.spec)

    def poll(self, timeout_seconds: float) -> list[Event]:
        events = self._settle()
        self.workers.place(self._queue)
        events += self._give()
        for reply in self.workers.replies(timeout_seconds, wanted=bool(self._queue)):
            if reply.death is None:
                events += self._handle(reply.worker, reply.news)
            else:
                self._dying.append((time.monotonic(), reply.worker, reply.death))
        return [*events, *self._end_late(), *map(Notice, self.workers.take_notices())]

    def abandon(self) -> None:
        self._queue.clear()
        self._abandoned = True
        self.workers.abandon()

    def kill(self, reason: str) -> None:
        self._queue.clear()
        self._abandoned = True
        self.workers.kill(reason, time.monotonic() + KILLED_SECONDS)

    def close(self, patience_seconds: float = 5) -> None:
        self.workers.close(patience_seconds)

    @property
    def waiting(self) -> list[Job]:
        """The jobs that have not started."""
        return list(self._queue)

    @property
    def is_abandoned(self) -> bool:
        """Whether no job starts any more."""
        return self._abandoned

    def _give(self) -> list[Event]:
        """Give each idle worker the job that suits it best, of those that it can carry out."""
        started: list[Event] = []
        for worker in self.workers.idle():
            suitable = [job for job in self._queue if self.workers.suits(worker, job)]
            if suitable:
                others = [w for w in self.workers if w is not worker]
                job = min(suitable, key=lambda j: affinity(j, worker, others))
                self._queue.remove(job)
                path = self._checkpoint_of(job)
                worker.give(job, path.read_bytes() if path is not None and path.exists() else None)
                started.append(Started(worker.number, job))
        return started

    def _handle(self, worker: Worker, news: Mapping[str, Any]) -> list[Event]:
        """What the news of a worker are to the runner.

        Raises:
            UserError: the session refuses its arguments, or a record cannot be written.
            ExecutorError: the worker cannot carry out jobs for another reason.
        """
        if failure := news["failed"]:
            kind = UserError if failure["by_user"] else ExecutorError
            raise kind(f"node {worker.node}: {failure['message']}")
        events: list[Event] = [Notice(f"node {worker.node}: {text}") for text in news["notices"] if self._queue]
        if worker.job is not None and news["progress"] is not None:
            events.append(Progressed(worker.number, worker.job, news["progress"]))
        if worker.job is not None and (news["ended"] or news["checkpoint"]):
            try:
                if news["checkpoint"] and (path := self._checkpoint_of(worker.job)) is not None:
                    name, size = news["checkpoint"]
                    self._fetch(worker, name, size, path)
                if news["ended"]:
                    self._fetch_adapters(worker, news["ended"]["adapters"])
            except RayError as error:
                self.workers.remove(worker)
                self._dying.append((time.monotonic(), worker, failures.message_of(error)))
                return events
        if worker.job is not None and (ended := news["ended"]):
            for body in ended["records"]:
                record.write(worker.job.results_dir, body)
            path = self._checkpoint_of(worker.job)
            if path is not None and ended["facts"]["status"] not in record.RETRIED:
                path.unlink(missing_ok=True)
            events.append(Ended(worker.number, worker.job, ended["facts"]))
            worker.job = None
        return events

    def _fetch_adapters(self, worker: Worker, adapters: Sequence[tuple[str, int]]) -> None:
        """Write the adapter files of a run where the runner's process would have them."""
        folder = self.setup.kwargs.get("adapters")
        if folder is None:
            return
        for name, size in adapters:
            self._fetch(worker, name, size, Path(folder) / name)

    def _fetch(self, worker: Worker, name: str, size: int, final: Path) -> None:
        """Write a file of a worker where the runner's process would have it."""
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary = scratch.beside(final)
            try:
                with open(temporary, "xb") as file:
                    for start in range(0, size, PIECE_BYTES):
                        file.write(self.workers.fetch(worker.actor.read.remote(name, start, PIECE_BYTES)))
                os.replace(temporary, final)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            fix = "free space or choose another --results"
            raise UserError(f"cannot write {final}: {error}; {fix}") from error

    def _checkpoint_of(self, job: Job) -> Path | None:
        """Where the checkpoint of a run is kept; None if the experiment wants none."""
        asked = self.setup.kwargs.get("checkpoints")
        return None if asked is None or job.kind != "run" else Path(asked["folder"]) / f"{job.spec.id}.pt"

    def _settle(self) -> list[Event]:
        """Judge the deaths of workers once it is clear that the cluster lives.

        Raises:
            ClusterLost: it does not.
        """
        if not self._dying or time.monotonic() - self._dying[0][0] < SETTLES_SECONDS:
            return []
        self.workers.cluster.check()
        dead, self._dying = self._dying, []
        return [event for _, worker, how in dead for event in self._handle_death(worker, how)]

    def _handle_death(self, worker: Worker, how: str) -> list[Event]:
        """Write the killed record of the job of a dead worker, and queue the job once more."""
        what = self.workers.note_death(worker, how)
        job, lost = worker.job, f"worker {worker.number} on node {worker.node} is lost: {what}"
        if job is None:
            return [Notice(f"{lost}; another takes its place")] if self._queue else []
        assert worker.env is not None
        assert worker.started is not None
        reason = worker.kill_reason or lost
        facts = write_killed(job, worker.env, worker.started, reason, how)
        self._deaths[job.spec.id] += 1
        if facts["status"] == "finished" or self._abandoned or self._deaths[job.spec.id] >= ATTEMPTS:
            return [Ended(worker.number, job, facts)]
        self._queue.insert(0, job)
        return [Notice(f"{reason}; {title(job.spec)} is placed again")]

    def _end_late(self) -> list[Event]:
        """End the workers that were to kill their job and have not answered since."""
        late = [w for w in self.workers if w.job and w.kill_by is not None and time.monotonic() > w.kill_by]
        for worker in late:
            self.workers.remove(worker)
        return [event for worker in late for event in self._handle_death(worker, "")]


def main() -> None:
    """Serve the runner until it sends "quit" or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the runner blocks it until this process ignores it
    channel = Channel()
    given = channel.messages.get()["setup"]
    for fd in given["keep_open"]:  # the lock on the results: held by this process, not by what ray starts
        os.set_inheritable(fd, False)
    patience, driver = 0.0, None
    try:
        driver = RayDriver(Setup(**{**given, "keep_open": tuple(given["keep_open"])}))
        channel.send("ready")
        patience = _serve(channel, driver)
    except (ClusterLost, SystemExit) as error:  # the second: somebody ends this process
        channel.send("lost", message=str(error) if isinstance(error, ClusterLost) else "the driver process was ended")
        os._exit(0)  # leaving ray in order would wait for the cluster
    except BaseException as error:
        by_user = isinstance(error, UserError)
        facts = failures.describe(error)
        known = by_user or isinstance(error, ExecutorError)
        channel.send("failed", by_user=by_user, message=str(error) if known else facts["traceback"])
    if driver is not None:
        driver.close(patience)


def _serve(channel: Channel, driver: RayDriver) -> float:
    """Pass on jobs and events until the runner sends "quit"; returns the patience with idle workers in seconds."""
    numbers: dict[str, int] = {}  # of the jobs, by spec id
    while True:
        message = _next_message(channel, driver.busy)
        if message["do"] == "quit":
            return float(message["patience"])
        if message["do"] == "submit":
            job = Job.from_json(message["job"])
            numbers[job.spec.id] = message["number"]
            driver.submit(job)
            continue
        if message["do"] == "kill" or (channel.abandon.is_set() and not driver.is_abandoned):
            dropped = [numbers[job.spec.id] for job in driver.waiting]
            if message["do"] == "kill":
                driver.kill(message["reason"])
            else:
                driver.abandon()
            channel.send("dropped", numbers=dropped)
        for event in driver.poll(0.1):
            channel.send(**_message_of(event, numbers))


def _next_message(channel: Channel, busy: bool) -> dict[str, Any]:
    """The runner's next message; without one, "poll" while there are jobs."""
    try:
        return channel.messages.get(block=not busy)
    except queue.Empty:
        return {"do": "poll"}


def _message_of(event: Event, numbers: Mapping[str, int]) -> dict[str, Any]:
    if isinstance(event, Notice):
        return {"event": "notice", "text": event.text}
    about = {"worker": event.worker, "number": numbers[event.job.spec.id]}
    if isinstance(event, Started):
        return {"event": "started", **about}
    return {"event": "ended" if isinstance(event, Ended) else "progress", **about, "facts": dict(event.facts)}


if __name__ == "__main__":
    main()
