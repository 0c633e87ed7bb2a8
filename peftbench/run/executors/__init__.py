"""Where jobs are carried out: the interface of an executor, and how one is found by name.

The runner decides which runs are missing; an executor decides where and when each of them happens. `local` is a pool
of worker processes on this machine (local.py), `ray` has such workers on the nodes of a cluster (ray_cluster.py). A
package adds another through the entry-point group `peftbench.executors`, whose name is what `--executor` takes:

    [project.entry-points."peftbench.executors"]
    mine = "my_package:MyExecutor"

The entry point is a function or class that takes a `Setup` and returns an `Executor`. What builds the session, runs a
job and writes its record is in peftbench/run/attempt.py, so that a record is the same whichever executor made it.

It may have attributes of its own:

- `OPTIONS`: a mapping from the name of each option that it takes to a sentence about it;
- `check(options)`: raises UserError if a value is not valid or something is missing, before anything is planned;
- `needs_peaks(options)`: whether it wants the predicted memory peaks of the runs;
- `workers(device, options, given, in_file, each)`: how many jobs run side by side (see `workers` below);
- `shares_files`: whether jobs see the files of this machine, such as downloaded weights;
- `needs_locks`: False if results may lie on a file system without locks, as nothing inherits the lock;
- `PACKAGE`: the name of a package that it cannot do without, which is also the name of an extra of peftbench;
- `still_running(results_dir)`: a sentence if jobs of an earlier command may still write records there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from peftbench.errors import UserError, unknown
from peftbench.run.jobs import Job

GROUP = "peftbench.executors"
OWN = (
    EntryPoint("local", "peftbench.run.executors.local:LocalExecutor", GROUP),
    EntryPoint("ray", "peftbench.run.executors.ray_cluster:RayExecutor", GROUP),
    EntryPoint("slurm", "peftbench.run.executors.slurm:SlurmExecutor", GROUP),
)


class ExecutorError(RuntimeError):
    """Jobs cannot be carried out here, for a reason that is not the user's mistake; the message says which."""


