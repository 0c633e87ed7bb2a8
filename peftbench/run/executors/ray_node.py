"""A worker on a node of a ray cluster: an actor that has one worker process and brings its records to the driver.

The process is that of the executor `local` (worker.py), with the same environment, guard and time limits, so that a run
computes the same and leaves the same record. The actor's process only passes messages on. It has a folder of its own on
the node, where the worker process writes its records and adapters; no file system is shared.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import files, record, scratch
from peftbench.run.executors import Ended, Event, ExecutorError, Notice, Progressed, Setup, ray_versions
from peftbench.run.executors.pool import Pool
from peftbench.run.executors.ray_files import Tree, arguments
from peftbench.run.failures import describe
from peftbench.run.jobs import Job

ADAPTERS = "adapters"  # below the worker's folder


class NodeWorker:
    """What runs on a node; the driver (ray_driver.py) is the only caller, and calls one method after another."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._trees: dict[str, Tree] = {}
        self._pool: Pool | None = None
        self._next: Job | None = None
        self._failure: dict[str, Any] | None = None
        self._abandoned = self._never_began = False
        self._sent = 0  # when the checkpoint that the driver has was written, in nanoseconds

    def versions(self) -> dict[str, str | None]:
        """What the driver compares with its own."""
        return ray_versions.here()

    def lacking(self, trees: Sequence[Mapping[str, Any]]) -> list[str]:
        """The keys of the trees that this node does not have yet."""
        self._trees = {(tree := Tree.from_json(d)).key: tree for d in trees}
        return [key for key, tree in self._trees.items() if tree.is_lacking]

    def install(self, key: str, pieces: Sequence[tuple[str, Any]]) -> None:
        """Copy a tree from the object store into the cache of the node."""
        import ray

        try:
            self._trees[key].install(pieces, ray.get)
        except Exception as error:
            self._fail(error)

    def start(self, session: str, kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Start the worker process.

        Args:
            session, kwargs: as in `Setup`; paths are those of the driver's machine.
            options: further fields of `Setup`, and `env`, environment variables of the process.
        """
        try:
            os.environ.update(options["env"])
            self._folder = self._stack.enter_context(scratch.folder("ray"))
            _forget_path_of_ray()
            own = arguments(kwargs, list(self._trees.values()))
            if own.get("adapters") is not None:
                own["adapters"] = str(self._folder / ADAPTERS)
            if own.get("checkpoints") is not None:
                own["checkpoints"] = {**own["checkpoints"], "folder": str(self._folder / record.CHECKPOINTS)}
            given = {name: options[name] for name in ("jobs", "threads", "exclusive", "devices")}
            self._pool = Pool(Setup(session, own, **given))
        except Exception as error:
            self._fail(error)

    def give(self, job: Mapping[str, Any], checkpoint: bytes | None = None) -> None:
        """Accept a job; the worker process has it as soon as it is idle.

        Args:
            job: as `Job.to_json` gives it.
            checkpoint: of an earlier attempt, which this one goes on from; None for none.
        """
        if checkpoint is not None:
            path = self._checkpoint_of(Job.from_json(job))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(checkpoint)
            self._sent = path.stat().st_mtime_ns
        self._next = replace(Job.from_json(job), results_dir=str(self._folder))

    def poll(self, seconds: float, wanted: bool) -> dict[str, Any]:
        """What has happened, after waiting at most so many seconds for something that the driver acts on.

        Args:
            seconds: how long to wait.
            wanted: whether there are jobs for a worker process, so that one starts where there is none.

        Returns:
            "idle": whether a job can be given; "env": what records say of the worker process, None before it is ready;
            "progress": how far the job is, None for no news; "checkpoint": the name and size of a new checkpoint of
            the job, None for none; "ended": the end of the job with its records, None while it runs; "notices":
            sentences for the user; "failed": why this node cannot carry out jobs, or None.
        """
        news: dict[str, Any] = {"idle": False, "env": None, "progress": None, "ended": None, "notices": []}
        news["checkpoint"] = None
        deadline = time.monotonic() + seconds
        if self._never_began:
            self._never_began = False
            facts = {"status": "abandoned", "reason": "stopped before it began", "seconds": 0.0, "metrics": None}
            news["ended"] = {"facts": facts, "records": [], "adapters": []}
        try:
            while self._failure is None:
                assert self._pool is not None
                if (wanted or self._next) and not self._abandoned:
                    self._pool.grow(1)
                self._give_next()
                was_idle = bool(self._pool.idle())
                for event in self._pool.poll(max(0.0, deadline - time.monotonic())):
                    self._note(event, news)
                is_idle = bool(self._pool.idle())
                if (
                    news["ended"]
                    or news["notices"]
                    or news["checkpoint"]
                    or is_idle > was_idle
                    or time.monotonic() >= deadline
                ):
                    break
        except Exception as error:
            self._fail(error)
        idle = self._pool.idle() if self._pool is not None else []
        env = idle[0].env if idle else None
        return news | {"idle": bool(idle) and self._next is None, "env": env, "failed": self._failure}

    def abandon(self) -> None:
        """Ask the job to stop between two steps."""
        self._stop()
        if self._pool is not None:
            self._pool.abandon()

    def kill(self, reason: str) -> None:
        """End the job at once."""
        self._stop()
        if self._pool is not None:
            self._pool.kill(reason)

    def read(self, name: str, start: int, count: int) -> bytes:
        """A part of an adapter file or of a checkpoint; the file is removed with its last byte.

        Args:
            name: the file, as `poll` has named it.
            start: the first byte.
            count: the number of bytes at most.
        """
        path = self._folder / ADAPTERS / name
        with open(path, "rb") as file:
            file.seek(start)
            part = file.read(count)
        if start + len(part) >= path.stat().st_size:
            path.unlink()
        return part

    def close(self, patience_seconds: float) -> None:
        """End the worker process and remove the folder."""
        if self._pool is not None:
            self._pool.close(patience_seconds)
            self._pool = None
        self._stack.close()

    def _stop(self) -> None:
        """Start no worker process any more; a job that none has had yet ends without having begun."""
        self._abandoned, self._never_began, self._next = True, self._next is not None, None

    def _give_next(self) -> None:
        assert self._pool is not None
        if self._next is not None and (idle := self._pool.idle()):
            self._pool.give(idle[0], self._next)
            self._next = None

    def _note(self, event: Event, news: dict[str, Any]) -> None:
        match event:
            case Progressed(_, job, facts):
                news["progress"] = dict(facts)
                news["checkpoint"] = self._new_checkpoint(job)
            case Notice(text):
                news["notices"].append(text)
            case Ended(_, job, facts):
                news["checkpoint"] = self._new_checkpoint(job)
                news["ended"] = {"facts": dict(facts), "records": self._records(), "adapters": self._adapters(job)}

    def _records(self) -> list[dict[str, Any]]:
        """The bodies of the records in the folder, which are removed from it."""
        bodies = []
        for path in record.paths(self._folder):
            bodies.append(files.decode(files.read_bytes(path), path, predictions=True))
            path.unlink()
        return bodies

    def _adapters(self, job: Job) -> list[tuple[str, int]]:
        """The adapter files of the job, each with its size in bytes."""
        folder = self._folder / ADAPTERS
        return [(p.name, p.stat().st_size) for p in sorted(folder.glob(f"*--{job.spec.id}.*")) if p.is_file()]

    def _checkpoint_of(self, job: Job) -> Path:
        return self._folder / record.CHECKPOINTS / f"{job.spec.id}.pt"

    def _new_checkpoint(self, job: Job) -> tuple[str, int] | None:
        """A name for the job's checkpoint as it is now, and its size; None if the driver has it, or there is none.

        The name is another link to the file, which the worker process replaces and never changes.
        """
        path, name = self._checkpoint_of(job), f"{job.spec.id}.checkpoint"
        if not path.exists() or path.stat().st_mtime_ns == self._sent:
            return None
        link = self._folder / ADAPTERS / name
        link.parent.mkdir(exist_ok=True)
        if link.exists():  # the driver still reads the one before
            return None
        os.link(path, link)
        self._sent = path.stat().st_mtime_ns
        return name, link.stat().st_size

    def _fail(self, error: Exception) -> None:
        by_user = isinstance(error, UserError)
        facts = describe(error)
        message = facts["message"] if by_user or isinstance(error, ExecutorError) else facts["traceback"]
        self._failure = {"by_user": by_user, "message": message}


def _forget_path_of_ray() -> None:
    """Take the folders of ray's own copies of packages off the import path, which worker processes inherit."""
    import ray

    folder = Path(ray.__file__).parent
    sys.path[:] = [p for p in sys.path if not Path(p).is_relative_to(folder)]
