"""The comparison as flat rows for other programs, numbers unrounded in SI units and bytes, null where not measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison, Entry, mean, spread
from peftbench.report.data.times import BATCHES, PHASES, Latency, Times, background_cpu_share
from peftbench.report.tables import differences


def rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
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
        **differences.row(c, e),
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
        "exempt": dict(e.runs[0].spec.method.exempt),
        "peak_memory_bytes": e.peak_bytes,
        **measured(e.times),
    }


def measured(times: Times | None) -> dict[str, Any]:
    """What a profile pass measured of one configuration; every figure None without one."""
    step, ratio = (times.step, times.ratio) if times else (None, None)
    latency = times.latency if times else {}
    return {
        "step_seconds": step.median if step else None,
        "step_seconds_iqr": step.iqr if step else None,
        "step_ratio": ratio.median if ratio else None,
        "step_ratio_iqr": ratio.iqr if ratio else None,
        "step_ratio_low": ratio.low if ratio else None,
        "step_ratio_high": ratio.high if ratio else None,
        "step_rounds": step.n if step else None,
        **_work(times),
        "latency_seconds": {b: _latency(latency.get(b)) for b in BATCHES},
        "merge_max_change": times.merge_max_change if times else None,
        "others_cpu_share": background_cpu_share(times.profile) if times else None,
    }


def _work(times: Times | None) -> dict[str, Any]:
    """What a step is made of: its phases, its tokens, its operations."""
    split, flops = (times.split, times.flops or {}) if times else ({}, {})
    rates = (times.tokens_per_second, times.flops_per_second, times.share) if times else (None, None, None)
    tokens, achieved, share = rates
    return {
        "split_seconds": {p: split[p].median if p in split else None for p in PHASES},
        "tokens": times.tokens if times else None,
        "tokens_per_second": tokens.median if tokens else None,
        "flops": {p: flops.get(p) for p in (*PHASES, "total")},
        "flops_per_second": achieved.median if achieved else None,
        "product_share": share.median if share else None,
        "product_share_low": share.low if share else None,
        "product_share_high": share.high if share else None,
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
        if key in ("hyper", "scores", "failures", "exempt"):
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
            "relative_low": s.relative_interval[0] if s.relative_interval else None,
            "relative_high": s.relative_interval[1] if s.relative_interval else None,
            "rank": s.rank,
            "trainable": s.trainable,
            "peak_memory_ratio": s.peak_ratio,
            "step_ratio": s.step_ratio,
            "failed": s.failed,
        }
        for s in a.standings
    ]
