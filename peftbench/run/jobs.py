"""One attempt at a spec: what a worker is given, how it ended, and the record that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from peftbench.records.spec import ProfileSpec, RunSpec, as_dict


@dataclass(frozen=True)
class Job:
    """One attempt at a spec, and where its record goes."""

    kind: str  # "run" | "profile"
    spec: RunSpec | ProfileSpec
    experiment: str
    results_dir: str
    reference: str = ProfileSpec.reference  # the label that the experiment's scores and costs are relative to
    overrides: tuple[str, ...] = ()  # what stood in place of the file's values, as `--set` takes it

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "spec": as_dict(self.spec)}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Job:
        read = RunSpec.from_dict if d["kind"] == "run" else ProfileSpec.from_dict
        return cls(**{**d, "spec": read(d["spec"]), "overrides": tuple(d.get("overrides", ()))})


@dataclass
class Ending:
    """How an attempt ended; `body` is what the session measured."""

    status: str
    reason: str | None = None
    traceback: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


def record_of(job: Job, env: Mapping[str, Any], started: datetime, ending: Ending) -> dict[str, Any]:
    """The record of an attempt that ends now, but for what `record.write` adds: schema, env_id, attempt."""
    ended = datetime.now(UTC)
    return {
        **ending.body,
        "kind": job.kind,
        "spec_id": job.spec.id,
        "slug": job.spec.slug,
        "status": ending.status,
        "reason": ending.reason,
        "traceback": ending.traceback,
        "started": started.isoformat(timespec="milliseconds"),
        "ended": ended.isoformat(timespec="milliseconds"),
        "seconds": {**ending.body.get("seconds", {}), "total": (ended - started).total_seconds()},
        "experiment": job.experiment,
        "reference": job.reference,
        **({"overrides": list(job.overrides)} if job.overrides else {}),
        "spec": as_dict(job.spec),
        "env": dict(env),
    }
