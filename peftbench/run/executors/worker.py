"""One worker process of the executor `local`: builds a session once, then runs one job after another.

The parent (pool.py) exchanges JSON lines with it. Messages arrive on the pipe that is its standard input, events leave
on the pipe that is its standard output. Both pipes are moved aside before anything else is imported, so that neither
a library's print nor a child process can disturb them. What libraries print goes to standard error, which the parent
keeps for the case that the worker dies.

The pipe from the parent also tells whether the parent lives. When it ends, even by kill -9, a thread ends this process
at once: in the middle of a run, but never in the middle of writing a record.
"""

from __future__ import annotations

import atexit
import gc
import json
import math
import os
import queue
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Collection, Mapping
from typing import Any

from peftbench.errors import UserError
from peftbench.run import children
from peftbench.run.attempt import SessionHost, device_is_broken
from peftbench.run.failures import describe
from peftbench.run.jobs import Job, Progress, Stop

PROGRESS_EVERY_SECONDS = 0.1
PARENT_GONE = 3  # exit code


class Channel:
    """Both pipes to the parent, and the thread that reads its messages.

    Attributes:
        messages: the parent's messages, except "abandon".
        abandon: set once the parent asks the current job to stop.
        writing: held while a record is written; the process does not end meanwhile.
    """

    def __init__(self) -> None:
        self._in = os.dup(0)
        self._out = os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.abandon = threading.Event()
        self.writing = threading.Lock()
        threading.Thread(target=self._read_messages, name="parent", daemon=True).start()

    def send(self, event: str, **facts: Any) -> None:
        """Send an event to the parent; end this process if nobody reads it any more."""
        try:
            self._out.write(json.dumps({"event": event, **facts}).encode() + b"\n")
            self._out.flush()
        except OSError:
            self._exit()

    def _read_messages(self) -> None:
        unread = b""
        while received := os.read(self._in, 65536):
            *lines, unread = (unread + received).split(b"\n")
            for message in map(json.loads, lines):
                if message.get("do") == "abandon":
                    self.abandon.set()
                else:
                    self.messages.put(message)
        self._exit()

    def _exit(self) -> None:
        self.writing.acquire()  # waits for the record that is being written
        os._exit(PARENT_GONE)


def main() -> None:
    """Serve the parent until it sends "quit" or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the parent blocks it until this process ignores it
    children.adopt()
    channel = Channel()
    set_up = channel.messages.get()
    for fd in set_up["keep_open"]:  # the lock on the results: held by this process, not by what it starts
        os.set_inheritable(fd, False)
    gc.disable()  # what libraries make while they are imported stays; visiting it again and again takes a fifth longer
    try:
        host = SessionHost(set_up["session"], set_up["kwargs"])
    except BaseException as error:
        channel.send("failed", by_user=isinstance(error, UserError), **describe(error))
        return
    gc.collect()
    gc.freeze()  # libraries and the session stay: collections after a run need not visit them
    gc.enable()
    channel.send("ready", env=host.env)
    while (message := channel.messages.get())["do"] == "job":
        if not _serve(channel, host, Job.from_json(message["job"]), set_up["single"], message["packed"]):
            return


def _serve(channel: Channel, host: SessionHost, job: Job, single: bool, packed: bool) -> bool:
    """Carry out a job and report its end; returns whether this process may take another.

    What the run has started and left, processes or threads, ends with it.
    """
    before = set(threading.enumerate())
    try:
        facts = host.carry_out(job, reporter(channel), _stopper(channel, job), _Writing(channel), shares_memory=packed)
    except (OSError, UserError, MemoryError) as error:  # a full disk, no more open files: no record can be written
        channel.send("unwritable", **describe(error))
        return False
    retire = children.end_own() or single or device_is_broken(facts) or host.is_spent or _left_threads(before)
    channel.send("ended", retire=retire, **facts)
    return not retire


class _Writing:
    """Held while a record is written: the process does not end meanwhile, and no time limit counts any more."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __enter__(self) -> None:
        self.channel.send("writing")
        self.channel.writing.acquire()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.channel.writing.release()


def _stopper(channel: Channel, job: Job) -> Stop:
    """Tells whether the parent wants the job to stop. With a limit for steps, each call tells the parent of a step."""
    step, last = job.limits.step, -math.inf

    def stop() -> bool:
        nonlocal last
        now = time.monotonic()
        if step is not None and now - last >= min(PROGRESS_EVERY_SECONDS, step / 4):
            last = now
            channel.send("alive")
        return channel.abandon.is_set()

    return stop


def _left_threads(before: Collection[threading.Thread]) -> bool:
    """Whether code that is of no installed library still runs in a thread that was not there before."""
    standard = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<")
    frames = sys._current_frames()
    new = [frames.get(t.ident or 0) for t in threading.enumerate() if t not in before]
    names = [frame.f_code.co_filename for top in new if top is not None for frame, _ in traceback.walk_stack(top)]
    return any(not name.startswith(standard) and "-packages" not in name for name in names)


def reporter(channel: Channel) -> Progress:
    """Sends progress to the parent, at most every PROGRESS_EVERY_SECONDS unless the phase changes."""
    last: dict[str, Any] = {"sent": 0.0, "phase": None}

    def report(facts: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - last["sent"] < PROGRESS_EVERY_SECONDS and facts.get("phase") == last["phase"]:
            return
        last.update(sent=now, phase=facts.get("phase"))
        channel.send("progress", progress=dict(facts))

    return report


def _leave() -> None:
    """End this process without taking libraries apart object by object; what they registered for its end is called."""
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
    _leave()