@dataclass(frozen=True)
class Setup:
    """What an executor is opened with.

    Attributes:
        session: "module:Class" of the session that carries out jobs; the module also has `Diverged` and `Abandoned`.
        kwargs: arguments of that class, as far as JSON can hold them.
        jobs: how many jobs run side by side at most.
        threads: of one job; None divides the cores of the machine among the jobs.
        exclusive: the jobs measure time. They run one after another, each in a new process, with the machine to
            itself. The runner opens no other executor meanwhile.
        options: the executor's own options, as `--set NAME.OPTION=VALUE` gives them; `check_options` has passed them.
        peaks: the predicted memory peak of runs in bytes, by spec id, as far as it is known. Empty unless the executor
            asks for it (`needs_peaks`).
        devices: how many devices each job computes on.
        keep_open: file descriptors that every local process inherits. They hold the lock on the results directory
            for as long as any process may still write there.
    """

    session: str
    kwargs: Mapping[str, Any]
    jobs: int = 1
    threads: int | None = None
    exclusive: bool = False
    keep_open: tuple[int, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)
    devices: int = 1

    @property
    def slots(self) -> int:
        """How many jobs may run at the same time."""
        return 1 if self.exclusive else self.jobs

    def session_kwargs(self, cores: int) -> dict[str, Any]:
        """The session's arguments on a machine of so many cores.

        `shared` tells the session that other jobs load the machine, so that it reports no times.
        """
        threads = self.threads or max(1, cores // self.slots)
        return {**self.kwargs, "threads": threads, "shared": self.slots > 1}


@dataclass(frozen=True)
class Workers:
    """How many jobs run side by side, and on what.

    Attributes:
        jobs: how many.
        devices: what `CUDA_VISIBLE_DEVICES` is for the first, the second and so on; empty where all have what this
            process has.
        note: a sentence for the user, where the number is not one that they gave.
    """

    jobs: int
    devices: tuple[str, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class Started:
    """A worker began a job. `worker` is a number from 1 that tells apart the jobs that run side by side."""

    worker: int
    job: Job


@dataclass(frozen=True)
class Progressed:
    """How far a job is: `facts` has its phase, and its step, steps and loss where there are any."""

    worker: int
    job: Job
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """A job is over and its record is on the disk; `facts` has `status`, `reason`, `seconds` and `metrics`."""

    worker: int
    job: Job
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Notice:
    """A sentence for the person who watches, such as that a worker died."""

    text: str


Event = Started | Progressed | Ended | Notice


class Executor(Protocol):
    """Carries out jobs and leaves one record for every job that started, whatever happens to it.

    The runner is the only caller, from one thread. Each job starts at most once.
    """

    @property
    def busy(self) -> bool:
        """Whether a job that was submitted has neither ended nor been dropped."""

    def submit(self, job: Job) -> None:
        """Accept a job; it starts when there is room. Jobs may start in any order."""

    def poll(self, timeout_seconds: float) -> list[Event]:
        """Return what has happened since the last call, after waiting at most so long for the first event.

        Raises:
            UserError: the session refuses its arguments, or a record cannot be written.
            ExecutorError: jobs cannot be carried out for another reason.
            KeyboardInterrupt: what carries out the jobs was stopped from outside, such as a cluster; the jobs that
                had started are lost, without record.
        """

    def abandon(self) -> None:
        """Drop the jobs that have not started, and ask the others to stop between two steps.

        `poll` reports the end of each that had started.
        """

    def kill(self, reason: str) -> None:
        """Drop the jobs that have not started, and end the others at once.

        Each that had started gets a record with the status "killed" and this reason; `poll` reports it.
        """

    def close(self, patience_seconds: float = 5) -> None:
        """Free everything. Idle workers have so many seconds to leave; jobs that still run are lost, without record."""


Open = Callable[[Setup], Executor]


def find(name: str) -> Open:
    """The function that opens the executor called `name`.

    Raises:
        UserError: there is none of this name, two have it, or it cannot be imported or lacks a package.
    """
    known = _known()
    if name not in known:
        raise unknown("executor", name, known)
    try:
        opened: Open = known[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"the executor {name!r} ({known[name].value}) cannot be imported: {error}") from error
    if not callable(opened):
        raise UserError(f"the executor {name!r} ({known[name].value}) is {opened!r}; it must be a function of a Setup")
    package = getattr(opened, "PACKAGE", None)
    if package is not None and not _is_installed(package):
        raise UserError(f"the executor {name!r} needs the package {package}: pip install 'peftbench[{package}]'")
    return opened


def check_options(name: str, options: Mapping[str, str]) -> None:
    """Raise UserError if the executor called `name` lacks an option of this name, or cannot take its value.

    An option of `OPTIONS` whose name ends with ".*" stands for all names that begin so.
    """
    found = find(name)
    valid: Mapping[str, str] = getattr(found, "OPTIONS", {})
    for option in options:
        if not valid:
            raise UserError(f"{name}.{option}: the executor {name!r} takes no options; leave it out")
        if option not in valid and f"{option.partition('.')[0]}.*" not in valid:
            raise unknown(f"{name} option", option, valid)
    check: Callable[[Mapping[str, str]], None] = getattr(found, "check", lambda _: None)
    check(options)


def needs_peaks(name: str, options: Mapping[str, str]) -> bool:
    """Whether the executor called `name` wants the predicted memory peaks of the runs."""
    asks: Callable[[Mapping[str, str]], bool] = getattr(find(name), "needs_peaks", lambda _: False)
    return asks(options)


def workers(
    name: str,
    device: str,
    options: Mapping[str, str],
    given: int | None = None,
    in_file: int | None = None,
    each: int = 1,
) -> Workers:
    """How many jobs the executor called `name` runs side by side.

    Args:
        name: of the executor.
        device: the session's device, such as "auto" or "cuda".
        options: the executor's own.
        given: the number that the user gave for this command; None for none.
        in_file: the number of the experiment file; None for none.
        each: how many devices each job computes on.

    Raises:
        UserError: so many do not run side by side here.
    """
    asks: Callable[..., Workers] | None = getattr(find(name), "workers", None)
    return Workers(given or in_file or 1) if asks is None else asks(device, options, given, in_file, each)


def shares_files(name: str) -> bool:
    """Whether jobs of the executor called `name` see the files of this machine."""
    return bool(getattr(find(name), "shares_files", False))


def needs_locks(name: str) -> bool:
    """Whether results of the executor called `name` must lie on a file system with locks."""
    return bool(getattr(find(name), "needs_locks", True))


def check_alone(name: str, results_dir: Path) -> None:
    """Raise UserError if jobs of another executor of this package may still write records into a directory."""
    for point in OWN:
        if point.name == name:
            continue
        still_running: Callable[[Path], str | None] = getattr(point.load(), "still_running", lambda _: None)
        if why := still_running(results_dir):
            raise UserError(f"{results_dir}: {why}")


def names() -> list[str]:
    """The names of all executors."""
    return sorted(_known())


def cores() -> int:
    """Processor cores that this process may use."""
    affine = getattr(os, "sched_getaffinity", None)
    return len(affine(0)) if affine else os.cpu_count() or 1


def _is_installed(package: str) -> bool:
    found = find_spec(package)
    return found is not None and found.origin is not None  # a mere folder of that name has no origin


def _known() -> dict[str, EntryPoint]:
    """The executors of this package and of installed ones, by name."""
    known: dict[str, EntryPoint] = {}
    for point in (*OWN, *entry_points(group=GROUP)):
        first = known.setdefault(point.name, point)
        if first.value != point.value:
            raise UserError(
                f"two executors are named {point.name!r}: {first.value} and {point.value}; "
                "uninstall the package of one of them"
            )
    return known
