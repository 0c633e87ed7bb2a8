"""The processes that a worker starts: they end with the worker, however it ends, and it ends with the runner.

A method may start processes: loaders of data, a pool, a program. A worker has a session of its own, and an environment
variable that names it, which its children and their children inherit. So they can be told from all other processes,
also after the worker is gone. A guard, a small process beside each worker, waits for the worker's end and then ends
them. It also ends a worker that does not notice that the runner is gone, such as a stopped one.

Where the system shows no process's environment, only the session tells which processes are the worker's. A process
that has left the session and cleared its environment is then not found; on Linux, the worker still ends it after a run.

The guard runs this file as a script, so that it imports nothing of the package:

    python children.py NAME WORKER_PID RUNNER_PID
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "PEFTBENCH_WORKER"
LEAVES_SECONDS = 10  # for a worker to leave once the runner is gone; it may be writing a record
TIDIES_SECONDS = 3  # for processes that remove shared memory once all others are gone
ENDS_SECONDS = 15  # for all processes of a worker to end
POLL_SECONDS = 0.02
TIDY = (b"multiprocessing.resource_tracker", b"torch_shm_manager")  # they end by themselves
KEPT = (*TIDY, b"torch/_inductor/compile_worker")  # they serve later runs of the same worker
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


@dataclass(frozen=True)
class Seen:
    """A living process, as the system shows it.

    Attributes:
        name: of its worker; None for other processes, and where nobody asks for it.
    """

    pid: int
    parent: int
    session: int
    name: str | None

    def is_any_of(self, programs: Collection[bytes]) -> bool:
        """Whether its command line names one of these programs."""
        if sys.platform != "linux":
            import psutil

            with contextlib.suppress(psutil.Error):
                return any(p in " ".join(psutil.Process(self.pid).cmdline()).encode() for p in programs)
            return False
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            return False
        return any(p in command for p in programs)


def start(
    command: Sequence[str], name: str, env: Mapping[str, str], keep_open: Sequence[int] = (), **options: Any
) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """Start a worker in a session of its own, and its guard.

    Args:
        command: the worker's.
        name: tells its processes from those of all other workers.
        env: the worker's environment.
        keep_open: file descriptors that both inherit.
        options: further arguments of `subprocess.Popen` for the worker.

    Returns:
        The worker and the guard.

    Raises:
        OSError: the machine allows no worker, or no guard; there is no worker then.
    """
    options |= {"pass_fds": tuple(keep_open), "start_new_session": True}
    worker = subprocess.Popen(command, env={**env, VARIABLE: name}, **options)
    null = subprocess.DEVNULL
    try:
        guard = subprocess.Popen(
            [sys.executable, "-P", __file__, name, str(worker.pid), str(os.getpid())],
            stdin=null,
            stdout=null,
            stderr=null,
            pass_fds=tuple(keep_open),
            start_new_session=True,
        )
    except BaseException:
        with worker:  # waits for it, and closes its pipes
            worker.kill()
        raise
    return worker, guard


def wait_for_guard(guard: subprocess.Popen[bytes]) -> None:
    """Wait until the guard of a worker that has ended has ended the worker's processes."""
    try:
        guard.wait(ENDS_SECONDS + LEAVES_SECONDS)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()


def adopt(yes: bool = True) -> None:
    """Make this process the parent of its descendants whose parents end, so that it finds them; Linux only.

    Args:
        yes: False makes the system's first process their parent again.
    """
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, int(yes), 0, 0, 0)


def end_own() -> bool:
    """End the processes that a run of this worker has left; returns whether there were any."""
    name = None if sys.platform == "linux" else os.environ.get(VARIABLE)  # there, all descend from this process
    return _end(name, os.getpid() if os.getsid(0) == os.getpid() else None, root=os.getpid(), spared=KEPT)


def below() -> set[int]:
    """The numbers of the processes that descend from this one."""
    return {p.pid for p in _of(None, None, os.getpid())}


