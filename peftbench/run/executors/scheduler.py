"""What the executor `slurm` asks of the scheduler, through submitit: submit, who lives, cancel.

An element is one job of an array, or a job of its own: "123_4" or "123". With submitit's executor `local` it is a
process of this machine, with `debug` a thread of this process.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import psutil

from peftbench.errors import UserError
from peftbench.records import scratch
from peftbench.run.executors.slurm_options import Options

SECONDS = 60  # for an answer of the scheduler
ENDED = (  # states of sacct in which no process is left, as `man sacct` lists them
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
REQUEUES = 1_000  # of one element at its time limit; a run that does not fit into it is given up before


class Scheduler(Protocol):
    """Submits tasks, and knows which of them live."""

    check_seconds: float  # between two questions about who lives

    def submit(self, tasks: Sequence[Any], exclusive: bool = False, after: Iterable[str] = ()) -> dict[str, Any]:
        """Submit functions as one array.

        Args:
            tasks: what each element calls.
            exclusive: whether nothing else may be on the node.
            after: elements that must have ended before.

        Returns:
            By element, what tells it from a later one of the same id.

        Raises:
            UserError: the scheduler refuses the array.
        """

    def living(self, elements: Mapping[str, Any]) -> set[str]:
        """The elements that wait or run, among these and those of the same name; all of them if nobody knows."""

    def state_of(self, element: str) -> str:
        """How an element ended, in the scheduler's word; "" if nobody knows."""

    def cancel(self, elements: Iterable[str]) -> None:
        """Take elements out of the queue, and ask those that run to stop."""

    def kill(self, elements: Iterable[str]) -> None:
        """End elements at once."""

    def stderr_of(self, element: str) -> str:
        """What an element printed to its standard error."""


def open_scheduler(options: Options, folder: Path, name: str) -> Scheduler:
    """The scheduler of a cluster.

    Args:
        options: the executor's options.
        folder: for submitit's files: what elements call, and what they print.
        name: of the elements in the queue.
    """
    kinds: dict[str, type[Slurm | Local | Debug]] = {"slurm": Slurm, "local": Local, "debug": Debug}
    return kinds[options.cluster](options, folder, name)


class _Submitit:
    """What the three have in common."""

    check_seconds = 1.0

    def __init__(self, options: Options, folder: Path, name: str) -> None:
        self.options, self.folder, self.name = options, folder, name

    def _submitted(self, tasks: Sequence[Any], exclusive: bool, after: Iterable[str]) -> list[Any]:
        import submitit

        limits = {"slurm_max_num_timeout": REQUEUES} if self.options.cluster == "slurm" else {}
        try:
            executor = submitit.AutoExecutor(self.folder, cluster=self.options.cluster, **limits)
            executor.update_parameters(**self.options.parameters(self.name, exclusive, after))
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UserError(
                f"sbatch refuses the array: {_last_line(str(error))}. Change the options --set slurm.NAME=VALUE"
            ) from error
        return jobs

    def stderr_of(self, element: str) -> str:
        return "\n".join(
            p.read_text(errors="replace") for p in sorted(self.folder.glob(f"{element}_*_log.err"))
        ).strip()


class Slurm(_Submitit):
    """The cluster. squeue says who lives, because its answer is that of the controller; sacct says how one ended."""

    check_seconds = 10.0

    def submit(self, tasks: Sequence[Any], exclusive: bool = False, after: Iterable[str] = ()) -> dict[str, Any]:
        return {job.job_id: None for job in self._submitted(tasks, exclusive, after)}

    def living(self, elements: Mapping[str, Any]) -> set[str]:
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--name={self.name}"]
        listed = _output(command)
        if listed is not None:
            return set(listed.split())
        return {element for element, state in _sacct(elements).items() if state not in ENDED}

    def state_of(self, element: str) -> str:
        return _sacct([element])[element]

    def cancel(self, elements: Iterable[str]) -> None:
        if listed := list(elements):
            _output(["scancel", *listed])

    def kill(self, elements: Iterable[str]) -> None:
        listed = list(elements)
        self.cancel(listed)
        _output(["scancel", "--signal=KILL", *listed])


