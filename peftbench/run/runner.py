"""The one loop from plan to records: ask the plan what is next, let an executor carry it out, and ask again.

What has a finished record is not run again, so running the same command again resumes. Every attempt leaves a record,
whatever happens to it. One invocation attempts each spec at most once, so that a run that kills its worker does not
do so for ever.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from peftbench import cache
from peftbench.records import record, scratch
from peftbench.records.retries import ATTEMPTS, NO_LIMITS, STOPPED, Retries, TimeLimits
from peftbench.records.spec import ProfileSpec, RunSpec, Spec, title
from peftbench.run import executors, lock
from peftbench.run.executors import Ended, Event, Executor, Notice, Progressed, Setup, Started
from peftbench.run.jobs import Job
from peftbench.run.view import Quiet, View

SESSION = "peftbench.run.session:Session"
GRACE_SECONDS = 15  # for a run to reach its next step after the first Ctrl-C
POLL_SECONDS = 0.1
INTERRUPTED = 130

Planner = Callable[[list[record.Record]], Iterable[Spec]]


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended.

    Attributes:
        code: 0 all finished (a tuning trial may have diverged), 1 some failed, 130 interrupted. (2, a user's mistake,
            is the UserError that `run` raises.)
        counts: how many of the plan's specs have each status.
        failed: those that failed, in words.
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
    design: Mapping[str, Any] | None = None,
    grid: Iterable[Spec] = (),
    expected: Callable[[list[record.Record]], int] = lambda _: 0,
    session: str = SESSION,
    session_kwargs: Mapping[str, Any] | None = None,
    jobs: int = 1,
    threads: int | None = None,
    profile_threads: int | None = None,
    executor: str = "local",
    options: Mapping[str, str] | None = None,
    peaks: Mapping[str, int] | None = None,
    devices: int = 1,
    retry_failed: bool = False,
    limits: TimeLimits = NO_LIMITS,
    again: bool = False,
    view: View | None = None,
) -> Outcome:
    """Run what `specs_for(records)` returns, and call it again with the new records until nothing is left to run.

    Args:
        specs_for: the plan; it may return specs that are done, they are not repeated. Training runs go first; profile
            passes run one at a time when nothing else does.
        results_dir: where records go; made if missing, and locked meanwhile.
        design: what the experiment asks of its comparison, as JSON; records keep it.
        grid: all that the experiment consists of, where the plan leaves out what is done: counts and exit code
            cover it.
        expected: how many specs there will be at the least by the records, where some wait for others: progress counts
            them.
        experiment, reference: the name that the records bear, and the label that reports compare them with.
        overrides: what stood in place of the file's values, as `--set` takes it; records keep it.
        session, session_kwargs: what each worker builds once (see `executors.Setup`).
        jobs: runs that train side by side. Above 1 they share the machine, and records carry no times.
        threads: of each training run; by default the cores are divided among the jobs.
        profile_threads: of the profile pass; by default all cores.
        executor: the name of what carries out the jobs (see `executors.find`).
        options, peaks, devices: its own options, the predicted memory of the runs, and how many devices each takes
            (see `executors.Setup`).
        retry_failed: repeat diverged, oom, error and timeout too, and what is given up; see records/retries.py.
        limits: seconds after which an attempt is ended. A profile pass may take those of a run for each of its methods.
        again: attempt once more what is finished too; the outcome is then that of the newest attempts.
        view: where progress is shown; by default only failures are, on standard error.

    Raises:
        UserError: the directory is in use or cannot be written, no executor has this name, or the session refuses
            its arguments.
        ExecutorError: the executor cannot carry out jobs here.
    """
    open_executor = executors.find(executor)
    executors.check_options(executor, options or {})
    with lock.hold(Path(results_dir)) as fd, ExitStack() as stack:
        view = view or Quiet()
        stack.callback(view.close)
        sweep(Path(results_dir))

        def job_of(spec: Spec) -> Job:
            kind, most = "run", limits
            if isinstance(spec, ProfileSpec):
                kind, most = "profile", replace(most, run=most.run and most.run * len(spec.methods))
            return Job(kind, spec, experiment, str(results_dir), reference, tuple(overrides), most, design)

        training = Setup(
            session,
            session_kwargs or {},
            jobs,
            threads,
            keep_open=(fd,),
            options=dict(options or {}),
            peaks=dict(peaks or {}),
            devices=devices,
        )
        timing = replace(training, threads=profile_threads, exclusive=True)
        planned = {spec.id: spec for spec in grid}
        retry = partial(Retries, failed=retry_failed, limits=limits)
        state = _Grid(specs_for, Path(results_dir), job_of, retry, again, view, planned, expected)
        current = stack.enter_context(_CurrentExecutor(open_executor))
        try:
            while not state.interrupted and (todo := state.next_specs()):
                runs = [s for s in todo if isinstance(s, RunSpec)]
                state.carry_out(runs or todo, current.opened(training if runs else timing))
        except KeyboardInterrupt:  # while planning or loading, when no run is under way
            state.interrupted = True
        sweep(Path(results_dir))
        return state.outcome()


def sweep(results_dir: Path) -> None:
    """Remove what processes that were killed left: in the results, in the cache, and in the system's folder."""
    scratch.sweep(*(results_dir / name for name in ("", record.FOLDER, "adapters", record.CHECKPOINTS)))
    scratch.sweep_system()
    cache.sweep()


