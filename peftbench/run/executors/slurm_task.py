"""What one task of the array of the executor `slurm` does: claim a job, carry it out, and claim the next one.

The task itself only watches. A worker process beside it (worker.py), with the environment of `local`, carries out the
jobs and keeps its session between them. So records, time limits and crashes are those of `local`: a run that kills its
process costs its own record, and another worker takes the next job.

SLURM announces the end of a task by a signal: SIGUSR2 (submitit's; SIGUSR1 too) before the time limit, SIGTERM before
a pre-emption or after `scancel`. The run then stops between two steps, its record says "abandoned", and its job is free
again. After the first signal submitit queues the task again; after SIGTERM the scheduler decides.
"""

from __future__ import annotations

import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import record, scratch
from peftbench.records.retries import ATTEMPTS
from peftbench.run.attempt import write_killed
from peftbench.run.executors import Ended, Event, ExecutorError, Progressed, Setup
from peftbench.run.executors.claims import Claim, Ledger
from peftbench.run.executors.local import affinity
from peftbench.run.executors.pool import Pool, WorkerProcess
from peftbench.run.jobs import Job, Start
from peftbench.run.shared_files import replace

POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0  # between two looks at the files of the driver
BEAT_SECONDS = 2.0  # between two signs of life, unless there is something new
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
TIMED_OUT = 0.8  # of the time limit: a signal that comes later announces the limit, an earlier one a pre-emption
TERM_SECONDS = 20.0  # for a run to stop after SIGTERM; SLURM's KillWait is 30 s by default
SAFE = 0.7  # of the time between the signal and the end, after which a run that has not stopped is killed


@dataclass(frozen=True)
class TaskSetup(Setup):
    """The setup of a worker that has the cores of its task; `shared` says whether others may be on its node."""

    shared: bool = True

    def session_kwargs(self, cores: int) -> dict[str, Any]:
        return {**self.kwargs, "threads": self.threads or cores, "shared": self.shared}


@dataclass
class Task:
    """What submitit calls in each element of the array.

    Attributes:
        folder: the ledger's.
        array: names the array in the ledger.
        setup: of the worker.
        path: where Python finds modules, in addition to where this process looks.
        share: where in the list of jobs this task begins, from 0 to 1: neighbours in the list load the same.
        limit_seconds: the time limit of the element.
        signal_seconds: how long before that the scheduler says so.
        keeps_unfinished: whether another attempt goes on where one was stopped.
    """

    folder: str
    array: str
    setup: TaskSetup
    path: tuple[str, ...]
    share: float
    limit_seconds: float
    signal_seconds: float
    keeps_unfinished: bool = False

    def __call__(self) -> int:
        """Work until no job is free, and return how many this task has claimed."""
        sys.path.extend(p for p in self.path if p not in sys.path)
        return _Shift(self).work()

    def checkpoint(self) -> Any:
        """What submitit queues in place of this task once it is stopped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Signals:
    """Notes the scheduler's signals, so that the task acts on them between two steps."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, lambda n, _: self.received.append(n))

    def queue_again(self) -> None:
        """Let submitit queue this task again, if it was told of its end; this process then ends."""
        if any(n in self.received for n in (signal.SIGUSR1, signal.SIGUSR2)):
            for number in (signal.SIGUSR2, signal.SIGUSR1):
                if callable(handler := self._before.get(number)):
                    handler(number, None)
                    return


