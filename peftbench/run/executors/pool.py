"""The worker processes of the executor `local`: start them, send them jobs, read their events, handle their exits.

Each worker is a new interpreter (worker.py) with two pipes, not a fork: CUDA does not survive a fork, and the
environment variables that limit threads must be set before torch is imported. A worker that dies costs only the run
that it was on: the pool writes the `killed` record of that run, and `grow` starts another worker in its place.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from peftbench.errors import UserError
from peftbench.run import children, time_limits
from peftbench.run.attempt import write_killed
from peftbench.run.executors import Ended, Event, ExecutorError, Notice, Progressed, Setup, cores
from peftbench.run.executors import worker as worker_module
from peftbench.run.jobs import Job, Start
from peftbench.run.time_limits import GRACE_SECONDS, Deadline

# Without this, glibc returns a large tensor's memory to the system when it is freed, and the system clears every page
# again for the next tensor, in every step. Logits over a large vocabulary suffer most.
KEEP_MEMORY = f"glibc.malloc.mmap_threshold={2**34}:glibc.malloc.trim_threshold={2**34}"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
FULL_SECONDS = 5  # until a further worker is tried where the machine allowed none
MAX_FAILED_STARTS = 3  # workers that may die one after another before any of them was ready
RETIRING_SECONDS = 10  # for a worker that takes no further job to leave by itself
STDERR_TAIL = 4000  # characters kept of what a dead worker printed
WORKER = worker_module.__name__  # what `python -m` runs


@dataclass
class WorkerProcess:
    """One live process, seen from the parent.

    Attributes:
        number: from 1; the process that replaces this one gets the same number.
        guard: ends what the worker's runs have started, once the worker is gone.
        env: what the worker's records say of it; None until it is ready.
        job: what it is running now.
        started: when that job was sent.
        last_job: what it ran last; the backbone and data of that job are still loaded.
        retiring: it takes no further job and leaves by itself.
        kill_reason: why the pool killed it.
        deadline: watches the job; None on no job, and while its record is written.
        leave_by: when a retiring process is killed, in seconds of `time.monotonic`; threads of a method may keep it.
        passed: the time limit that the job passed, if the pool killed the process for that.
    """

    number: int
    process: subprocess.Popen[bytes]
    guard: subprocess.Popen[bytes]
    stderr: IO[bytes]
    env: Mapping[str, Any] | None = None
    job: Job | None = None
    started: Start | None = None
    last_job: Job | None = None
    unread: bytes = b""
    retiring: bool = False
    kill_reason: str | None = None
    deadline: Deadline | None = None
    passed: tuple[str, float] | None = None
    leave_by: float | None = None

    @property
    def is_idle(self) -> bool:
        return self.env is not None and self.job is None and not self.retiring

    def send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return  # it has just died: the end of its other pipe reports that

    def stderr_tail(self) -> str:
        """The end of what the process and its libraries printed."""
        self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, self.stderr.tell() - STDERR_TAIL))
        return self.stderr.read().decode(errors="replace").strip()


@dataclass
class Pool:
    """Worker processes that each hold one session.

    Args:
        setup: the session, its arguments, and whether each process serves a single job (`exclusive`). Arguments
            that JSON lacks, such as a path, arrive as text.
        environments: environment variables of the process of each worker, by its number.
    """

    setup: Setup
    environments: dict[int, dict[str, str]] = field(default_factory=dict)
    workers: dict[int, WorkerProcess] = field(default_factory=dict)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _failed_starts: int = 0
    _full_until: float = -math.inf

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(patience_seconds=0 if error else 5)

    def grow(self, size: int) -> None:
        """Start workers until there are `size`, or as many as the machine allows; they load while the caller goes on.

        Raises:
            ExecutorError: not even one can be started.
        """
        for number in range(1, size + 1):
            if number not in self.workers and not self.start(number):
                return

    def idle(self) -> list[WorkerProcess]:
        """The workers that can take a job now."""
        return [w for w in self.workers.values() if w.is_idle]

    def busy(self) -> list[WorkerProcess]:
        """The workers that are on a job."""
        return [w for w in self.workers.values() if w.job is not None]

    def give(self, worker: WorkerProcess, job: Job, packed: bool = False) -> None:
        """Send a job to an idle worker.

        Args:
            worker: the worker.
            job: the job.
            packed: whether other jobs may use the same device meanwhile.
        """
        worker.job, worker.last_job, worker.started = job, job, Start.now()
        worker.deadline = Deadline(job.limits)
        worker.send({"do": "job", "job": job.to_json(), "packed": packed})

    def dismiss(self, worker: WorkerProcess) -> None:
        """End an idle worker, so that the memory that it holds is free when this returns."""
        worker.send({"do": "quit"})
        self._end(worker, patience_seconds=5)

    def poll(self, timeout_seconds: float) -> list[Event]:
        """Return what has happened since the last call, after waiting at most so long for the first event.

        Raises:
            UserError: a session refuses what the user gave, or a record cannot be written.
            ExecutorError: workers do not start, for another reason.
        """
        events: list[Event] = []
        self._kill_late()
        for key, _ in self._selector.select(timeout_seconds):
            worker: WorkerProcess = key.data
            received = os.read(key.fd, 65536)
            *lines, worker.unread = (worker.unread + received).split(b"\n")
            for line in lines:
                events += self._handle_line(worker, line)
            if not received:
                events += self._handle_exit(worker)
        return events

    def abandon(self) -> None:
        """Ask workers to stop between two steps; end those that are on no job, as they have nothing to lose."""
        for worker in list(self.workers.values()):
            if worker.job is None:
                self._end(worker, patience_seconds=0)
            else:
                worker.send({"do": "abandon"})

    def kill(self, reason: str) -> None:
        """End the workers that are on a job; `poll` then reports each job as killed for this reason."""
        for worker in self.busy():
            worker.kill_reason, worker.passed = reason, None
            worker.process.kill()

    def _kill_late(self) -> None:
        """Kill workers whose job has passed a time limit and does not notice it, and those that should have left."""
        for worker in self.workers.values():
            if worker.leave_by is not None and time.monotonic() > worker.leave_by:
                worker.process.kill()
        for worker in self.busy():
            if worker.deadline and not worker.kill_reason and (passed := worker.deadline.passed(GRACE_SECONDS)):
                worker.passed, worker.kill_reason = passed, time_limits.reason(*passed)
                worker.process.kill()

    def close(self, patience_seconds: float = 5) -> None:
        """End all workers: idle ones by themselves within so many seconds, others at once and without a record."""
        for worker in self.workers.values():
            worker.send({"do": "quit"})
        deadline = time.monotonic() + patience_seconds
        for worker in list(self.workers.values()):
            self._end(worker, max(0.0, deadline - time.monotonic()) if worker.is_idle else 0)
        self._selector.close()

    def start(self, number: int) -> bool:
        """Start a worker; return False if the machine allows no further one, or did not a moment ago.

        Raises:
            ExecutorError: none is alive, and not even one can be started.
        """
        if self.workers and time.monotonic() < self._full_until:
            return False
        try:
            self._spawn(number)
            return True
        except OSError as error:
            if self.workers:
                self._full_until = time.monotonic() + FULL_SECONDS
                return False
            raise ExecutorError(
                f"a worker process cannot be started: {error}. Free what the machine lacks (disk, memory, open files, "
                "processes), and run again to resume"
            ) from error

    def _spawn(self, number: int) -> None:
        kwargs = self.setup.session_kwargs(cores())
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", WORKER]
        # Ctrl-C goes to the whole process group: it stays blocked in the child until the child ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process, guard = children.start(
                command,
                secrets.token_hex(8),
                environment_of(kwargs["threads"]) | self.environments.get(number, {}),
                self.setup.keep_open,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        worker = WorkerProcess(number, process, guard, stderr)
        self.workers[number] = worker
        self._selector.register(_stdout_of(worker), selectors.EVENT_READ, worker)
        worker.send(
            {
                "do": "set up",
                "session": self.setup.session,
                "kwargs": kwargs,
                "keep_open": self.setup.keep_open,
                "single": self.setup.exclusive,
            }
        )

    def _handle_line(self, worker: WorkerProcess, line: bytes) -> list[Event]:
        try:
            message = json.loads(line)
            assert isinstance(message["event"], str)
        except (ValueError, TypeError, KeyError, AssertionError):  # a method wrote to the descriptor of the pipe
            worker.kill_reason = "something in the worker process wrote into its pipe to the runner"
            worker.process.kill()
            return []
        return self._handle_message(worker, message)

    def _handle_message(self, worker: WorkerProcess, message: dict[str, Any]) -> list[Event]:
        kind = message.pop("event")
        if kind == "unwritable":
            return [self._handle_unwritable(worker, message["message"])]
        if kind == "failed" and message["by_user"]:
            raise UserError(message["message"])
        if kind == "failed":
            raise ExecutorError(f"a worker cannot start: {message['message']}\n{message['traceback']}")
        if kind == "ready":
            worker.env, self._failed_starts = message["env"], 0
            return []
        assert worker.job is not None
        job = worker.job
        if kind == "writing":
            worker.deadline = None
            return []
        if (d := worker.deadline) and (kind == "alive" or (kind == "progress" and d.alive is not None)):
            d.alive = time.monotonic()
        if kind == "alive":
            return []
        if kind == "progress":
            return [Progressed(worker.number, job, message["progress"])]
        worker.job, worker.deadline, worker.retiring = None, None, message.pop("retire")
        worker.leave_by = time.monotonic() + RETIRING_SECONDS if worker.retiring else None
        return [Ended(worker.number, job, message)]

    def _handle_unwritable(self, worker: WorkerProcess, why: str) -> Ended:
        """Write the record of a job for a worker that cannot; it may lack open files that this process has.

        Raises:
            UserError: this process cannot write it either.
        """
        assert worker.job is not None
        assert worker.env is not None
        assert worker.started is not None
        job, worker.job, worker.deadline, worker.retiring = worker.job, None, None, True
        worker.leave_by = time.monotonic() + RETIRING_SECONDS
        reason = f"its process could not write the record: {why}"
        return Ended(worker.number, job, write_killed(job, worker.env, worker.started, reason, status="interrupted"))

    def _handle_exit(self, worker: WorkerProcess) -> list[Event]:
        """Write the killed record of the job of a worker that the pool did not end itself."""
        self._end(worker, patience_seconds=5, keep_stderr=True)
        cause = _exit_cause(worker.process.returncode)
        tail = worker.stderr_tail()
        worker.stderr.close()
        if worker.env is None and worker.kill_reason is None:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise ExecutorError(
                    f"{MAX_FAILED_STARTS} workers in a row {cause} while starting; the last one printed:\n{tail}"
                )
        events: list[Event] = []
        if worker.job is not None:
            assert worker.env is not None
            assert worker.started is not None
            reason = worker.kill_reason or f"the worker process {cause}"
            limit = worker.passed and {"of": worker.passed[0], "seconds": worker.passed[1]}
            facts = write_killed(worker.job, worker.env, worker.started, reason, tail, limit)
            events.append(Ended(worker.number, worker.job, facts))
        if not worker.retiring:
            how = "was ended" if worker.kill_reason else cause
            events.append(Notice(f"worker {worker.number} {how}; another takes its place"))
        return events

    def _end(self, worker: WorkerProcess, patience_seconds: float, keep_stderr: bool = False) -> None:
        process = worker.process
        assert process.stdin is not None
        self._selector.unregister(_stdout_of(worker))
        del self.workers[worker.number]
        if not _has_ended(process, patience_seconds):
            process.stdin.close()  # it leaves at once, but finishes a record that it is writing
            if not _has_ended(process, patience_seconds=2):
                process.kill()
                process.wait()
        children.wait_for_guard(worker.guard)
        process.stdin.close()
        _stdout_of(worker).close()
        if not keep_stderr:
            worker.stderr.close()


def environment_of(threads: int | None) -> dict[str, str]:
    """The environment variables of a process that computes on so many threads.

    Libraries read the number of threads when they are imported, so it must be there before.
    """
    env = {"GLIBC_TUNABLES": KEEP_MEMORY, **os.environ}
    env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    env["PYTHONUTF8"] = "1"  # names of files may have any character
    return env | {"TOKENIZERS_PARALLELISM": "false"} | ({v: str(threads) for v in THREAD_VARIABLES} if threads else {})


def _has_ended(process: subprocess.Popen[bytes], patience_seconds: float) -> bool:
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stdout_of(worker: WorkerProcess) -> IO[bytes]:
    assert worker.process.stdout is not None
    return worker.process.stdout


def _exit_cause(code: int) -> str:
    """What ended a process, in words that follow "the worker process"."""
    if code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    hint = "; the system does this when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by signal {-code} ({name}{hint})"
