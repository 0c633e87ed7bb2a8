"""One attempt at a job, whatever executor it runs in: build the session, run the job, write the record.

The session's module is the contract. It has the session's class, and the exceptions `Diverged` and `Abandoned` that the
class raises. This module never imports torch; it calls torch only where the session has loaded it.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import environment, record
from peftbench.run import failures, heap
from peftbench.run.jobs import Ending, Job, Progress, Start, Stop, record_of
from peftbench.run.time_limits import Deadline, TimedOut

SHARED = "the device had no memory left while other runs used it too; without --pack it has the device to itself"


class SessionHost:
    """Builds a session once and carries out jobs with it, one after another; each leaves a record.

    Args:
        session: "module:Class".
        kwargs: arguments of the class.

    Attributes:
        env: what records say of this process: versions, device, threads.
    """

    def __init__(self, session: str, kwargs: Mapping[str, Any]) -> None:
        module_name, _, class_name = session.partition(":")
        module = importlib.import_module(module_name)
        self.diverged: type[Exception] = module.Diverged
        self.abandoned: type[Exception] = module.Abandoned
        self.session = getattr(module, class_name)(**kwargs)
        self.device = str(getattr(self.session, "device", kwargs.get("device", "cpu")))
        self.env = environment.facts(
            self.device, kwargs.get("threads"), kwargs.get("plugins") or (), kwargs.get("deterministic", False)
        )

    @property
    def is_spent(self) -> bool:
        """Whether this process must not carry out another job, because an earlier one changed it for good."""
        return bool(getattr(self.session, "is_spent", False)) or failures.reader_hangs()

    def carry_out(
        self,
        job: Job,
        on_progress: Progress,
        stop: Stop,
        writing: AbstractContextManager[Any] | None = None,
        shares_memory: bool = False,
    ) -> dict[str, Any]:
        """Run a job and write its record.

        Args:
            job: what to run.
            on_progress: called with the phase, the step and the loss.
            stop: called between two steps; True abandons the run.
            writing: entered while the record is written.
            shares_memory: whether other jobs may use the same device meanwhile. Then a lack of memory says nothing of
                the job: the attempt ends as "interrupted", which is repeated, in place of "oom".

        Returns:
            The facts of the executor's event "ended": status, reason, seconds, metrics.

        Raises:
            UserError, OSError: no record can be written to the results directory.
        """
        started = Start.now()
        deadline = Deadline(job.limits, stop)
        ending = self._run(job, deadline.reporter(on_progress), deadline.stop, shares_memory)
        with writing or nullcontext():
            ending = self._write(job, started, ending)
            if job.kind == "run" and ending.status not in (*record.RETRIED, "timeout"):
                getattr(self.session, "discard_checkpoint", lambda _: None)(job.spec)
        return _facts(ending.status, ending.reason, started, ending.body.get("metrics"))

    def _run(self, job: Job, on_progress: Progress, stop: Stop, shares_memory: bool) -> Ending:
        work: Callable[..., Mapping[str, Any]] = self.session.execute if job.kind == "run" else self.session.profile
        report = heap.tended(on_progress) if job.kind == "run" else on_progress  # a pass measures times
        try:
            return Ending("finished", body=work(job.spec, report, stop))
        except BaseException as error:
            ending = self._ending_of(error)
            shared = shares_memory and ending.status == "oom"
            return replace(ending, status="interrupted", reason=f"{SHARED}: {ending.reason}") if shared else ending
        finally:
            _release_memory()

    def _ending_of(self, error: BaseException) -> Ending:
        details = failures.describe(error)
        message, lines = str(details["message"]), details["traceback"]
        if isinstance(error, TimedOut):
            return Ending("timeout", str(error), lines, {"time_limit": error.limit})
        if isinstance(error, self.abandoned):
            return Ending("abandoned", failures.message_of(error) or "stopped between two steps on request")
        if isinstance(error, self.diverged):
            why = failures.message_of(error) or f"the loss is not finite at step {getattr(error, 'step', None)}"
            return Ending("diverged", why, body=getattr(error, "body", {}))  # what the session had measured so far
        if failures.is_out_of_memory(error, self.device):
            return Ending("oom", message, lines)
        return Ending("interrupted" if failures.is_of_surroundings(error) else "error", message, lines)

    def _write(self, job: Job, started: Start, ending: Ending) -> Ending:
        """Write the record; where the session measured what no record can hold, the attempt ended in an error."""
        folder = Path(job.results_dir)
        try:
            record.write(folder, record_of(job, self.env, started, ending))
            return ending
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:
            details = failures.describe(error)
            ending = Ending("error", f"the record cannot be written: {details['message']}", details["traceback"])
            record.write(folder, record_of(job, self.env, started, ending))
            return ending


def write_killed(
    job: Job,
    env: Mapping[str, Any],
    started: Start,
    reason: str,
    stderr_tail: str = "",
    time_limit: Mapping[str, Any] | None = None,
    status: str = "killed",
) -> dict[str, Any]:
    """Write the record of a job whose process is gone, unless that process had already written that it finished.

    Args:
        job: what the process was running.
        env: the environment of the process (`SessionHost.env`).
        started: when the job started.
        reason: why the process is gone.
        stderr_tail: the last lines that it printed; the record keeps them.
        time_limit: the limit that the job passed, if it was killed for that; its status is then "timeout".
        status: the status otherwise.

    Returns:
        The facts of the executor's event "ended".
    """
    folder = Path(job.results_dir)
    for path in (folder / record.FOLDER).glob(f"*--{job.spec.id}--*.json"):
        try:
            existing = record.read(path)
        except UserError:  # a file that readers set aside too
            continue
        if existing.is_finished:  # the process died between writing the record and reporting it
            return {
                "status": "finished",
                "reason": None,
                "seconds": existing.body.seconds.total,
                "metrics": existing.raw().get("metrics"),
            }
    status = status if time_limit is None else "timeout"
    body = {} if time_limit is None else {"time_limit": dict(time_limit)}
    tail = failures.clean(stderr_tail, failures.TRACEBACK)
    record.write(folder, record_of(job, env, started, Ending(status, reason, tail or None, body)))
    return _facts(status, reason, started, None)


def device_is_broken(facts: Mapping[str, Any]) -> bool:
    """Whether the process must not run another job.

    After a failed CUDA kernel every later call in the same process fails too. Running out of memory is harmless.
    """
    reason = facts["reason"] or ""
    return facts["status"] != "finished" and "CUDA error" in reason and "out of memory" not in reason


def _facts(status: str, reason: str | None, started: Start, metrics: Any) -> dict[str, Any]:
    return {"status": status, "reason": reason, "seconds": started.elapsed(), "metrics": metrics}


def _release_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    heap.give_back()  # between runs a worker would hold the most that any of them took
