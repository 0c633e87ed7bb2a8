"""One worker process: builds a session once, then carries out one job after another and writes each job's record.

The parent (workers.py) talks to it in JSON lines: jobs come in on the pipe that is its standard input, events go out
on the pipe that is its standard output. Both pipes are taken over before anything else is imported, so that neither
a library's print nor a child process can disturb them; what libraries print goes to standard error, which the parent
keeps for the case that the worker dies.

The pipe from the parent is also its pulse. When it ends, the parent is gone, by kill -9 too, and a thread ends this
process at once, in the middle of a run, but never in the middle of writing a record.

The session's module is the contract: it offers the class, and the exceptions `Diverged` and `Abandoned` that the
class raises. torch is never imported here; only where the session has loaded it is it spoken to.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import environment, record
from peftbench.run.jobs import Ending, Job, record_of

PROGRESS_EVERY_SECONDS = 0.1
PARENT_GONE = 3  # exit code
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class Channel:
    """Both pipes to the parent, and the thread that listens."""

    def __init__(self) -> None:
        self._in = os.dup(0)
        self._out = os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.abandon = threading.Event()
        self.writing = threading.Lock()  # held while a record is written
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def send(self, event: str, **facts: Any) -> None:
        try:
            self._out.write(json.dumps({"event": event, **facts}).encode() + b"\n")
            self._out.flush()
        except OSError:  # nobody reads any more
            self._leave()

    def _listen(self) -> None:
        unread = b""
        while arrived := os.read(self._in, 65536):
            *lines, unread = (unread + arrived).split(b"\n")
            for message in map(json.loads, lines):
                if message["do"] == "abandon":
                    self.abandon.set()
                else:
                    self.messages.put(message)
        self._leave()

    def _leave(self) -> None:
        self.writing.acquire()  # a record being written is finished first
        os._exit(PARENT_GONE)


def main() -> None:
    """Serve the parent until it sends "quit" or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked by the parent until ignored
    channel = Channel()
    set_up = channel.messages.get()
    for fd in set_up["keep_open"]:  # the lock on the results: held by this process, not by what it starts
        os.set_inheritable(fd, False)
    try:
        worker = Worker(channel, set_up["factory"], set_up["kwargs"])
    except BaseException as error:
        channel.send("failed", by_user=isinstance(error, UserError), **_told(error))
        return
    gc.collect()
    gc.freeze()  # libraries and the session stay: they need not be looked through after every run
    channel.send("ready", env=worker.env)
    while (message := channel.messages.get())["do"] == "job":
        if not worker.serve(Job.from_json(message["job"])):
            return


class Worker:
    """A session and the loop around it that turns whatever happens into a record."""

    def __init__(self, channel: Channel, factory: str, kwargs: Mapping[str, Any]) -> None:
        self.channel = channel
        module_name, _, class_name = factory.partition(":")
        module = importlib.import_module(module_name)
        self.diverged: type[Exception] = module.Diverged
        self.abandoned: type[Exception] = module.Abandoned
        self.session = getattr(module, class_name)(**kwargs)
        device = str(getattr(self.session, "device", kwargs.get("device", "cpu")))
        self.env = environment.facts(device, kwargs.get("threads"), kwargs.get("plugins") or ())

    def serve(self, job: Job) -> bool:
        """Carry out a job and write its record; False when this process must not take another."""
        started = datetime.now(UTC)
        ending = self._carry_out(job)
        try:
            ending = self._write(job, started, ending)
        except (OSError, UserError) as error:  # a full disk, a directory taken away: no run can be kept
            self.channel.send("unwritable", **_told(error))
            return False
        broken = ending.status != "finished" and _device_is_broken(ending.reason)
        last = broken or job.kind == "profile"  # each of these is to be timed in a process of its own
        self.channel.send(
            "ended",
            status=ending.status,
            reason=ending.reason,
            seconds=(datetime.now(UTC) - started).total_seconds(),
            metrics=ending.body.get("metrics"),
            retire=last,
        )
        return not last

    def _carry_out(self, job: Job) -> Ending:
        work: Callable[..., Mapping[str, Any]] = self.session.execute if job.kind == "run" else self.session.profile
        try:
            return Ending("finished", body=work(job.spec, self._reporter(), self.channel.abandon.is_set))
        except BaseException as error:
            return self._explain(error)
        finally:
            _release_memory()

    def _explain(self, error: BaseException) -> Ending:
        told = _told(error)
        body = getattr(error, "body", {})  # a session may hand over what it had measured so far
        if isinstance(error, self.abandoned):
            return Ending("abandoned", told["message"] or "stopped between two steps on request", body=body)
        if isinstance(error, self.diverged):
            step = getattr(error, "step", None)
            return Ending("diverged", told["message"] or f"the loss is not finite at step {step}", body=body)
        if is_out_of_memory(error):
            return Ending("oom", told["message"], told["traceback"], body)
        return Ending("error", told["message"], told["traceback"], body)

    def _write(self, job: Job, started: datetime, ending: Ending) -> Ending:
        """Keep the attempt; returns how it ended, which is an error where the session measured what is no record."""
        folder = Path(job.results_dir)
        with self.channel.writing:
            try:
                record.write(folder, record_of(job, self.env, started, ending))
                return ending
            except (TypeError, ValueError) as error:
                told = _told(error)
                ending = Ending("error", f"the record cannot be written: {told['message']}", told["traceback"])
                record.write(folder, record_of(job, self.env, started, ending))
                return ending

    def _reporter(self) -> Callable[[Mapping[str, Any]], None]:
        last: dict[str, Any] = {"sent": 0.0, "phase": None}

        def report(facts: Mapping[str, Any]) -> None:
            now = time.monotonic()
            if now - last["sent"] < PROGRESS_EVERY_SECONDS and facts.get("phase") == last["phase"]:
                return
            last.update(sent=now, phase=facts.get("phase"))
            self.channel.send("progress", progress=dict(facts))

        return report


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the device, in Python, or in torch's CPU allocator, which says so only in words."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _device_is_broken(reason: str | None) -> bool:
    """After a failed CUDA kernel every later call in the same process fails too; running out of memory is harmless."""
    return reason is not None and "CUDA error" in reason and "out of memory" not in reason


def _told(error: BaseException) -> dict[str, Any]:
    """Message and traceback; a user's mistake needs no traceback."""
    if isinstance(error, UserError):
        return {"message": str(error), "traceback": None}
    text = str(error)
    name = type(error).__name__
    lines = "".join(traceback.format_exception(error))
    return {"message": f"{name}: {text}" if text else name, "traceback": lines}


def _release_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
