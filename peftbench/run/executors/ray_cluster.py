"""The executor `ray`: worker processes on the nodes of a ray cluster.

Three kinds of processes take part. The runner's own has this class, which imports no ray. A driver process
(ray_driver.py), started by it, is ray's client: it places workers, hands them jobs and writes their records. On the
nodes are the workers (ray_node.py). What ray prints, or where it ends a program that has lost its cluster, is so kept
from the runner: the loss of the cluster is an interruption, after which the same command resumes.

The runner's process and its driver exchange JSON lines, as a pool does with its workers.
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
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from peftbench.errors import UserError
from peftbench.run.executors import Ended, Event, ExecutorError, Notice, Progressed, Setup, Started, ray_options
from peftbench.run.jobs import Job

DRIVER = "peftbench.run.executors.ray_driver"
LEAVES_SECONDS = 15.0  # for the driver to end workers and cluster, beyond the patience with idle workers
KILLS_SECONDS = 20.0  # for the driver to report the end of jobs that it was to kill
STDERR_TAIL = 2000  # characters shown of what a driver printed that ended unexpectedly
LOST = "the ray cluster is gone or does not answer any more"


class RayExecutor:
    """Carries out jobs on a ray cluster; see `Executor` for what each method promises.

    Raises:
        UserError: an option is not valid.
    """

    OPTIONS = ray_options.OPTIONS
    PACKAGE = "ray"

    @staticmethod
    def check(options: Mapping[str, str]) -> None:
        """Raise UserError if a value is not valid."""
        ray_options.Options.of(options)

    @staticmethod
    def needs_peaks(options: Mapping[str, str]) -> bool:
        """Whether the predicted memory peaks are wanted: not where the user says how much a run takes."""
        return "memory" not in options

    def __init__(self, setup: Setup) -> None:
        ray_options.Options.of(setup.options)
        self._jobs: dict[int, Job] = {}  # that have neither ended nor been dropped
        self._submitted, self._unread = 0, b""
        self._ready, self._ended = False, False
        self._kill_by: float | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the driver
        self._process = self._start(setup)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._send({"do": "open", "setup": asdict(setup)})

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def submit(self, job: Job) -> None:
        self._submitted += 1
        self._jobs[self._submitted] = job
        self._send({"do": "submit", "number": self._submitted, "job": job.to_json()})

    def poll(self, timeout_seconds: float) -> list[Event]:
        if self._ended:
            raise KeyboardInterrupt(LOST)
        if self._kill_by is not None and time.monotonic() > self._kill_by:
            self._process.kill()
        if not self._selector.select(timeout_seconds):
            return []
        received = os.read(self._stdout.fileno(), 2**20)
        *lines, self._unread = (self._unread + received).split(b"\n")
        events = [event for line in lines for event in self._event_of(json.loads(line))]
        return events if received else [*events, self._lost(None)]

    def abandon(self) -> None:
        self._send({"do": "abandon"})

    def kill(self, reason: str) -> None:
        self._kill_by = time.monotonic() + KILLS_SECONDS
        self._send({"do": "kill", "reason": reason})

    def close(self, patience_seconds: float = 5) -> None:
        assert self._process.stdin is not None
        self._send({"do": "quit", "patience": patience_seconds})
        deadline = time.monotonic() + patience_seconds + LEAVES_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:  # it waits where nobody reads
            if self._selector.select(0.1) and not os.read(self._stdout.fileno(), 2**20):
                break
        try:
            self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._stdout, self._stderr):
            stream.close()

    @property
    def _stdout(self) -> Any:
        assert self._process.stdout is not None
        return self._process.stdout

    def _start(self, setup: Setup) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        # Ctrl-C goes to the whole process group: it stays blocked in the driver until the driver ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", DRIVER],
                env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
                pass_fds=setup.keep_open,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise ExecutorError(f"the driver process of ray cannot be started: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        content = json.dumps(message, default=str).encode() + b"\n"
        try:
            while content:
                content = content[self._process.stdin.write(content) or 0 :]
        except OSError:
            return  # it has just ended: the end of its other pipe reports that

    def _event_of(self, message: dict[str, Any]) -> list[Event]:
        """The event that a message of the driver is, if any.

        Raises:
            UserError, ExecutorError: the driver gives up.
        """
        kind = message.pop("event")
        if kind == "ready":
            self._ready = True
            return []
        if kind == "failed":
            raise (UserError if message["by_user"] else ExecutorError)(message["message"])
        if kind == "lost":
            return [self._lost(message["message"])]
        if kind == "notice":
            return [Notice(message["text"])]
        if kind == "dropped":
            for number in message["numbers"]:
                self._jobs.pop(number, None)
            return []
        job, worker = self._jobs[message["number"]], message["worker"]
        if kind == "started":
            return [Started(worker, job)]
        if kind == "progress":
            return [Progressed(worker, job, message["facts"])]
        assert kind == "ended"
        del self._jobs[message["number"]]
        return [Ended(worker, job, message["facts"])]

    def _lost(self, why: str | None) -> Notice:
        """Say that the cluster is gone; the next `poll` reports an interruption.

        Raises:
            ExecutorError: the driver ended before it had a cluster.
        """
        self._ended = True
        if not self._ready:
            self._process.wait()
            self._stderr.seek(0)
            tail = self._stderr.read().decode(errors="replace").strip()[-STDERR_TAIL:]
            raise ExecutorError(f"the driver process of ray ended while it connected; it printed:\n{tail}")
        return Notice(f"{why or LOST}: what ran there is interrupted")
