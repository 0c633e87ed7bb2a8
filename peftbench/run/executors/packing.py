"""Several jobs on one card, as far as its memory holds them by the prediction: `--pack`.

A process on a card is counted with the predicted peak of its job and `OVERHEAD_BYTES`. After the job it is counted so
until it ends, because its network stays loaded for the next job. It takes further jobs of that network and task alone,
so that it never holds two networks. A job whose peak is unknown has its card to itself, and so has one that fits on no
card: it is tried, and its record says what came of it.

The prediction is of tensors. It knows nothing of what other programs hold on the card, and a job may run out of memory
because of the others; its attempt is then repeated by the next command (see `SessionHost.carry_out`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftbench.records.spec import ProfileSpec, RunSpec, as_dict, digest
from peftbench.run.executors import Setup, Started
from peftbench.run.executors.devices import Layout
from peftbench.run.executors.pool import Pool, WorkerProcess
from peftbench.run.jobs import Job

# What a process holds on a card besides the tensors of its step: the CUDA context and the code of the kernels (0.3 to
# 0.6 GiB), the workspaces of cuBLAS, and blocks that the allocator keeps and cannot use.
OVERHEAD_BYTES = 2**30


@dataclass(frozen=True)
class Tenant:
    """A worker process on a card.

    Attributes:
        worker: its number.
        card: the number of the card.
        bytes: what it holds there, or will; None: the card is its own.
        idle: whether it may take a job, or be ended.
        loaded: whether it has what the job in question needs.
    """

    worker: int
    card: int
    bytes: int | None
    idle: bool
    loaded: bool = False


@dataclass(frozen=True)
class Place:
    """Where a job goes.

    Attributes:
        card: the number of the card.
        worker: the idle worker that takes it; None for a new one.
        alone: whether the card is its own.
        ended: the idle workers that end first.
    """

    card: int
    worker: int | None
    alone: bool
    ended: tuple[int, ...]


def place(need: int | None, cards: Sequence[int], tenants: Sequence[Tenant], slots: int) -> Place | None:
    """Find a place for a job: on the card with the fewest others, and on those where the fewest workers must end.

    Args:
        need: bytes of its process; None if unknown.
        cards: bytes of each card.
        tenants: all worker processes.
        slots: how many there may be.

    Returns:
        The place; None while there is none.
    """
    alone = need is None or need > max(cards)
    best: tuple[tuple[float, ...], Place] | None = None
    for card, size in enumerate(cards):
        takers = [t for t in tenants if t.card == card and t.idle and t.loaded]
        for taker in (None, *takers):
            others = [t for t in tenants if t is not taker]
            ended = _ended(None if alone else need, size, [t for t in others if t.card == card])
            if ended is None:
                continue
            ended += _surplus(others, ended, slots - 1)
            if len(others) - len(ended) >= slots:
                continue
            running = sum(t.card == card and not t.idle for t in others)
            cost = (running, -size if alone else 0, taker is None, len(ended))
            found = Place(card, taker.worker if taker else None, alone, tuple(t.worker for t in ended))
            if best is None or cost < best[0]:
                best = cost, found
    return best[1] if best else None


def _ended(need: int | None, size: int, others: Sequence[Tenant]) -> list[Tenant] | None:
    """The idle processes of a card that must end for a job that needs so much; None if that is not enough."""
    running = [t.bytes for t in others if not t.idle]
    idle = sorted((t for t in others if t.idle), key=lambda t: math.inf if t.bytes is None else t.bytes)
    if need is None:
        return None if running else idle
    if None in running:
        return None
    room = size - need - sum(held or 0 for held in running)
    if room < 0:
        return None
    ended = []
    for tenant in idle:  # the small ones stay
        if tenant.bytes is None or tenant.bytes > room:
            ended.append(tenant)
        else:
            room -= tenant.bytes
    return ended


def _surplus(others: Sequence[Tenant], ended: Sequence[Tenant], most: int) -> list[Tenant]:
    """Further idle processes that must end so that, without those that end anyway, at most so many are left."""
    left = [t for t in others if t not in ended]
    return [t for t in left if t.idle][: max(0, len(left) - most)]


class Peaks:
    """The predicted peaks of runs. What a run's peak depends on does not change with its seed and learning rate, so
    that a run that follows from tuning trials has the peak of its trials.

    Args:
        known: the peaks in bytes by spec id.
    """

    def __init__(self, known: Mapping[str, int]) -> None:
        self._by_id = known
        self._by_shape: dict[str, int] = {}

    def of(self, spec: RunSpec | ProfileSpec) -> int | None:
        """The peak of a run in bytes; None if unknown, and for a profile pass."""
        if isinstance(spec, ProfileSpec):
            return None
        peak, shape = self._by_id.get(spec.id), _shape(spec)
        if peak is not None:
            self._by_shape[shape] = max(peak, self._by_shape.get(shape, 0))
        return self._by_shape.get(shape)


def _shape(spec: RunSpec) -> str:
    """The digest of all that determines the largest step of a run, up to the texts that its seed draws."""
    free = ("lr", "head_lr", "warmup", "decay", "checkpoint")
    train = {k: v for k, v in as_dict(spec.train).items() if k not in free}
    method = [spec.method.name, spec.method.version, dict(spec.method.hyper)]
    return digest([as_dict(spec.backbone), spec.task.fingerprint, method, train])


class Packer:
    """Starts jobs on the cards of a layout. It gives each new worker its card through the pool's environments.

    Args:
        pool: the worker processes; this object alone starts them.
        layout: the cards, each a group of its own.
        setup: how many workers there may be, and the predicted peaks.
    """

    def __init__(self, pool: Pool, layout: Layout, setup: Setup) -> None:
        self.pool, self.layout, self.slots = pool, layout, setup.slots
        self.cards = [card.bytes for (card,) in layout.groups]
        self._peaks = Peaks(setup.peaks)
        self._needs: dict[str, int | None] = {}  # by spec id
        self._held: dict[int, tuple[int, int | None]] = {}  # by worker: its card, and its bytes there
        self._promised: dict[int, Job] = {}  # the first job of a worker that loads still
        self._seen: object = None
        self._is_full = False  # whether the machine allowed no further process a moment ago

    def start_jobs(self, queue: list[Job]) -> list[Started]:
        """Give jobs of the queue to idle workers, and start workers for others; those leave the queue once they start.

        Raises:
            ExecutorError: no worker process can be started.
        """
        alive = self.pool.workers
        self._held = {number: held for number, held in self._held.items() if number in alive}
        self._promised = {n: job for n, job in self._promised.items() if n in alive and job in queue}
        started = []
        for number, job in list(self._promised.items()):
            if alive[number].is_idle:
                del self._promised[number]
                started.append(self._give(alive[number], job, queue))
        if started or self._is_full or self._state(queue) != self._seen:  # else nothing fits that did not fit before
            started += self._fill(queue)
            self._seen = self._state(queue)
        return started

    def _state(self, queue: list[Job]) -> object:
        """What places depend on."""
        return len(queue), {n: (w.is_idle, n in self._promised) for n, w in self.pool.workers.items()}

    def _fill(self, queue: list[Job]) -> list[Started]:
        """Place as many jobs as fit. Jobs for which a worker has all loaded go first, then the large ones."""
        started: list[Started] = []
        self._is_full = False
        while True:
            promised = {job.spec.id for job in self._promised.values()}
            waiting = [job for job in queue if job.spec.id not in promised]
            loaded = [_loads(w) for w in self.pool.idle() if w.number not in self._promised]
            waiting.sort(key=lambda job: (_of(job) not in loaded, -(self.need(job) or math.inf)))
            hopeless: set[int | None] = set()
            for job in waiting:
                if (need := self.need(job)) in hopeless:
                    continue
                if (found := place(need, self.cards, self._tenants(job), self.slots)) is None:
                    hopeless.add(need)
                    continue
                if not self._take(job, found, started, queue):
                    self._is_full = True
                    return started
                break
            else:
                return started

    def need(self, job: Job) -> int | None:
        """The bytes of a process that runs this job; None if unknown."""
        key = job.spec.id
        if self._needs.get(key) is None:
            peak = self._peaks.of(job.spec)
            self._needs[key] = None if peak is None else peak + OVERHEAD_BYTES
        return self._needs[key]

    def _tenants(self, job: Job) -> list[Tenant]:
        """The worker processes, as the job sees them."""
        found = []
        for number, (card, held) in self._held.items():
            worker = self.pool.workers[number]
            idle = worker.is_idle and number not in self._promised
            found.append(Tenant(number, card, held, idle, idle and _loads(worker) == _of(job)))
        return found

    def _take(self, job: Job, found: Place, started: list[Started], queue: list[Job]) -> bool:
        """Put the job in its place; returns False if the machine allows no further worker process now."""
        for number in found.ended:
            self.pool.dismiss(self.pool.workers[number])
            del self._held[number]
        held = found.card, None if found.alone else self.need(job)
        if found.worker is not None:
            self._held[found.worker] = held
            started.append(self._give(self.pool.workers[found.worker], job, queue))
            return True
        number = min(set(range(1, self.slots + 1)) - set(self.pool.workers))
        self.pool.environments[number] = self.layout.environment(found.card)
        if not self.pool.start(number):
            return False
        self._held[number], self._promised[number] = held, job
        return True

    def _give(self, worker: WorkerProcess, job: Job, queue: list[Job]) -> Started:
        queue.remove(job)
        self.pool.give(worker, job, packed=self._held[worker.number][1] is not None)
        return Started(worker.number, job)


def _of(job: Job) -> tuple[object, object]:
    """What a job loads."""
    return job.spec.backbone, job.spec.task


def _loads(worker: WorkerProcess) -> tuple[object, object] | None:
    """What a worker has loaded."""
    return _of(worker.last_job) if worker.last_job else None
