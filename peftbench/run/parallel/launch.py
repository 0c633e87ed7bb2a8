"""Start the ranks of a run, follow them, and end them: in the process of the run, which computes nothing itself.

The ranks find each other as under `torchrun`: by a store that this process holds, and by torchrun's environment
variables. Each is a child of this process with two pipes, as a worker is of the runner; it ends when this process does.
The first rank tells how far the run is, and its result is the run's. When one rank fails, the others, which may wait
for it for ever, are killed, and the failure is the run's.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from peftbench.errors import UserError
from peftbench.records.spec import RunSpec, as_dict
from peftbench.run.executors import cores
from peftbench.run.failures import ProcessDied
from peftbench.run.jobs import Progress, Stop
from peftbench.run.time_limits import Deadline
from peftbench.run.train import Abandoned, Diverged

RANK = "peftbench.run.parallel.rank"  # what `python -m` runs
TAIL = 4000  # characters kept of what a dead rank printed
POLL_SECONDS = 0.1
STOPS_SECONDS = 60.0  # for ranks to reach their next step and write a checkpoint, once they were asked to stop
LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "gloo/", "NCCL")  # words of a lost partner
SETTLE_SECONDS = 2.0  # after a first failure, for the rank that caused it to tell


class RankFailed(RuntimeError):
    """A rank raised an error. The message has the rank and the error."""


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]
    unread: bytes = b""
    ended: Mapping[str, Any] | None = None

    def send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return  # it has just died: the end of its other pipe tells

    def tail(self) -> str:
        self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, self.stderr.tell() - TAIL))
        return self.stderr.read().decode(errors="replace").strip()


def execute(spec: RunSpec, session: Mapping[str, Any], on_progress: Progress, stop: Stop) -> dict[str, Any]:
    """Carry out a run on several ranks; the arguments and errors are those of `Session.execute`.

    Args:
        spec: the run; `spec.train.ranks` says how many ranks share it.
        session: the arguments of each rank's session. Its threads are divided among the ranks.
        on_progress: called with what the first rank tells.
        stop: called several times a second; True abandons the run.

    Raises:
        RankFailed: a rank raised another error.
        ProcessDied: a rank died.
    """
    import torch.distributed as dist

    size = spec.train.ranks
    given = {**session, "threads": max(1, (session.get("threads") or cores()) // size)}
    listener = socket.create_server(("127.0.0.1", 0))  # the store alone would listen on every network
    port = listener.getsockname()[1]
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    ranks: list[_Rank] = []
    try:
        ranks += (_start(number, size, store.port, given["threads"]) for number in range(size))
        for rank in ranks:
            rank.send({"session": given, "spec": as_dict(spec), "rank": rank.number})
        body = _follow(ranks, on_progress, stop)
    finally:
        for rank in ranks:
            _end(rank)
    return body


def _start(number: int, size: int, port: int, threads: int) -> _Rank:
    from peftbench.run.executors.pool import environment_of

    env = environment_of(threads) | {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is this process's, as it is the agent's under torchrun
    }
    if sys.platform == "linux":
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the ranks are on this machine
    stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the rank
    process = subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", "-m", RANK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,
        env=env,
    )
    return _Rank(number, process, stderr)


def _follow(ranks: list[_Rank], on_progress: Progress, stop: Stop) -> dict[str, Any]:
    """Read what the ranks tell until all have ended, or one has failed."""
    asked_at, begun, failed_at = None, False, None
    ask = _without_life(stop)
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            assert rank.process.stdout is not None
            selector.register(rank.process.stdout, selectors.EVENT_READ, rank)
        while any(rank.ended is None for rank in ranks):
            wanted = ask()
            if wanted and asked_at is None:
                asked_at = time.monotonic()
                if not begun:
                    raise Abandoned("stopped on request before the first step")
                for rank in ranks:
                    rank.send({"do": "abandon"})
            if asked_at is not None and time.monotonic() - asked_at > STOPS_SECONDS:
                raise Abandoned(
                    f"stopped on request; no step ended in {STOPS_SECONDS:g} s, so its processes were killed"
                )
            for key, _ in selector.select(POLL_SECONDS):
                rank = key.data
                received = os.read(key.fd, 65536)
                *lines, rank.unread = (rank.unread + received).split(b"\n")
                for message in map(json.loads, lines):
                    if message["event"] == "alive":
                        stop()  # a step has ended: what watches the time of steps may know
                    elif message["event"] == "progress":
                        begun = begun or "step" in message["progress"]
                        on_progress(message["progress"])
                    else:
                        rank.ended = message
                if not received:
                    selector.unregister(key.fileobj)
                    if rank.ended is None:
                        rank.ended = _death(rank)
            if failed_at is None and any(_has_failed(rank) for rank in ranks):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > SETTLE_SECONDS:
                break
    if failed := [rank for rank in ranks if _has_failed(rank)]:
        raise _error_of(min(failed, key=_priority))
    first = ranks[0].ended
    assert first is not None
    return dict(first["body"])


def _without_life(stop: Stop) -> Stop:
    """`stop`, for a process that takes no steps: asking often is no sign that one has ended.

    Raises:
        TimedOut: as `stop` does.
    """
    watch = getattr(stop, "__self__", None)
    if not isinstance(watch, Deadline):
        return stop

    def ask() -> bool:
        watch.check()
        return watch.ask()

    return ask


def _has_failed(rank: _Rank) -> bool:
    return rank.ended is not None and rank.ended["event"] != "finished"


def _death(rank: _Rank) -> dict[str, Any]:
    code = rank.process.wait()
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    return {"event": "failed", "kind": "death", "message": f"its process {how}", "traceback": rank.tail()}


def _priority(rank: _Rank) -> tuple[bool, bool, int]:
    """Order failures: what a rank did by itself first, then deaths, then what it lost with another rank."""
    assert rank.ended is not None
    told = f"{rank.ended['message']} {rank.ended.get('traceback')}"
    lost = any(words in told for words in LOST)
    return lost, rank.ended["kind"] == "death", rank.number


def _error_of(rank: _Rank) -> Exception:
    """The exception that a rank raised, as the session that starts the ranks raises it."""
    ended = rank.ended
    assert ended is not None
    if ended.get("surroundings"):
        return ProcessDied(f"rank {rank.number}: {ended['message']}")
    if ended["kind"] == "user":
        return UserError(ended["message"])
    if ended["kind"] == "abandoned":
        return Abandoned(ended["message"])
    if ended["kind"] == "diverged":
        return Diverged.of(ended["message"], ended["body"])
    made = ProcessDied if ended["kind"] == "death" else RankFailed
    error = made(f"rank {rank.number}: {ended['message']}")
    if ended.get("traceback"):
        error.add_note(f"in rank {rank.number}:\n{ended['traceback']}")
    return error


def _end(rank: _Rank) -> None:
    assert rank.process.stdin is not None
    assert rank.process.stdout is not None
    if rank.ended is None or rank.ended["event"] != "finished":
        rank.process.kill()
    rank.process.stdin.close()
    rank.process.wait()
    rank.process.stdout.close()
    rank.stderr.close()
