"""One attempt at a job, whatever executor it runs in: build the session, run the job, write the record.

The session's module is the contract. It has the session's class, and the exceptions `Diverged` and `Abandoned` that the
class raises. This module never imports torch; it calls torch only where the session has loaded it.
"""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import environment, record
from peftbench.run.jobs import Ending, Job, Progress, Stop, record_of

OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


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
        device = str(getattr(self.session, "device", kwargs.get("device", "cpu")))
        self.env = environment.facts(
            device, kwargs.get("threads"), kwargs.get("plugins") or (), kwargs.get("deterministic", False)
        )

    def carry_out(
        self,
        job: Job,
        on_progress: Progress,
        stop: Stop,
        writing: AbstractContextManager[Any] | None = None,
    ) -> dict[str, Any]:
        """Run a job and write its record.

        Args:
            job: what to run.
            on_progress: called with the phase, the step and the loss.
            stop: called between two steps; True abandons the run.
            writing: entered while the record is written.

        Returns:
            The facts of the executor's event "ended": status, reason, seconds, metrics.

        Raises:
            UserError, OSError: no record can be written to the results directory.
        """
        started = datetime.now(UTC)
        ending = self._run(job, on_progress, stop)
        with writing or nullcontext():
            ending = self._write(job, started, ending)
        return _facts(ending.status, ending.reason, started, ending.body.get("metrics"))

    def _run(self, job: Job, on_progress: Progress, stop: Stop) -> Ending:
        work: Callable[..., Mapping[str, Any]] = self.session.execute if job.kind == "run" else self.session.profile
        try:
            return Ending("finished", body=work(job.spec, on_progress, stop))
        except BaseException as error:
            return self._ending_of(error)
        finally:
            _release_memory()

    def _ending_of(self, error: BaseException) -> Ending:
        details = describe(error)
        message, body = details["message"], getattr(error, "body", {})  # what the session had measured so far
        if isinstance(error, self.abandoned):
            return Ending("abandoned", message or "stopped between two steps on request", body=body)
        if isinstance(error, self.diverged):
            step = getattr(error, "step", None)
            return Ending("diverged", message or f"the loss is not finite at step {step}", body=body)
        return Ending("oom" if is_out_of_memory(error) else "error", message, details["traceback"], body)

    def _write(self, job: Job, started: datetime, ending: Ending) -> Ending:
        """Write the record; where the session measured what no record can hold, the attempt ended in an error."""
        folder = Path(job.results_dir)
        try:
            record.write(folder, record_of(job, self.env, started, ending))
            return ending
        except (TypeError, ValueError) as error:
            details = describe(error)
            ending = Ending("error", f"the record cannot be written: {details['message']}", details["traceback"])
            record.write(folder, record_of(job, self.env, started, ending))
            return ending


def write_killed(
    job: Job, env: Mapping[str, Any], started: datetime, reason: str, stderr_tail: str = ""
) -> dict[str, Any]:
    """Write the record of a job whose process is gone, unless that process had already written that it finished.

    Args:
        job: what the process was running.
        env: the environment of the process (`SessionHost.env`).
        started: when the job started.
        reason: why the process is gone.
        stderr_tail: the last lines that it printed; the record keeps them.

    Returns:
        The facts of the executor's event "ended".
    """
    folder = Path(job.results_dir)
    for path in (folder / record.FOLDER).glob(f"*--{job.spec.id}--*.json"):
        existing = record.read(path)
        if existing.is_finished:  # the process died between writing the record and reporting it
            return {
                "status": "finished",
                "reason": None,
                "seconds": existing.body.seconds.total,
                "metrics": existing.raw().get("metrics"),
            }
    record.write(folder, record_of(job, env, started, Ending("killed", reason, stderr_tail or None)))
    return _facts("killed", reason, started, None)


def describe(error: BaseException) -> dict[str, Any]:
    """The message and traceback of an error; a user's mistake needs no traceback."""
    if isinstance(error, UserError):
        return {"message": str(error), "traceback": None}
    text = str(error)
    name = type(error).__name__
    lines = "".join(traceback.format_exception(error))
    return {"message": f"{name}: {text}" if text else name, "traceback": lines}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the device, in Python, or in torch's CPU allocator, which says so only in words."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def device_is_broken(facts: Mapping[str, Any]) -> bool:
    """Whether the process must not run another job.

    After a failed CUDA kernel every later call in the same process fails too. Running out of memory is harmless.
    """
    reason = facts["reason"] or ""
    return facts["status"] != "finished" and "CUDA error" in reason and "out of memory" not in reason


def _facts(status: str, reason: str | None, started: datetime, metrics: Any) -> dict[str, Any]:
    seconds = (datetime.now(UTC) - started).total_seconds()
    return {"status": status, "reason": reason, "seconds": seconds, "metrics": metrics}


def _release_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