class Local(_Submitit):
    """Processes of this machine. They are told from later ones of the same number by when they started."""

    def __init__(self, options: Options, folder: Path, name: str) -> None:
        super().__init__(options, folder, name)
        self._jobs: list[Any] = []  # which hold the processes, so that their exit codes are asked for

    def submit(self, tasks: Sequence[Any], exclusive: bool = False, after: Iterable[str] = ()) -> dict[str, Any]:
        # Ctrl-C in a terminal reaches the whole process group, and the end of the terminal too. The driver decides what
        # they mean.
        blocked = {signal.SIGINT, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            jobs = self._submitted(tasks, exclusive, after)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._jobs += jobs
        return {job.job_id: scratch.start_of(int(job.job_id)) for job in jobs}

    def living(self, elements: Mapping[str, Any]) -> set[str]:
        for job in self._jobs:
            job._process.poll()
        return {e for e, start in elements.items() if start is not None and scratch.start_of(int(e)) == start}

    def state_of(self, element: str) -> str:
        return ""

    def cancel(self, elements: Iterable[str]) -> None:
        for element in elements:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(int(element)).send_signal(signal.SIGTERM)  # which it passes on

    def kill(self, elements: Iterable[str]) -> None:
        for element in elements:
            with contextlib.suppress(psutil.NoSuchProcess):
                controller = psutil.Process(int(element))
                for process in [controller, *controller.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


class Debug(_Submitit):
    """Threads of this process, which start workers as tasks of all kinds do. They end with this process."""

    def __init__(self, options: Options, folder: Path, name: str) -> None:
        super().__init__(options, folder, name)
        self._threads: dict[str, threading.Thread] = {}

    def submit(self, tasks: Sequence[Any], exclusive: bool = False, after: Iterable[str] = ()) -> dict[str, Any]:
        jobs = self._submitted(tasks, exclusive, after)
        for job in jobs:
            thread = threading.Thread(target=_result_of, args=(job,), daemon=True)
            self._threads[job.job_id] = thread
            thread.start()
        return {job.job_id: None for job in jobs}

    def living(self, elements: Mapping[str, Any]) -> set[str]:
        return {e for e in elements if e in self._threads and self._threads[e].is_alive()}

    def state_of(self, element: str) -> str:
        return ""

    def cancel(self, elements: Iterable[str]) -> None:
        return  # the folder tells them to stop

    def kill(self, elements: Iterable[str]) -> None:
        return


def _sacct(elements: Iterable[str]) -> dict[str, str]:
    """The states of elements as sacct says them; "" where it does not answer."""
    listed = list(elements)
    if find_spec("submitit") is None:
        return dict.fromkeys(listed, "")
    import submitit

    watcher = submitit.SlurmJob.watcher
    watcher.clear()  # it keeps the states of those that have ended, and they may be queued again
    for element in listed:
        watcher.register_job(element)
    with contextlib.suppress(Exception):
        watcher.update()
    words = {element: watcher.get_state(element, mode="cache").split() for element in listed}
    return {e: "" if not said or said[0] == "UNKNOWN" else said[0].rstrip("+") for e, said in words.items()}


def _result_of(job: Any) -> None:
    with contextlib.suppress(Exception):  # the task has written what the driver must know
        job.results()


def _output(command: Sequence[str]) -> str | None:
    """What a program of the scheduler prints; None if it fails or is not here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _last_line(text: str) -> str:
    """The last line of a message that says something."""
    lines = [line for line in re.split(r"\\n|\n", text) if line.strip(" '\"")]
    return lines[-1].strip().rstrip(".") if lines else "no reason given"
