"""Step time and latency of a configuration, from the profile pass that measured it.

A run's own clock is not used: several workers may have shared the machine then. Beside a profile pass there was no
other run, and it says what other programs used of the machine, where that could be had. Its rows are joined to runs by
task, label and hyperparameters, on the same backbone and batch shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..record import Record

BATCHES = ("1", "32")  # batch sizes of the latencies, as records key them
NOISY = 0.5  # distance between the quartiles over the median, above which times are not to be compared


@dataclass(frozen=True)
class Spread:
    """A median and the distance between its quartiles, in the unit of the field that holds it."""

    median: float
    iqr: float | None

    @classmethod
    def of(cls, value: Mapping[str, Any] | None) -> Spread | None:
        return cls(value["median"], value.get("iqr")) if value and value.get("median") is not None else None

    @property
    def is_noisy(self) -> bool:
        """Whether the quartiles lie further apart than half of the median."""
        return self.iqr is not None and self.iqr > NOISY * self.median


@dataclass(frozen=True)
class Latency:
    """Seconds of one pass (of a causal network: over the prompt); merged is None where the method cannot merge."""

    unmerged: Spread | None
    merged: Spread | None


@dataclass(frozen=True)
class Times:
    """What a profile pass measured of one configuration."""

    step: Spread | None  # seconds
    ratio: Spread | None  # to the reference, within the same round
    latency: Mapping[str, Latency]  # batch size -> Latency
    merge_max_change: float | None  # largest absolute change of a logit by merging
    profile: Record

    @property
    def noisy(self) -> list[str]:
        """The times that spread too far to be compared, in words."""
        named = {"step": self.step}
        for batch, at in self.latency.items():
            named |= {f"latency, batch {batch}": at.unmerged, f"latency, batch {batch}, merged": at.merged}
        return [name for name, time in named.items() if time is not None and time.is_noisy]


def others_cpu_share(profile: Record) -> float | None:
    """What other programs used of the machine's cores during a pass, 0 to 1; None where it is not known."""
    return (profile.body.get("time") or {}).get("others_cpu_share")


def matching(profiles: Iterable[Record], run: Record) -> list[Record]:
    """The profile passes of the run's experiment, task, backbone and batch shape: finished first, then the newest."""
    shape = ("batch_size", "max_length", "accumulation")
    mine = [
        p
        for p in profiles
        if p.experiment == run.experiment
        and p.spec["task"]["name"] == run.spec["task"]["name"]
        and p.spec["backbone"] == run.spec["backbone"]
        and all(p.spec.get(k, 1) == run.spec["train"].get(k, 1) for k in shape)
    ]
    newest = sorted(mine, key=lambda p: p.order, reverse=True)
    return sorted(newest, key=lambda p: not p.is_finished)


def of(profiles: Sequence[Record], run: Record) -> Times | None:
    """The times of the run's configuration in the first of `profiles` that measured it, or None."""
    method = run.spec["method"]
    for profile in profiles:
        asked = {m["label"]: m for m in profile.spec["methods"]}.get(method["label"])
        if not asked or any(asked[k] != method[k] for k in ("name", "version", "hyper")):
            continue
        for row in profile.body.get("rows") or ():
            if row["label"] == method["label"] and row["task"] == run.spec["task"]["name"]:
                return _times(row, profile)
    return None


def _times(row: Mapping[str, Any], profile: Record) -> Times:
    return Times(
        step=Spread.of(row.get("step_seconds")),
        ratio=Spread.of(row.get("ratio")),
        latency={
            b: Latency(Spread.of(v.get("unmerged")), Spread.of(v.get("merged"))) for b, v in _usual(row).items() if v
        },
        merge_max_change=row.get("merge_max_change"),
        profile=profile,
    )


def _usual(row: Mapping[str, Any]) -> dict[str, Any]:
    """One pass at the task's median length by batch size: of a list of shapes, or as older records key it."""
    latency = row.get("latency") or {}
    if not isinstance(latency, list):
        return dict(latency)
    return {str(c["batch"]): c for c in latency if c["typical"] and c["phase"] != "decode"}
