"""The tasks that the executor `slurm` has submitted: which there are, which live, and what the dead ones held.

What is submitted outlives the driver. Its elements stand in a file, so that the driver's successor follows them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.run.executors import ExecutorError, Setup, cores
from peftbench.run.executors.claims import Claim, Ledger
from peftbench.run.executors.scheduler import Scheduler, open_scheduler
from peftbench.run.executors.slurm_options import Options
from peftbench.run.executors.slurm_task import Task, TaskSetup, release
from peftbench.run.shared_files import read, replace

FOLDER = ".slurm"  # in the results directory
PHASES = ("training", "profile")  # folders in it, one for each ledger
MAX_FAILED_STARTS = 3  # elements that may end one after another without a sign of life
STDERR_TAIL = 4000  # characters
SUSPECT_SECONDS = 5.0  # without a sign of life, after which the scheduler is believed that an element is gone
STOPPING_SECONDS = 60  # for tasks that were asked to stop by an earlier command


@dataclass
class Element:
    """A job of the array, or of its own.

    Attributes:
        array: names in the ledger the array that it was submitted with.
        mark: tells it from a later one of the same id, where the scheduler uses ids again.
    """

    array: str
    mark: Any = None


@dataclass
class TaskArray:
    """The tasks of one phase in one results directory.

    Attributes:
        ledger: their jobs and claims.
        elements: those that may live, by id.
        stopping: the jobs of tasks that end are not free again.
        failed_starts: elements that have ended one after another before they took a job.
    """

    ledger: Ledger
    scheduler: Scheduler
    setup: Setup
    options: Options
    elements: dict[str, Element] = field(default_factory=dict)
    stopping: bool = False
    failed_starts: int = 0
    _checked: float = -math.inf
    _suspects: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, results_dir: Path, setup: Setup, options: Options) -> TaskArray:
        """The array of a results directory, with the elements that an earlier command left running.

        Raises:
            UserError: they run with other settings.
        """
        folder = folder_of(results_dir, setup.exclusive)
        scheduler = open_scheduler(options, folder / "logs", name_of(folder))
        made = cls(Ledger(folder), scheduler, setup, options)
        saved = read(folder / "array.json") or {}
        if saved and saved["settings"] != made._settings() and (living := _living_in(folder)):
            ids = " ".join(sorted({key.partition("_")[0] for key in living}))
            raise UserError(
                f"{results_dir}: tasks ({ids}) still run here with other settings. Run the same command as before to "
                f"follow them, or end them (scancel {ids})"
            )
        made.elements = {key: Element(**facts) for key, facts in saved.get("elements", {}).items()}
        for sign in made.ledger.signs().values():  # of an array whose driver was killed before it could note it
            made.elements.setdefault(sign["element"], Element(sign["array"], sign["mark"]))
        for gone in set(made.elements) - made.living():
            made._release(gone, "the task ended while no command followed it")
            del made.elements[gone]
        made._await_stopping(results_dir)
        if not made.elements:
            made.ledger.clear()
        return made

    @property
    def size(self) -> int:
        """How many elements there may be at most."""
        if self.setup.exclusive or self.options.cluster == "debug":
            return 1
        if self.options.cluster == "local":
            return self.setup.jobs
        return min(self.setup.jobs if self.setup.jobs > 1 else sys.maxsize, self.options.array_parallelism)

    def living(self) -> set[str]:
        """The elements that wait or run, by the scheduler."""
        marks = {key: element.mark for key, element in self.elements.items()}
        living = self.scheduler.living(marks)
        self.elements |= {key: Element("") for key in living - set(self.elements)}  # of a driver that was killed
        return living

    def is_due(self) -> bool:
        """Whether the scheduler is to be asked again; sooner if it said of an element that it is gone."""
        wait = min(SUSPECT_SECONDS, self.scheduler.check_seconds) if self._suspects else self.scheduler.check_seconds
        return time.monotonic() - self._checked > wait

    def check(self) -> list[str]:
        """Ask the scheduler who lives, and free what the others held.

        The scheduler's word counts only once the tasks of an element give no new sign of life after it, as one that is
        queued again may be out of the scheduler's sight for a moment.

        Returns:
            For each element that has ended too early, a sentence.
        """
        self._checked = time.monotonic()
        living, signs = self.living(), self._signs()
        suspects = {key: signs.get(key) for key in self.elements if key not in living}
        gone = [key for key, beat in suspects.items() if key in self._suspects and self._suspects[key] == beat]
        self._suspects = {key: beat for key, beat in suspects.items() if key not in gone}
        return [text for key in gone if (text := self._bury(key))]

    def top_up(self, free: int, held: int) -> None:
        """Submit as many elements as the jobs are worth, beside those that live.

        Args:
            free: jobs that no task has.
            held: jobs that a task has.

        Raises:
            UserError: the scheduler refuses them.
        """
        signs = self._signs()
        active = [key for key in self.elements if not (signs.get(key) and all(s.get("over") for s in signs[key]))]
        wanted = min(self.size, self._elements_for(free + held)) - len(active)
        if (count := min(wanted, self._elements_for(free))) > 0:
            self._submit(count)

    def ask(self, what: str, reason: str) -> None:
        """Ask all tasks to "stop" between two steps or to "kill" their runs, and take waiting ones out of the queue."""
        signs = self.ledger.signs().values()
        for array in ({e.array for e in self.elements.values()} | {s["array"] for s in signs}) - {""}:
            self.ledger.ask(array, what, reason)
        self.cancel_waiting()

    def cancel_waiting(self) -> None:
        """Take those out of the queue that have not started."""
        started = {sign["element"] for sign in self.ledger.signs().values()}
        if waiting := sorted(self.living() - started):
            self.scheduler.cancel(waiting)

    def kill(self) -> None:
        """End all elements at once."""
        if living := sorted(self.living()):
            self.scheduler.kill(living)

    def wait(self, seconds: float) -> bool:
        """Wait until all elements have ended, at most so long; returns whether they have."""
        deadline = time.monotonic() + seconds
        while self.living():
            if time.monotonic() > deadline:
                return False
            time.sleep(min(1.0, self.scheduler.check_seconds / 10))
        return True

    def release_held(self, why: str) -> None:
        """End the claims of all tasks; they are gone."""
        for element in list(self.elements):
            self._release(element, why)

    def forget(self) -> None:
        """Remove the folder, and that of the other phase unless a task of it may be alive. None of this phase may."""
        self.ledger.remove()
        other = folder_of(self.ledger.folder.parent.parent, not self.setup.exclusive)
        if other.is_dir() and not _living_in(other):
            Ledger(other).remove()

    def _await_stopping(self, results_dir: Path) -> None:
        """Wait for tasks that an earlier command has asked to stop: they take no job of this one.

        Raises:
            UserError: they take too long.
        """
        asked = {key: element for key, element in self.elements.items() if self.ledger.asked(element.array)}
        deadline = time.monotonic() + STOPPING_SECONDS
        while left := asked.keys() & self.living():
            if time.monotonic() > deadline:
                raise UserError(f"{results_dir}: tasks ({' '.join(sorted(left))}) are still stopping; run again later")
            time.sleep(0.5)
        for key in asked:
            self._release(key, "the task was stopped")
            self.elements.pop(key, None)

    def _submit(self, count: int) -> None:
        array, others = secrets.token_hex(4), self._others() if self.setup.exclusive else set[str]()
        if others and self.options.cluster != "slurm":
            return  # the next look tries again
        tasks = [self._task(array, share=n / count) for n in range(count)]
        made = self.scheduler.submit(tasks, self.setup.exclusive, after=others)
        self.elements |= {key: Element(array, mark) for key, mark in made.items()}
        self._save()

    def _save(self) -> None:
        facts = {key: vars(element) for key, element in self.elements.items()}
        replace(self.ledger.folder / "array.json", {"settings": self._settings(), "elements": facts})

    def _task(self, array: str, share: float) -> Task:
        shared = not (self.setup.exclusive or self.options.has_whole_nodes)
        threads = self.setup.threads or self.options.cpus
        if self.options.cluster != "slurm":
            shared, threads = self.size > 1, self.setup.threads or max(1, cores() // self.size)
        setup = TaskSetup(
            self.setup.session,
            _plain(self.setup.kwargs),
            threads=threads,
            exclusive=self.setup.exclusive,
            devices=self.setup.devices,
            shared=shared,
        )
        return Task(
            folder=os.path.abspath(self.ledger.folder),
            array=array,
            setup=setup,
            path=tuple(os.path.abspath(p) for p in sys.path),
            share=share,
            limit_seconds=self.options.minutes * 60,
            signal_seconds=self.options.signal_seconds,
            keeps_unfinished=bool(self.setup.kwargs.get("checkpoints")),
        )

    def _settings(self) -> dict[str, Any]:
        """What decides how a run is carried out, and where."""
        setup = self.setup
        own = {"cluster": self.options.cluster, "threads": setup.threads, "devices": setup.devices}
        return {**own, "session": setup.session, "kwargs": _plain(setup.kwargs)}

    def _elements_for(self, jobs: int) -> int:
        """How many elements carry out so many jobs at the same time."""
        return -(-jobs // self.options.nodes)

    def _others(self) -> set[str]:
        """The elements of the other phase that live; they must have ended before the profile pass begins."""
        return _living_in(folder_of(self.ledger.folder.parent.parent, not self.setup.exclusive))

    def _signs(self) -> dict[str, list[dict[str, Any]]]:
        """The last signs of life of the tasks of each element."""
        signs: dict[str, list[dict[str, Any]]] = {}
        for sign in self.ledger.signs().values():
            signs.setdefault(sign["element"], []).append(sign)
        return signs

    def _bury(self, key: str) -> str | None:
        """Free what an element held that has ended. Returns a sentence if it had ended before its work was done.

        Raises:
            ExecutorError: elements end again and again before they have taken a job.
        """
        signs, state = self._signs().get(key, []), self.scheduler.state_of(key)
        how = f" ({state})" if state else ""
        said = f"the task {key} ended{how}"
        endings = self._release(key, said)
        del self.elements[key]
        self._save()
        if any(sign["claimed"] or sign.get("over") for sign in signs):
            self.failed_starts = 0
            return f"{said}; {_fate(endings[0])}" if endings else None
        if self.stopping or state.startswith("CANCELLED"):
            return None
        self.failed_starts += 1
        if self.failed_starts >= MAX_FAILED_STARTS:
            failures = [sign["failed"]["message"] for sign in signs if "failed" in sign]
            tail = failures[0] if failures else self.scheduler.stderr_of(key)[-STDERR_TAIL:]
            raise ExecutorError(
                f"{MAX_FAILED_STARTS} tasks in a row ended{how} before they took a job; the "
                f"last one said:\n{tail or 'nothing'}"
            )
        return f"{said} before it took a job"

    def _release(self, key: str, why: str) -> list[Mapping[str, Any]]:
        """End the claims of an element; returns what ended each."""
        jobs, endings = self.ledger.jobs(), list[Mapping[str, Any]]()
        for job_key, state in self.ledger.states().items():
            claim = Claim(job_key, state.number)
            if state.over is not None or job_key not in jobs or self.ledger.facts_of(claim).get("element") != key:
                continue
            tail = self.scheduler.stderr_of(key)[-STDERR_TAIL:]
            release(self.ledger, claim, jobs[job_key].job, why, not self.stopping, tail)
            endings.append(self.ledger.states()[job_key].over or {})
        return endings


def folder_of(results_dir: Path, exclusive: bool) -> Path:
    """The folder of a phase."""
    return results_dir / FOLDER / PHASES[exclusive]


def name_of(folder: Path) -> str:
    """The name of a phase's elements in the queue; no other results directory has it."""
    return f"peftbench-{hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:10]}"


def still_running(results_dir: Path) -> set[str]:
    """The ids of elements that may still write records into a results directory."""
    return set().union(*(_living_in(folder_of(results_dir, exclusive)) for exclusive in (False, True)))


def _living_in(folder: Path) -> set[str]:
    """The elements of a phase that wait or run, as its driver has noted them."""
    saved = read(folder / "array.json") or {}
    if not saved.get("elements"):
        return set()
    scheduler = open_scheduler(Options(cluster=saved["settings"]["cluster"]), folder / "logs", name_of(folder))
    return scheduler.living({key: facts["mark"] for key, facts in saved["elements"].items()})


def _fate(ending: Mapping[str, Any]) -> str:
    """What becomes of the run of a task that has ended."""
    if ending.get("again"):
        return "its run starts again"
    return "its run is given up" if ending.get("lost") else "its run had ended"


def _plain(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON has them, as a worker gets them."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(kwargs), default=str))
    return plain
