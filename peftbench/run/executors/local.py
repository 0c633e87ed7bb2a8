"""The executor `local`: worker processes on this machine, fed from one queue.

A worker keeps its backbone and data loaded between jobs, so an idle worker takes the job for which it has the least to
load. On a machine with CUDA devices, each worker has a card of its own (devices.py), or several share one as far as its
memory holds them (packing.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from peftbench.run.executors import Event, Notice, Setup, Started, Workers, devices
from peftbench.run.executors.packing import Packer
from peftbench.run.executors.pool import Pool
from peftbench.run.jobs import Job


class LocalExecutor:
    """Carries out jobs in a pool of worker processes; see `Executor` for what each method promises.

    Args:
        setup: the session and the options.
        find_cards: returns the CUDA devices of this machine.

    Raises:
        UserError: an option is not valid here, or there are more jobs than cards and `pack` is not given.
    """

    shares_files = True
    OPTIONS: Mapping[str, str] = {
        "devices": "the GPUs to use, by their numbers from 0: 0,2; all that are visible by default",
        "pack": "true to run several jobs on one GPU, as many as its memory holds by the prediction",
    }

    def __init__(self, setup: Setup, find_cards: devices.Find = devices.visible) -> None:
        layout = devices.layout(setup.kwargs.get("device", "cpu"), setup.options, setup.devices, find_cards)
        devices.check(layout, setup.slots)
        self.setup, self.pool = setup, Pool(setup, layout.environments(setup.slots))
        self._queue: list[Job] = []
        self._packer = Packer(self.pool, layout, setup) if layout.packed and not setup.exclusive else None

    @staticmethod
    def needs_peaks(options: Mapping[str, str]) -> bool:
        """Whether it wants the predicted memory peaks of the runs: only to pack them."""
        return devices.is_packed(options)

    @staticmethod
    def workers(
        device: str, options: Mapping[str, str], given: int | None, in_file: int | None, each: int = 1
    ) -> Workers:
        """How many jobs run side by side; see `executors.workers`."""
        return devices.workers(devices.layout(device, options, each, devices.visible), given, in_file)

    @property
    def busy(self) -> bool:
        return bool(self._queue or self.pool.busy())

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def poll(self, timeout_seconds: float) -> list[Event]:
        started = self._packer.start_jobs(self._queue) if self._packer else self._start_jobs()
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
