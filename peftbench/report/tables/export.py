"""Exports comparisons as rows for other programs.

Numbers are unrounded, in SI units and bytes; null where not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison, Entry, mean, spread
from peftbench.report.data.times import BATCHES, PHASES, Latency, Times, background_cpu_share
from peftbench.report.tables import answers, differences


def rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row per configuration and task, failed ones included, in the order of the tables."""
    return [row(c, e) for c in comparisons for e in c.entries]


def row(c: Comparison, e: Entry) -> dict[str, Any]:
    """One configuration as a JSON object.

    Args:
        c: the table.
        e: one of its rows.

    Returns:
        experiment, task, variant: the table; `variant` tells tables of one task apart, else null.
        stand_in_for: the requested task if `task` is its stand-in.
        backbone: name of the base model.
        method, method_name: label of the row, name of the method.
        hyper, lr: hyperparameters and learning rate.
        metric, direction: primary metric, and "max" or "min", which is better.
        mean, sd, n: mean test score, its sample standard deviation over seeds, number of seeds.
        scores: seed -> test score.
        failed, failures: number of runs without a score, and status -> number.
        relative, relative_sd: mean / the reference's, and its standard deviation over common seeds.
        reference: label of the reference.
        majority: score of the constant predictor.
        learned: whether the reference beats the constant predictor by more than its interval.
        other_metrics: metric -> mean and sd on the test split.
        trainable, head, stored_bytes: trainable parameters without the task head, parameters of the head, and bytes
            of the adapter file.
        size, deviation: how the budget was met, and trainable / budget - 1.
        exempt: budget -> why it does not apply.
        peak_memory_bytes: largest peak memory over the seeds.
        All fields of `differences.row`, `answers.verdict` and `measured`.
    """
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
        **answers.verdict(c, e),
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
    """The times of one configuration as JSON fields, null where not measured.

    Args:
        times: from a profile pass, or None.

    Returns:
        step_seconds, step_seconds_iqr: median time of a training step, and its quartile distance.
        step_ratio, step_ratio_iqr, step_ratio_low, step_ratio_high: step time / the reference's within the same
            round: median, quartile distance and 95 % interval.
        step_rounds: number of rounds.
        split_seconds: phase -> median seconds.
        tokens, tokens_per_second: tokens of the batch without padding, and the throughput.
        flops: phase and "total" -> floating-point operations of one step.
        flops_per_second: achieved rate.
        product_share, product_share_low, product_share_high: that rate / the rate of a large matrix product in the
            same round, and its 95 % interval.
        latency_seconds: batch size -> median and quartile distance of a pass, unmerged and merged.
        merge_max_change: largest absolute change of a logit by merging.
        others_cpu_share: share of the cores that other programs used, 0 to 1.
    """
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
    """The phases, tokens and operations of a step."""
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
    """Flatten nested objects into columns named by their path, such as `latency_seconds_1_merged`."""
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
    """One flat row per configuration of a table over tasks.

    Args:
        a: the table.

    Returns:
        experiment, tasks, reference: the table; task titles are separated by semicolons.
        method, method_name: label of the row, name of the method.
        relative, relative_sd, relative_low, relative_high: mean relative score, its standard deviation over seeds and
            its 95 % interval.
        rank: mean rank; 1 is best.
        trainable: mean number of trainable parameters.
        peak_memory_ratio, step_ratio: mean peak memory and step time / the reference's.
        failed: number of failed runs.
    """
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
