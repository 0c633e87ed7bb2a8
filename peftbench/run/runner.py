"""The one loop from plan to records: ask the plan what is next, let workers do it, and ask again.

What has a finished record is not run again, so that running the same command again resumes. Every attempt leaves a
record, whatever happens to it; one invocation attempts each spec at most once, so that a run that kills its worker
does not do so for ever.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.records import record
from peftbench.records.spec import ProfileSpec, RunSpec, Spec, title
from peftbench.run import lock
from peftbench.run.jobs import Job
from peftbench.run.pool import Event, Pool, Worker, affinity
from peftbench.run.view import Quiet, View

SESSION = "peftbench.run.session:Session"
GRACE_SECONDS = 15  # for a worker to reach its next step after the first Ctrl-C
POLL_SECONDS = 0.1
INTERRUPTED = 130

Planner = Callable[[list[record.Record]], Iterable[Spec]]


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended. `counts`: by status, how the plan's specs stand; `failed`: those that failed, in words.

    `code`: 0 all finished (a tuning trial may have diverged), 1 some failed, 130 interrupted. (2, a user's mistake, is
    the UserError that `run` raises.)
    """

    code: int
    counts: Mapping[str, int]
    failed: tuple[str, ...]


def run(
    specs_for: Planner,
    results_dir: Path,
    *,
    experiment: str,
    reference: str = ProfileSpec.reference,
    overrides: Sequence[str] = (),
    grid: Iterable[Spec] = (),
    expected: int = 0,
    session: str = SESSION,
    session_kwargs: Mapping[str, Any] | None = None,
    jobs: int = 1,
    threads: int | None = None,
    profile_threads: int | None = None,
    retry_failed: bool = False,
    again: bool = False,
    view: View | None = None,
) -> Outcome:
    """Run what `specs_for(records)` returns, and call it again with the new records until nothing is left to run.

    Args:
        specs_for: the plan; it may return specs that are done, they are not repeated. Training runs go first; profile
            passes run one at a time when nothing else does.
        grid: all that the experiment asks for, where the plan leaves out what is done: counts and exit code cover it.
        expected: how many specs there will be at the least, where some wait for others: progress counts them.
        experiment, reference: the name that the records bear, and the label that reports compare them with.
        overrides: what stood in place of the file's values, as `--set` takes it; records keep it.
        session, session_kwargs: what each worker builds once (see workers.Pool); `threads` and `shared` are added.
        jobs: workers that train side by side. Above 1 they share the machine, and records carry no times.
        threads: of each training worker; by default the cores are divided among the jobs.
        profile_threads: of the profile pass; by default all cores.
        retry_failed: repeat diverged, oom and error too; killed and abandoned are always repeated.
        again: attempt once more what is finished too; the outcome is then that of the newest attempts.
        view: what is told of progress; by default only what goes wrong is said, on standard error.

    Raises UserError where the directory is in use or cannot be written, or the session refuses what it was given.
    """
    kwargs = dict(session_kwargs or {})
    alone = kwargs | {"threads": profile_threads or cores(), "shared": False}
    together = kwargs | {"threads": threads or max(1, cores() // jobs), "shared": jobs > 1}
    with lock.hold(Path(results_dir)) as fd, ExitStack() as stack:
        view = view or Quiet()
        stack.callback(view.close)
        sweep(Path(results_dir))
        asked = {spec.id: spec for spec in grid}

        def job_of(spec: Spec) -> Job:
            kind = "run" if isinstance(spec, RunSpec) else "profile"
            return Job(kind, spec, experiment, str(results_dir), reference, tuple(overrides))

        state = _Grid(specs_for, Path(results_dir), job_of, retry_failed, again, view, asked, expected)
        crew = stack.enter_context(_Crew(session, fd))
        try:
            while not state.interrupted and (next_up := state.next_up()):
                runs = [s for s in next_up if isinstance(s, RunSpec)]
                if runs:
                    state.carry_out(runs, crew.pool(together), jobs)
                else:
                    state.carry_out(next_up, crew.pool(alone), 1)
        except KeyboardInterrupt:  # while planning or loading, when no run is under way
            state.interrupted = True
        sweep(Path(results_dir))
        return state.outcome()


def cores() -> int:
    """Processor cores that this process may use."""
    affine = getattr(os, "sched_getaffinity", None)
    return len(affine(0)) if affine else os.cpu_count() or 1


def sweep(results_dir: Path) -> None:
    """Remove what writers that were killed left unfinished. Only for the holder of the lock."""
    for path in (results_dir / record.FOLDER).glob(".*.tmp"):
        path.unlink(missing_ok=True)


@dataclass
class _Crew:
    """The pool of the moment: kept while it fits, closed before another is opened, so that a profile is alone."""

    session: str
    lock_fd: int
    current: Pool | None = None

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.current is not None:
            self.current.__exit__(kind, error, trace)

    def pool(self, kwargs: Mapping[str, Any]) -> Pool:
        if self.current is None or self.current.kwargs != kwargs:
            if self.current is not None:
                self.current.close()
            self.current = Pool(self.session, kwargs, keep_open=(self.lock_fd,))
        return self.current


@dataclass
class _Grid:
    """The state of one invocation: what was asked for, what has been tried, and who is told."""

    specs_for: Planner
    results_dir: Path
    job_of: Callable[[Spec], Job]
    retry_failed: bool
    again: bool
    view: View
    asked: dict[str, Spec]
    expected: int = 0
    tried: set[str] = field(default_factory=set)
    interrupted: bool = False

    def next_up(self) -> list[Spec]:
        """What to run now, by the plan and the records on the disk."""
        records = record.read_all(self.results_dir)
        latest = record.latest(records)
        planned = {spec.id: spec for spec in self.specs_for(records)}
        self.asked |= planned
        todo = [s for key, s in planned.items() if key not in self.tried and self._is_open(latest.get(key))]
        total = max(len(self.asked), self.expected)
        self.view.planned(total, len(self.asked) - len(todo))
        return todo

    def carry_out(self, specs: Sequence[Spec], pool: Pool, size: int) -> None:
        """Run the specs in the pool's workers, `size` at a time; returns early, and in order, when interrupted."""
        pending = [self.job_of(spec) for spec in specs]
        with interrupts() as pressed:
            while (pending or pool.busy()) and not pressed:
                pool.grow(min(size, len(pending) + len(pool.busy())))
                for worker in pool.idle():
                    if pending:
                        self._give(pool, worker, pending)
                self._hear(pool)
            if pressed:
                self._stop(pool, pressed)

    def outcome(self) -> Outcome:
        records = record.read_all(self.results_dir)
        latest = record.newest(records) if self.again else record.latest(records)
        stands = {key: latest[key].status if key in latest else "not run" for key in self.asked}
        failed = tuple(
            f"{title(self.asked[key])} ({status})"
            for key, status in stands.items()
            if status not in ("finished", "not run") and not _only_lost(self.asked[key], status)
        )
        counts = Counter(stands.values())
        if self.interrupted:
            done = f"{counts['finished']} of {len(stands)} finished"
            self.view.note(f"interrupted: {done}. Run the same command again to resume.")
            return Outcome(INTERRUPTED, counts, failed)
        if failed:
            self.view.note(_advice(failed, stands.values()))
        return Outcome(1 if failed else 0, counts, failed)

    def _is_open(self, last: record.Record | None) -> bool:
        if self.again or last is None or last.status in record.RETRIED:
            return True
        return self.retry_failed and not last.is_finished

    def _give(self, pool: Pool, worker: Worker, pending: list[Job]) -> None:
        others = [w for w in pool.workers.values() if w is not worker]
        job = min(pending, key=lambda j: affinity(j, worker, others))  # the first of equals: the plan's order
        pending.remove(job)
        self.tried.add(job.spec.id)
        pool.give(worker, job)
        self.view.started(worker.number, job.spec)

    def _hear(self, pool: Pool) -> None:
        for event in pool.poll(POLL_SECONDS):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        if event.kind == "progress":
            self.view.stepped(event.worker, event.facts["progress"])
        elif event.kind == "ended" and event.job is not None:
            self.view.ended(event.worker, event.job.spec, event.facts)
        elif event.kind == "replaced" and not self.interrupted:
            self.view.note(f"{event.facts['reason']}; another takes its place")

    def _stop(self, pool: Pool, pressed: Sequence[int]) -> None:
        """After a first Ctrl-C: let each run stop between two steps; after a second, or too long, kill it."""
        self.interrupted = True
        self.view.note("stopping: the current runs are abandoned at their next step. Press Ctrl-C again to kill them.")
        pool.abandon()
        deadline = time.monotonic() + GRACE_SECONDS
        killed = False
        while pool.busy():
            if not killed and (len(pressed) > 1 or time.monotonic() > deadline):
                pool.kill("interrupted" if len(pressed) > 1 else f"interrupted; no step ended in {GRACE_SECONDS} s")
                killed = True
            self._hear(pool)


def _only_lost(spec: Spec, status: str) -> bool:
    """A tuning trial that diverged has told what it was run for: that its values lose."""
    return isinstance(spec, RunSpec) and spec.trial is not None and status == "diverged"


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in the list instead of acting on them; only the main thread can."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = {s: signal.signal(s, lambda number, _: pressed.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _advice(failed: Sequence[str], statuses: Iterable[str]) -> str:
    """Which runs failed, and what repeats them."""
    stands = set(statuses)
    again = []
    if stands & set(record.RETRIED):
        again.append("killed and abandoned runs are repeated by running again")
    if stands & {"diverged", "oom", "error"}:
        again.append("diverged, oom and error runs are repeated by --retry-failed")
    listed = "".join(f"\n  {name}" for name in failed)
    return f"{len(failed)} without a result:{listed}\n{'; '.join(again)}."
