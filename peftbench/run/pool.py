"""The pool of worker processes, seen from the parent: start them, give them jobs, hear what happens, bury the dead.

Each worker is a fresh interpreter (worker.py) behind two pipes rather than a fork: CUDA does not survive a fork, and
the environment variables that limit threads must be there before torch is imported. A worker that dies costs the one
run it was on: the pool writes that run's `killed` record and starts another worker in its place.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from peftbench.errors import UserError
from peftbench.records import record
from peftbench.records.spec import spec_id
from peftbench.run.jobs import Ending, Job, record_of

# Otherwise glibc gives a large tensor's memory back when it is freed, and the system clears each page anew for the next
# one, in every step; most of all for the logits of a large vocabulary.
KEEP_MEMORY = f"glibc.malloc.mmap_threshold={2**34}:glibc.malloc.trim_threshold={2**34}"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
STARTS = 3  # workers that may die one after another before any of them was ready
LAST_WORDS = 4000  # characters kept of what a dead worker printed


class WorkerError(RuntimeError):
    """Workers cannot be started; the message holds what the last one said."""


@dataclass(frozen=True)
class Event:
    """What a worker reports: "ready", "progress", "ended" or "replaced"; `facts` belong to the kind."""

    kind: str
    worker: int
    job: Job | None
    facts: Mapping[str, Any]


@dataclass
class Worker:
    """One live process; `number` counts from 1 and passes on to the process that replaces it."""

    number: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    env: Mapping[str, Any] | None = None  # None until it is ready
    job: Job | None = None
    since: datetime | None = None
    last: Job | None = None  # its backbone and data are still loaded
    unread: bytes = b""
    retiring: bool = False
    doomed: str | None = None  # why the pool killed it

    @property
    def is_idle(self) -> bool:
        return self.env is not None and self.job is None and not self.retiring

    def send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return  # it just died: the end of its other pipe says so

    def last_words(self) -> str:
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - LAST_WORDS))
        return self.log.read().decode(errors="replace").strip()


@dataclass
class Pool:
    """Worker processes that each hold one session.

    Args:
        factory: "module:Class"; the module also offers the exceptions `Diverged` and `Abandoned`.
        kwargs: for the class; what JSON lacks, such as a path, arrives as text. `threads`, where given, also limits
            the libraries that read it from the environment.
        keep_open: file descriptors that live as long as any worker does (the lock on the results directory).
    """

    factory: str
    kwargs: Mapping[str, Any]
    keep_open: tuple[int, ...] = ()
    workers: dict[int, Worker] = field(default_factory=dict)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _stillborn: int = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(patience_seconds=0 if error else 5)

    def grow(self, size: int) -> None:
        """Start workers until there are `size`; they load while the caller goes on."""
        for number in range(1, size + 1):
            if number not in self.workers:
                self._start(number)

    def idle(self) -> list[Worker]:
        return [w for w in self.workers.values() if w.is_idle]

    def busy(self) -> list[Worker]:
        return [w for w in self.workers.values() if w.job is not None]

    def give(self, worker: Worker, job: Job) -> None:
        worker.job, worker.last, worker.since = job, job, datetime.now(UTC)
        worker.send({"do": "job", "job": job.to_json()})

    def poll(self, timeout_seconds: float) -> list[Event]:
        """What has happened, waiting at most so long for the first of it.

        Raises UserError where a session cannot be built from what the user gave or a record cannot be written, and
        WorkerError where workers do not start for another reason.
        """
        events: list[Event] = []
        for key, _ in self._selector.select(timeout_seconds):
            worker: Worker = key.data
            arrived = os.read(key.fd, 65536)
            *lines, worker.unread = (worker.unread + arrived).split(b"\n")
            events += [self._hear(worker, json.loads(line)) for line in lines]
            if not arrived:
                events += self._bury(worker)
        return events

    def abandon(self) -> None:
        """Ask all workers to stop between two steps; those still loading have nothing to lose and are ended."""
        for worker in list(self.workers.values()):
            if worker.job is None:
                self._end(worker, patience_seconds=0)
            else:
                worker.send({"do": "abandon"})

    def kill(self, reason: str) -> None:
        """End the workers that are on a run; `poll` then reports each run as killed for this reason."""
        for worker in self.busy():
            worker.doomed = reason
            worker.process.kill()

    def close(self, patience_seconds: float = 5) -> None:
        """End all workers: idle ones by themselves, those on a run without a record."""
        for worker in self.workers.values():
            worker.send({"do": "quit"})
        deadline = time.monotonic() + patience_seconds
        for worker in list(self.workers.values()):
            self._end(worker, max(0.0, deadline - time.monotonic()) if worker.is_idle else 0)
        self._selector.close()

    def _start(self, number: int) -> None:
        threads = self.kwargs.get("threads")
        env = environment_of(threads)
        log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", "peftbench.run.worker"]
        # Ctrl-C goes to the whole process group: it stays blocked in the child until the child ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=log, env=env, pass_fds=self.keep_open, bufsize=0
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        worker = Worker(number, process, log)
        self.workers[number] = worker
        self._selector.register(_output_of(worker), selectors.EVENT_READ, worker)
        worker.send({"factory": self.factory, "kwargs": dict(self.kwargs), "keep_open": self.keep_open, "do": "set up"})

    def _hear(self, worker: Worker, message: dict[str, Any]) -> Event:
        kind = message.pop("event")
        if kind == "ready":
            worker.env, self._stillborn = message["env"], 0
        if kind == "unwritable" or (kind == "failed" and message["by_user"]):
            raise UserError(message["message"])
        if kind == "failed":
            raise WorkerError(f"a worker cannot start: {message['message']}\n{message['traceback']}")
        event = Event(kind, worker.number, worker.job, message)
        if kind == "ended":
            worker.job, worker.retiring = None, message["retire"]
        return event

    def _bury(self, worker: Worker) -> list[Event]:
        """The end of a worker that the pool did not close: the record of its run, and a place for the next worker."""
        self._end(worker, patience_seconds=5, keep_log=True)
        died = _cause_of_death(worker.process.returncode)
        words = worker.last_words()
        worker.log.close()
        if worker.env is None and worker.doomed is None:
            self._stillborn += 1
            if self._stillborn >= STARTS:
                raise WorkerError(f"{STARTS} workers in a row {died} while starting; the last one said:\n{words}")
        events = []
        if worker.job is not None:
            reason = worker.doomed or f"the worker process {died}"
            events.append(Event("ended", worker.number, worker.job, self._write_killed(worker, reason, words)))
        if not worker.retiring:
            events.append(Event("replaced", worker.number, None, {"reason": f"worker {worker.number} {died}"}))
        return events

    def _write_killed(self, worker: Worker, reason: str, words: str) -> dict[str, Any]:
        job, env, since = worker.job, worker.env, worker.since
        assert job is not None
        assert env is not None
        assert since is not None
        folder = Path(job.results_dir)
        for path in (folder / record.FOLDER).glob(f"*--{job.spec.id}--*.json"):
            kept = record.read(path)
            if kept.is_finished:  # it died between writing the record and saying so
                body = kept.body
                seconds = body["seconds"]["total"]
                return {"status": "finished", "reason": None, "seconds": seconds, "metrics": body.get("metrics")}
        record.write(folder, record_of(job, env, since, Ending("killed", reason, words or None)))
        seconds = (datetime.now(UTC) - since).total_seconds()
        return {"status": "killed", "reason": reason, "seconds": seconds, "metrics": None}

    def _end(self, worker: Worker, patience_seconds: float, keep_log: bool = False) -> None:
        process = worker.process
        assert process.stdin is not None
        self._selector.unregister(_output_of(worker))
        del self.workers[worker.number]
        if not _has_ended(process, patience_seconds):
            process.stdin.close()  # it leaves at once, but finishes a record that it is writing
            if not _has_ended(process, patience_seconds=2):
                process.kill()
                process.wait()
        process.stdin.close()
        _output_of(worker).close()
        if not keep_log:
            worker.log.close()


def environment_of(threads: int | None) -> dict[str, str]:
    """The environment of a process that computes on so many threads: libraries read it when they are imported."""
    env = {"GLIBC_TUNABLES": KEEP_MEMORY, **os.environ}
    env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    return env | {"TOKENIZERS_PARALLELISM": "false"} | ({v: str(threads) for v in THREAD_VARIABLES} if threads else {})


def affinity(job: Job, worker: Worker, others: Iterable[Worker]) -> tuple[int, int]:
    """How much of a job a worker would have to load, smallest best; work that another worker has loaded comes last."""
    backbone, task = _needs(job)
    mine = _needs(worker.last) if worker.last else (None, None)
    theirs = [_needs(w.last) for w in others if w.last]
    missing = int(backbone != mine[0]) * 2 + int(task != mine[1])
    return missing, int((backbone, task) in theirs)


def _needs(job: Job) -> tuple[str, str]:
    return spec_id("backbone", job.spec.backbone), spec_id("task", job.spec.task)


def _has_ended(process: subprocess.Popen[bytes], patience_seconds: float) -> bool:
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _output_of(worker: Worker) -> IO[bytes]:
    assert worker.process.stdout is not None
    return worker.process.stdout


def _cause_of_death(code: int) -> str:
    """In words, to follow "the worker process"."""
    if code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    hint = "; the system does this when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by signal {-code} ({name}{hint})"