def end_below(but: Collection[int]) -> None:
    """End the processes that descend from this one, but those with the numbers in `but`."""
    _end(None, None, root=os.getpid(), spared=KEPT, but=but)


def _end(
    name: str | None,
    session: int | None,
    root: int | None = None,
    spared: Collection[bytes] = (),
    but: Collection[int] = (),
) -> bool:
    """End all processes of a worker, but those of the `spared` programs, and those with the numbers in `but`."""
    began, found = time.monotonic(), False
    while (waited := time.monotonic() - began) < ENDS_SECONDS:
        left = [p for p in _of(name, session, root) if p.pid not in but and not p.is_any_of(spared)]
        for process in left:
            if waited > TIDIES_SECONDS or not process.is_any_of(TIDY):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL)
        if not left:
            break
        found = True
        time.sleep(POLL_SECONDS)
    return found


def _of(name: str | None, session: int | None, root: int | None) -> list[Seen]:
    """The processes that bear the worker's name, are in its session, or descend from it; without this process."""
    seen = {p.pid: p for p in _all(name is not None)}

    def descends(process: Seen | None) -> bool:
        for _ in range(len(seen)):
            if process is None or process.parent == root:
                return process is not None
            process = seen.get(process.parent)
        return False

    return [
        p
        for p in seen.values()
        if p.pid != os.getpid()
        and ((name is not None and p.name == name) or p.session == session or (root is not None and descends(p)))
    ]


def _all(named: bool) -> Iterator[Seen]:
    if sys.platform == "linux":
        return (p for entry in os.listdir("/proc") if entry.isdecimal() and (p := _read(Path("/proc", entry), named)))
    return _all_of_psutil()


def _read(folder: Path, named: bool) -> Seen | None:
    """A process of Linux; None if it has ended, also if its parent has not noticed yet."""
    try:
        state, parent, _, session, *_ = (folder / "stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    if state in b"ZX":
        return None
    return Seen(int(folder.name), int(parent), int(session), _name_in(folder) if named else None)


def _name_in(folder: Path) -> str | None:
    try:
        variables = (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return None  # another user's process
    begin = f"{VARIABLE}=".encode()
    return next((v.removeprefix(begin).decode(errors="replace") for v in variables if v.startswith(begin)), None)


def _all_of_psutil() -> Iterator[Seen]:
    import psutil

    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            parent, session, name = process.ppid(), os.getsid(process.pid), None
            with contextlib.suppress(psutil.AccessDenied):
                name = process.environ().get(VARIABLE)
            yield Seen(process.pid, parent, session, name)
        except (psutil.Error, OSError):
            continue  # it has ended, or belongs to another user


def _guard(name: str, worker: int, runner: int) -> None:
    """Wait for the end of the worker, or of the runner and then of the worker; then end the worker's processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if _first_to_end([worker, runner]) == runner and _first_to_end([worker], LEAVES_SECONDS) is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    _end(name, worker)


def _first_to_end(pids: Sequence[int], seconds: float | None = None) -> int | None:
    """Wait until one of the processes has ended; None if none has within so many seconds."""
    if hasattr(os, "pidfd_open"):
        try:
            return _first_by_descriptor(pids, seconds)
        except OSError:
            pass  # an older kernel
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        alive = {p.pid for p in _all(named=False)}
        if ended := [pid for pid in pids if pid not in alive]:
            return ended[0]
        time.sleep(0.5)
    return None


def _first_by_descriptor(pids: Sequence[int], seconds: float | None) -> int | None:
    waiting, of = select.poll(), dict[int, int]()
    try:
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                return pid
            of[fd] = pid
            waiting.register(fd, select.POLLIN)
        ready = waiting.poll(None if seconds is None else seconds * 1000)
        return next((pid for fd, pid in of.items() if fd in dict(ready)), None)
    finally:
        for fd in of:
            os.close(fd)


if __name__ == "__main__":
    _guard(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
