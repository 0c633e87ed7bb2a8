"""The executor `slurm`: the tasks of a job array take runs from a list in the results directory.

This process is the driver. It writes the list, submits the array through submitit, and follows the files that tasks
write (claims.py). It decides nothing about a run that goes well, so killing it leaves the array running, and the same
command follows it again. What tasks do is in slurm_task.py; which of them live, in task_array.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from peftbench.errors import UserError
from peftbench.records.spec import RunSpec
from peftbench.run.executors import Ended, Event, Notice, Progressed, Setup, Started, slurm_options
from peftbench.run.executors.claims import Entry, State
from peftbench.run.executors.task_array import FOLDER, TaskArray, still_running
from peftbench.run.jobs import Job

LOOK_SECONDS = {"slurm": 1.0, "local": 0.2, "debug": 0.2}  # between two looks at the files of the tasks
KILL_SECONDS = 5.0  # for tasks to end their runs by themselves, and then for the scheduler to end the tasks
LEAVE_SECONDS = 5.0  # for tasks to leave once no job is left


class SlurmExecutor:
    """Carries out jobs in a job array of SLURM; see `Executor` for what each method promises.

    A job that the scheduler stops (a time limit, a pre-emption, a node that fails) starts again in another task. It is
    reported as ended once. Each of its attempts leaves a record.
    """

    OPTIONS = slurm_options.OPTIONS
    shares_files = True  # tasks see the files of this machine, weights in the cache too
    needs_locks = False  # tasks do not inherit the lock on the results directory

    def __init__(self, setup: Setup) -> None:
        slurm_options.check(setup.options)
        self.setup, self.options = setup, slurm_options.read(setup.options)
        if self.options.gpus is None and setup.devices > 1:
            self.options = replace(self.options, gpus=str(setup.devices))
        self.array: TaskArray | None = None
        self._new: dict[str, Job] = {}
        self._entries: dict[str, Entry] = {}  # jobs that have not ended, by key
        self._workers: dict[str, int] = {}  # the number of each job that has started
        self._started: dict[str, int] = {}  # the claim with which each was last said to have started
        self._events: list[Event] = []
        self._stopping = False
        self._looked = float("-inf")

    @staticmethod
    def check(options: Mapping[str, str]) -> None:
        """Raise UserError if a value is not valid, or what the cluster needs is not here."""
        slurm_options.check(options)

    @staticmethod
    def still_running(results_dir: Path) -> str | None:
        """Say which tasks may still write records into a results directory, if any."""
        if living := still_running(results_dir):
            ids = sorted({key.partition("_")[0] for key in living})
            return (
                f"the array {', '.join(ids)} of --executor slurm still runs here. Follow it with the same command as "
                f"before, or end it and remove {results_dir / FOLDER}"
            )
        return None

    @property
    def busy(self) -> bool:
        return bool(self._new or self._entries or self._events)

    def submit(self, job: Job) -> None:
        job = replace(job, results_dir=os.path.abspath(job.results_dir))
        is_timed = isinstance(job.spec, RunSpec) and job.spec.train.seconds is not None
        if is_timed and not self.options.has_whole_nodes:
            raise UserError(
                "a budget of seconds needs nodes that nothing else uses; add --set slurm.additional.exclusive=true, or "
                "use a budget of steps"
            )
        self._new[job.spec.id] = job

    def poll(self, timeout_seconds: float) -> list[Event]:
        deadline = time.monotonic() + timeout_seconds
        while True:
            if self._new:
                self._publish()
            if time.monotonic() - self._looked > LOOK_SECONDS[self.options.cluster]:
                self._look()
            if self._events or (wait := deadline - time.monotonic()) <= 0:
                events, self._events = self._events, []
                return events
            time.sleep(min(wait, 0.05))

    def abandon(self) -> None:
        self._stopping = True
        self._drop_waiting()
        if self.array is not None:
            self.array.stopping = True
            self.array.ask("stop", "the user stopped it")

    def kill(self, reason: str) -> None:
        self._stopping = True
        self._drop_waiting()
        if self.array is None:
            return
        self.array.stopping = True
        self.array.ask("kill", reason)
        deadline = time.monotonic() + KILL_SECONDS
        while self._entries and time.monotonic() < deadline:
            self._look()
            time.sleep(0.1)
        if self._entries:
            self.array.kill()
            self.array.wait(KILL_SECONDS)
            self.array.release_held(reason)
            self._follow()

    def close(self, patience_seconds: float = 5) -> None:
        if self.array is None:
            return
        if self._entries:  # an error ends this command: nothing goes on behind its back
            self.array.stopping = True
            self.array.ask("stop", "the command ended with an error")
            if not self.array.wait(KILL_SECONDS):
                self.array.kill()
        self.array.cancel_waiting()
        if self.array.wait(max(patience_seconds, LEAVE_SECONDS)):
            self.array.forget()

    def _publish(self) -> None:
        """Add the new jobs to the list. What a task has taken from the list of an earlier command goes on."""
        first = next(iter(self._new.values()))
        if self.array is None:
            self.array = TaskArray.open(Path(first.results_dir), self.setup, self.options)
        states = self.array.ledger.states()
        before = self.array.ledger.jobs()
        for key, job in self._new.items():
            state, begin = states.get(key, State()), before[key].first if key in before else 1
            if state.has_ended(begin) and (state.over or {}).get("status") != "finished":
                begin = state.number + 1  # the user repeats what had failed
            self._entries[key] = Entry(job, begin)
        self._new = {}
        self.array.ledger.publish(self._entries)
        self._looked = float("-inf")

    def _look(self) -> None:
        """Find out what has happened since the last look.

        Raises:
            UserError: a task refuses what the user gave; the message is that of the task.
            ExecutorError: tasks end before they take a job.
        """
        self._looked = time.monotonic()
        if self.array is None or not self._entries:
            return
        self.array.ledger.refresh()
        for sign in self.array.ledger.signs().values():
            if (failed := sign.get("failed")) and failed["by_user"]:
                raise UserError(failed["message"])
        self._follow()
        if self.array.is_due():
            self._events += map(Notice, self.array.check())
            self._follow()
        if self._entries and not self._stopping:
            self.array.top_up(*self._counts())

    def _follow(self) -> None:
        """Report the jobs that have started, advanced, or ended."""
        assert self.array is not None
        states = self.array.ledger.states()
        signs = {tuple(s["claim"]): s for s in self.array.ledger.signs().values() if s.get("claim")}
        for key, entry in list(self._entries.items()):
            state = states.get(key)
            if state is None or state.number < entry.first:
                continue
            if self._started.get(key) != state.number:
                self._started[key] = state.number
                self._events.append(Started(self._worker(key), entry.job))
            if (sign := signs.get((key, state.number))) and sign["progress"]:
                self._events.append(Progressed(self._worker(key), entry.job, sign["progress"]))
            if state.has_ended(entry.first) or (self._stopping and state.over is not None):
                self._end(key, state)

    def _end(self, key: str, state: State) -> None:
        assert state.over is not None
        job = self._entries.pop(key).job
        facts = {name: state.over.get(name) for name in ("status", "reason", "seconds", "metrics")}
        self._events.append(Ended(self._worker(key), job, facts))
        self._workers.pop(key, None)
        if not self._entries and self.array is not None and not self._stopping:
            self.array.cancel_waiting()

    def _worker(self, key: str) -> int:
        """The number of a job among those that run side by side: the lowest that is free when it starts."""
        if key not in self._workers:
            taken = set(self._workers.values())
            self._workers[key] = next(n for n in range(1, len(taken) + 2) if n not in taken)
        return self._workers[key]

    def _counts(self) -> tuple[int, int]:
        """How many jobs are free, and how many a task has."""
        assert self.array is not None
        states = self.array.ledger.states()
        held = sum(states.get(key, State()).is_held(entry.first) for key, entry in self._entries.items())
        return len(self._entries) - held, held

    def _drop_waiting(self) -> None:
        """Drop the jobs that no task has."""
        self._new = {}
        if self.array is not None:
            self._follow()
            states = self.array.ledger.states()
            self._entries = {k: e for k, e in self._entries.items() if states.get(k, State()).is_held(e.first)}
            self.array.ledger.publish(self._entries)
