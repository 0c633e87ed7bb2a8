"""The executor `local`: worker processes on this machine, fed from one queue.

A worker keeps its backbone and data loaded between jobs, so an idle worker takes the job for which it has the least to
load.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from peftbench.run.executors import Event, Notice, Setup, Started
from peftbench.run.executors.pool import Pool
from peftbench.run.jobs import Job


class LocalExecutor:
    """Carries out jobs in a pool of worker processes; see `Executor` for what each method promises."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.pool = setup, Pool(setup)
        self._queue: list[Job] = []

    @property
    def busy(self) -> bool:
        return bool(self._queue or self.pool.busy())

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def poll(self, timeout_seconds: float) -> list[Event]:
        started = self._start_jobs()
        events = self.pool.poll(0 if started else timeout_seconds)
        if not self._queue:  # no worker takes the place of one that died
            events = [e for e in events if not isinstance(e, Notice)]
        return [*started, *events]

    def abandon(self) -> None:
        self._queue.clear()
        self.pool.abandon()

    def kill(self, reason: str) -> None:
        self._queue.clear()
        self.pool.kill(reason)

    def close(self, patience_seconds: float = 5) -> None:
        self.pool.close(patience_seconds)

    def _start_jobs(self) -> list[Started]:
        """Start the workers that the queue is worth, and give each idle one the job that suits it best."""
        if self._queue:
            self.pool.grow(min(self.setup.slots, len(self._queue) + len(self.pool.busy())))
        events = []
        for worker in self.pool.idle()[: len(self._queue)]:
            others = [w for w in self.pool.workers.values() if w is not worker]
            job = min(self._queue, key=lambda j: affinity(j, worker, others))  # the first of equals: the plan's order
            self._queue.remove(job)
            self.pool.give(worker, job)
            events.append(Started(worker.number, job))
        return events


class Loaded(Protocol):
    """A worker that still has loaded what its last job needed."""

    @property
    def last_job(self) -> Job | None: ...


def affinity(job: Job, worker: Loaded, others: Iterable[Loaded]) -> tuple[int, bool]:
    """The cost of giving `job` to `worker`; the smallest is best.

    Returns:
        How much the worker would have to load (a backbone counts 2, data 1), and then whether another worker has
        exactly that loaded.
    """
    backbone, task = job.spec.backbone, job.spec.task
    loaded = [(w.last_job.spec.backbone, w.last_job.spec.task) for w in (worker, *others) if w.last_job]
    mine = loaded.pop(0) if worker.last_job else (None, None)
    missing = 2 * (backbone != mine[0]) + (task != mine[1])
    return missing, (backbone, task) in loaded