class _Shift:
    """One life of a task, from its start to its end or to when it is queued again."""

    def __init__(self, task: Task) -> None:
        import submitit

        env = submitit.JobEnvironment()
        self.task, self.ledger, self.signals = task, Ledger(Path(task.folder)), Signals()
        rank = f".{env.global_rank}" if env.num_tasks > 1 else ""
        self.facts = {
            "task": f"{env.job_id}{rank}",
            "element": env.job_id,
            "array": task.array,
            "mark": scratch.start_of(int(env.job_id)) if env.cluster == "local" else None,
            "life": secrets.token_hex(8),
            "host": socket.gethostname(),
        }
        self.began = time.monotonic()
        self.claim: Claim | None = None
        self.claimed = 0
        self.asked: tuple[str, str] | None = None  # what ends this shift ("stop", "kill", "signal", "lost"), and why
        self.leave_by: float | None = None  # when a run that has not stopped is killed
        self.progress: Mapping[str, Any] = {}
        self._is_free = True
        self._beaten = self._looked = self._counted = float("-inf")

    def work(self) -> int:
        for key, claim in self._former_claims():
            release(self.ledger, claim, self.ledger.jobs()[key].job, "the task was ended and queued again")
        try:
            with Pool(self.task.setup, ignored=SIGNALS) as pool:
                while self._goes_on(pool):
                    for event in pool.poll(POLL_SECONDS):
                        self._handle(event)
                    self._beat()
        except (UserError, ExecutorError) as error:
            self._beat(failed={"by_user": isinstance(error, UserError), "message": str(error)})
            raise
        self._beat(over=not self.signals.received)
        self.signals.queue_again()
        return self.claimed

    def _former_claims(self) -> list[tuple[str, Claim]]:
        """What an earlier life of this task holds: the scheduler has ended it before it started this one."""
        jobs = self.ledger.jobs()
        held = [(k, Claim(k, s.number)) for k, s in self.ledger.states().items() if k in jobs and s.over is None]
        return [(k, c) for k, c in held if self.ledger.facts_of(c).get("task") == self.facts["task"]]

    def _goes_on(self, pool: Pool) -> bool:
        """Do what is to be done between two looks at the worker; False ends the shift."""
        self._look(pool)
        if self.claim is None and (self.asked or not self._free()):
            return False
        if not self.asked:
            pool.grow(1)
            for worker in pool.idle():
                self._take_next(pool, worker)
        return True

    def _look(self, pool: Pool) -> None:
        """See whether this task is to stop, and stop its run then."""
        before = self.asked
        if self.signals.received and before is None:
            self.asked = "signal", self._why_signalled()
            patience = TERM_SECONDS if self._is_term else SAFE * self.task.signal_seconds
            self.leave_by = time.monotonic() + patience
        elif time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            self.asked = self.ledger.asked(self.task.array) or before
            if self.claim is not None and self.ledger.is_over(self.claim):
                self.asked = "lost", "the scheduler said that this task had ended"
        if self.asked != before and self.asked is not None:
            if self.asked[0] == "kill":
                pool.kill(self.asked[1])
            else:
                pool.abandon()
        if self.leave_by is not None and time.monotonic() > self.leave_by:
            self.leave_by = None
            assert self.asked is not None
            pool.kill(f"{self.asked[1]}, and no step ended in time")

    @property
    def _is_term(self) -> bool:
        return signal.SIGTERM in self.signals.received

    @property
    def _is_time_up(self) -> bool:
        """Whether the signal announced the time limit."""
        return not self._is_term and time.monotonic() - self.began > TIMED_OUT * self.task.limit_seconds

    def _why_signalled(self) -> str:
        if self._is_time_up:
            return f"the task reached its time limit ({self.task.limit_seconds / 60:g} min)"
        return "the scheduler took the task's node back"

    def _free(self) -> bool:
        """Whether a job is free; asked once in a while."""
        if time.monotonic() - self._counted > LOOK_SECONDS:
            self._counted, self._is_free = time.monotonic(), bool(self._waiting())
        return self._is_free

    def _waiting(self) -> list[tuple[int, str, int, Job]]:
        """The free jobs: place in the list, key, number of the next claim, and the job."""
        states, jobs = self.ledger.states(), self.ledger.jobs()
        found = []
        for place, (key, entry) in enumerate(jobs.items()):
            state = states.get(key)
            number = entry.first if state is None else state.next_claim(entry.first)
            if number is not None:
                found.append((place, key, number, entry.job))
        return found

    def _take_next(self, pool: Pool, worker: WorkerProcess) -> None:
        """Claim the free job for which the worker has the least to load, and give it to the worker."""
        while waiting := self._waiting():
            count = len(self.ledger.jobs())
            begin = int(self.task.share * count)
            waiting.sort(key=lambda w: (affinity(w[3], worker, ()), (w[0] - begin) % count))
            for _, key, number, job in waiting:
                facts = {
                    **self.facts,
                    "env": worker.env,
                    "at": datetime.now(UTC).isoformat(),
                    "records": sorted(records_of(job)),
                }
                if claim := self.ledger.claim(key, number, facts):
                    self.claim, self.progress = claim, {}
                    self.claimed += 1
                    pool.give(worker, job)
                    self._beat(new=True)
                    return

    def _handle(self, event: Event) -> None:
        match event:
            case Progressed(_, _, facts):
                self.progress = facts
            case Ended(_, _, facts):
                assert self.claim is not None
                self.ledger.close(self.claim, self._ending(dict(facts)))
                self.claim, self.progress = None, {}

    def _ending(self, facts: dict[str, Any]) -> dict[str, Any]:
        """What ends the claim: the job is free again if the scheduler's signal ended the run."""
        if self.asked is None or self.asked[0] != "signal" or facts["status"] not in ("abandoned", "killed"):
            return facts
        assert self.claim is not None
        why, lost = self.asked[1], facts["status"] == "killed"
        had_all = self._is_time_up and self.claimed == 1 and not self.task.keeps_unfinished
        if had_all:
            limit = f"{self.task.limit_seconds / 60:g} min"
            return {**facts, "reason": f"not done though it had the whole time of a task ({limit}); raise slurm.time"}
        if lost and self.ledger.losses(self.claim.key) + 1 >= ATTEMPTS:
            return facts
        return {**facts, "again": True, "lost": lost, "why": why}

    def _beat(self, new: bool = False, **changes: Any) -> None:
        """Write a sign of life, at most every BEAT_SECONDS unless there is something new."""
        now = time.monotonic()
        if not (new or changes) and now - self._beaten < BEAT_SECONDS:
            return
        self._beaten = now
        claim = [self.claim.key, self.claim.number] if self.claim else None
        sign = {**self.facts, "at": time.time(), "claim": claim, "claimed": self.claimed, "progress": self.progress}
        replace(self.ledger.tasks / f"{self.facts['task']}.json", sign | changes)


