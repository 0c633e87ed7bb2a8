"""The comparison as flat rows for other programs, numbers unrounded in SI units and bytes, null where not measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .average import Average
from .statistics import Comparison, Entry, mean, spread
from .times import BATCHES, Latency, others_cpu_share


def listed(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row for each configuration of each task, failed ones too, in the order of the tables."""
    return [row(c, e) for c in comparisons for e in c.entries]


def row(c: Comparison, e: Entry) -> dict[str, Any]:
    """One configuration: `task` is the data that ran, `stand_in_for` the task that was asked for if another ran."""
    return {
        "experiment": c.experiment,
        "task": c.task,
        "stand_in_for": c.stand_in_for,
        "variant": c.variant or None,
        "backbone": c.backbone,
        "method": e.label,
        "method_name": e.method,
        "hyper": dict(e.hyper),
        "lr": e.lr,
        "metric": e.metric,
        "direction": c.direction,
        "mean": e.mean,
        "sd": e.sd,
        "n": e.n,
        "scores": {str(seed): e.scores[seed] for seed in sorted(e.scores)},
        "failed": e.failed,
        "failures": dict(e.failures),
        "relative": e.relative,
        "relative_sd": e.relative_sd,
        "reference": c.reference,
        "majority": c.majority,
        "learned": c.learned,
        "other_metrics": {
            m: {"mean": mean(e.others.get(m, ())), "sd": spread(e.others.get(m, ()))} for m in c.other_metrics
        },
        "trainable": e.parameter("trainable"),
        "head": e.parameter("head"),
        "stored_bytes": e.parameter("stored_bytes"),
        "size": e.size,
        "deviation": e.deviation,
        "peak_memory_bytes": e.peak_bytes,
        **_times(e),
    }


def _times(e: Entry) -> dict[str, Any]:
    step, ratio = (e.times.step, e.times.ratio) if e.times else (None, None)
    latency = e.times.latency if e.times else {}
    return {
        "step_seconds": step.median if step else None,
        "step_seconds_iqr": step.iqr if step else None,
        "step_ratio": ratio.median if ratio else None,
        "step_ratio_iqr": ratio.iqr if ratio else None,
        "latency_seconds": {b: _latency(latency.get(b)) for b in BATCHES},
        "merge_max_change": e.times.merge_max_change if e.times else None,
        "others_cpu_share": others_cpu_share(e.times.profile) if e.times else None,
    }


def _latency(at: Latency | None) -> dict[str, float | None]:
    kinds = {"unmerged": at.unmerged if at else None, "merged": at.merged if at else None}
    return {name: s.median if s else None for name, s in kinds.items()} | {
        f"{name}_iqr": s.iqr if s else None for name, s in kinds.items()
    }


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its nested objects spread over columns named by their path: `latency_seconds_1_merged`."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("hyper", "scores", "failures"):
            out[key] = " ".join(f"{k}={v}" for k, v in value.items())
        elif isinstance(value, dict):
            out |= flat({f"{key}_{k}": v for k, v in value.items()})
        else:
            out[key] = value
    return out


def average_rows(a: Average) -> list[dict[str, Any]]:
    """One flat row for each configuration of an average."""
    return [
        {
            "experiment": a.experiment,
            "tasks": "; ".join(a.tasks),
            "method": s.label,
            "method_name": s.method,
            "reference": a.reference,
            "relative": s.relative,
            "relative_sd": s.relative_sd,
            "rank": s.rank,
            "trainable": s.trainable,
            "peak_memory_ratio": s.peak_ratio,
            "step_ratio": s.step_ratio,
            "failed": s.failed,
        }
        for s in a.standings
    ]