@dataclass
class _CurrentExecutor:
    """At most one executor is open: it is kept while its setup fits and closed before another opens.

    Jobs that measure time therefore never share the machine with those that train.
    """

    open_executor: executors.Open
    executor: Executor | None = None
    setup: Setup | None = None

    def __enter__(self) -> _CurrentExecutor:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.executor is not None:
            self.executor.close(patience_seconds=0 if error else 5)

    def opened(self, setup: Setup) -> Executor:
        """The executor with this setup."""
        if self.executor is None or self.setup != setup:
            if self.executor is not None:
                self.executor.close()
                self.executor = None
            self.executor, self.setup = self.open_executor(setup), setup
        return self.executor


@dataclass
class _Grid:
    """The state of one invocation: what is planned, what has been attempted, and where progress is shown."""

    specs_for: Planner
    results_dir: Path
    job_of: Callable[[Spec], Job]
    retry: Callable[[Iterable[record.Record]], Retries]
    again: bool
    view: View
    planned: dict[str, Spec]
    expected: Callable[[list[record.Record]], int] = lambda _: 0
    attempted: set[str] = field(default_factory=set)
    interrupted: bool = False

    def next_specs(self) -> list[Spec]:
        """What to run now, by the plan and the records on the disk."""
        records = record.readable(self.results_dir)
        retries = self.retry(records)
        planned = {spec.id: spec for spec in self.specs_for(records)}
        self.planned |= planned
        todo = [s for key, s in planned.items() if key not in self.attempted and (self.again or retries.is_open(key))]
        total = max(len(self.planned), self.expected(records))
        self.view.planned(total, len(self.planned) - len(todo))
        return todo

    def carry_out(self, specs: Sequence[Spec], executor: Executor) -> None:
        """Submit the specs and follow them until all have ended, or until they are interrupted."""
        with interrupts() as signals:
            for spec in specs:
                self.attempted.add(spec.id)
                executor.submit(self.job_of(spec))
            while executor.busy and not signals:
                self._show(executor.poll(POLL_SECONDS))
            if signals:
                self._interrupt(executor, signals)

    def outcome(self) -> Outcome:
        """How the planned specs stand, by the records on the disk."""
        records = record.readable(self.results_dir)
        latest = record.newest(records) if self.again else record.latest(records)
        record.discard_checkpoints(self.results_dir, records)
        statuses = {key: latest[key].status if key in latest else "not run" for key in self.planned}
        lost = set() if self.interrupted else self.attempted  # an executor may end a job without a record
        failed = tuple(
            f"{title(self.planned[key])} ({status})"
            for key, status in statuses.items()
            if (status != "not run" or key in lost) and status != "finished"
            if not _is_lost_trial(self.planned[key], status)
        )
        counts = Counter(statuses.values())
        if self.interrupted:
            done = f"{counts['finished']} of {len(statuses)} finished"
            self.view.note(f"interrupted: {done}. Run the same command again to resume.")
            return Outcome(INTERRUPTED, counts, failed)
        if failed:
            retries = Retries(records)
            given_up = sum(map(retries.is_given_up, self.planned))
            self.view.note(_advice(failed, statuses.values(), given_up))
        return Outcome(1 if failed else 0, counts, failed)

    def _show(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Started(worker, job):
                    self.view.started(worker, job.spec)
                case Progressed(worker, _, facts):
                    self.view.stepped(worker, facts)
                case Ended(worker, job, facts):
                    self.view.ended(worker, job.spec, facts)
                case Notice(text):
                    self.view.note(text)

    def _interrupt(self, executor: Executor, signals: Sequence[int]) -> None:
        """After a first Ctrl-C, let each run stop between two steps; after a second, or too long, kill it."""
        self.interrupted = True
        self.view.note("stopping: the current runs are abandoned at their next step. Press Ctrl-C again to kill them.")
        executor.abandon()
        deadline = time.monotonic() + GRACE_SECONDS
        killed = False
        while executor.busy:
            if not killed and (len(signals) > 1 or time.monotonic() > deadline):
                reason = STOPPED if len(signals) > 1 else f"{STOPPED}; no step ended in {GRACE_SECONDS} s"
                executor.kill(reason)
                killed = True
            self._show(executor.poll(POLL_SECONDS))


def _is_lost_trial(spec: Spec, status: str) -> bool:
    """Whether a tuning trial diverged: that is a result, as its values lose."""
    return isinstance(spec, RunSpec) and spec.trial is not None and status == "diverged"


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C, SIGTERM and SIGHUP in the list instead of acting on them; only the main thread can.

    SIGHUP says that the terminal is gone; where `nohup` has it ignored, it stays so.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {s: signal.signal(s, lambda number, _: received.append(number)) for s in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _advice(failed: Sequence[str], statuses: Iterable[str], given_up: int) -> str:
    """Which runs failed, and what repeats them.

    Args:
        failed: the runs.
        statuses: of all runs of the plan.
        given_up: how many of them were killed or interrupted too often to be repeated without a request.
    """
    counts = Counter(statuses)
    again = []
    if sum(counts[s] for s in record.RETRIED) > given_up:
        again.append("killed, interrupted and abandoned runs are repeated by running again")
    if given_up:
        times = f"{ATTEMPTS} or more attempts were killed or interrupted"
        again.append(f"{given_up} given up, because {times}: --retry-failed tries again")
    if counts["timeout"]:
        again.append("timeout runs are repeated under a higher --timeout, or by --retry-failed")
    if any(counts[s] for s in ("diverged", "oom", "error")):
        again.append("diverged, oom and error runs are repeated by --retry-failed")
    if counts["not run"]:
        again.append("the executor left no record of those not run")
    listed = "".join(f"\n  {name}" for name in failed)
    return f"{len(failed)} without a result:{listed}\n{'; '.join(again)}."
