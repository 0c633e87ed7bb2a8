"""The data of one attempt at a spec: the job, how it ended, and its record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from peftbench.records.retries import NO_LIMITS, TimeLimits
from peftbench.records.spec import ProfileSpec, RunSpec, as_dict

Progress = Callable[[Mapping[str, Any]], None]  # called with the phase, and the step and loss where there are any
Stop = Callable[[], bool]  # called between two steps; True abandons the run


@dataclass(frozen=True)
class Job:
    """One attempt at a spec, and where its record goes.

    Attributes:
        kind: "run" or "profile".
        spec: what to run.
        experiment: the experiment's name, for the record.
        results_dir: the directory of the record.
        reference: the label that the experiment's scores and costs are relative to.
        overrides: values in place of the experiment file's, as `--set` takes them.
        limits: seconds after which the attempt is ended.
        design: what the experiment asks of its comparison, as JSON; None if nothing.
    """

    kind: str
    spec: RunSpec | ProfileSpec
    experiment: str
    results_dir: str
    reference: str = ProfileSpec.reference
    overrides: tuple[str, ...] = ()
    limits: TimeLimits = NO_LIMITS
    design: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values, for a worker in another process."""
        return {**asdict(self), "spec": as_dict(self.spec)}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Job:
        """The job that `to_json` gave."""
        read = RunSpec.from_dict if d["kind"] == "run" else ProfileSpec.from_dict
        limits = TimeLimits(**d.get("limits", {}))
        return cls(**{**d, "spec": read(d["spec"]), "overrides": tuple(d.get("overrides", ())), "limits": limits})


@dataclass(frozen=True)
class Start:
    """When an attempt started: by the clock, and by one that is never set back.

    Attributes:
        at: the time, with its zone.
        seconds: the same moment of `time.monotonic`.
    """

    at: datetime
    seconds: float

    @classmethod
    def now(cls) -> Start:
        return cls(datetime.now(UTC), time.monotonic())

    def elapsed(self) -> float:
        """Seconds since then; never negative."""
        return time.monotonic() - self.seconds


@dataclass
class Ending:
    """How an attempt ended.

    Attributes:
        status: one of `record.STATUSES`.
        reason: why it did not finish, in a sentence.
        traceback: where it failed, or the last lines of a process that died.
        body: what the session measured.
    """

    status: str
    reason: str | None = None
    traceback: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


def record_of(job: Job, env: Mapping[str, Any], started: Start, ending: Ending) -> dict[str, Any]:
    """The record of an attempt that ends now, without what `record.write` adds: schema, env_id, attempt.

    Args:
        job: what was attempted.
        env: what ran it: versions, device, threads.
        started: when it started.
        ending: how it ended.
    """
    seconds = started.elapsed()
    ended = started.at + timedelta(seconds=seconds)
    return {
        **ending.body,
        "kind": job.kind,
        "spec_id": job.spec.id,
        "slug": job.spec.slug,
        "status": ending.status,
        "reason": ending.reason,
        "traceback": ending.traceback,
        "started": started.at.isoformat(timespec="milliseconds"),
        "ended": ended.isoformat(timespec="milliseconds"),
        "seconds": {**ending.body.get("seconds", {}), "total": round(seconds, 6)},
        "experiment": job.experiment,
        "reference": job.reference,
        **({"overrides": list(job.overrides)} if job.overrides else {}),
        **({"design": dict(job.design)} if job.design else {}),
        "spec": as_dict(job.spec),
        "env": dict(env),
    }