def release(ledger: Ledger, claim: Claim, job: Job, why: str, again: bool = True, stderr_tail: str = "") -> bool:
    """End the claim of a task that is gone, and write the record of its run unless that is there.

    Args:
        ledger: the ledger of the claim.
        claim: what the task held.
        job: the claim's job.
        why: how the task ended.
        again: whether the job is free again; it is not after too many losses.
        stderr_tail: the last lines that the task printed.

    Returns:
        Whether this call has ended the claim.
    """
    facts = ledger.facts_of(claim)
    if made := _record_of_attempt(job, set(facts.get("records", ()))):
        stopped = made.status == "abandoned"
        ending = {
            "status": made.status,
            "reason": made.body.reason,
            "seconds": made.body.seconds.total,
            "metrics": made.raw().get("metrics"),
        }
        return ledger.close(claim, {**ending, **({"again": True, "why": why} if stopped and again else {})})
    again = again and ledger.losses(claim.key) + 1 < ATTEMPTS
    at = datetime.fromisoformat(facts["at"]) if "at" in facts else datetime.now(UTC)
    seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    ending = {"status": "killed", "reason": why, "seconds": seconds, "metrics": None, "lost": True}
    if not ledger.close(claim, {**ending, **({"again": True, "why": why} if again else {})}):
        return False
    write_killed(job, facts.get("env") or {}, Start(at, time.monotonic() - seconds), why, stderr_tail)
    return True


def records_of(job: Job) -> set[str]:
    """The names of the records of a job's spec."""
    return {path.name for path in (Path(job.results_dir) / record.FOLDER).glob(f"*--{job.spec.id}--*.json")}


def _record_of_attempt(job: Job, before: set[str]) -> record.Record | None:
    """The record that an attempt has left, if it has: one that was not there before."""
    for name in sorted(records_of(job) - before, reverse=True):
        try:
            return record.read(Path(job.results_dir) / record.FOLDER / name)
        except UserError:  # a file that readers set aside too
            continue
    return None
