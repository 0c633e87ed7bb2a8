"""Synthetic records for tests: bodies as sessions write them, with every number set by the test or by the seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftbench.records import record, spec

ENV = {
    "code": {"version": "0.1", "source": "0" * 16, "commit": None, "dirty": None},
    "python": "3.11.7",
    "packages": {"torch": "2.0"},
    "platform": "Linux x86_64",
    "device": "cpu",
    "cpu": {"model": "a processor", "capability": "AVX2"},
    "gpu": None,
    "threads": 1,
}

# label -> (method, hyperparameters, trainable, size mark, deviation, mean accuracy, peak MiB, step ms, mergeable)
EIGHT: dict[str, tuple[str, dict[str, Any], int, str, float | None, float, float, float, bool]] = {
    "full": ("full", {}, 22_565_376, "native", 299.87, 0.744, 512.0, 95.0, False),
    "lora": ("lora", {"rank": 8}, 73_728, "matched", -0.017, 0.731, 301.0, 71.0, True),
    "qlora": ("qlora", {"rank": 8}, 73_728, "matched", -0.017, 0.729, 240.0, 118.0, True),
    "adapter": ("adapter", {"width": 7}, 76_452, "matched", 0.019, 0.722, 297.0, 69.0, False),
    "adapter-parallel": ("adapter", {"placement": "parallel"}, 74_112, "matched", -0.012, 0.735, 291.0, 66.0, False),
    "prefix": ("prefix", {"length": 16}, 73_728, "matched", -0.017, 0.655, 305.0, 74.0, False),
    "ia3": ("ia3", {}, 13_824, "native", -0.816, 0.668, 288.0, 63.0, True),
    "dora": ("dora", {"rank": 7}, 75_264, "matched", 0.004, 0.733, 344.0, 88.0, True),
}


def method_spec(label: str, **changes: Any) -> spec.MethodSpec:
    name, hyper, _, size, deviation, *_ = EIGHT.get(label, ("lora", {"rank": 4}, 0, "explicit", None))
    fields = {"name": name, "label": label, "version": 1, "hyper": hyper, "size": size, "deviation": deviation}
    return spec.MethodSpec(**{**fields, **changes})


def task_spec(task: str, stand_in_for: str | None = None) -> spec.TaskSpec:
    return spec.TaskSpec(task, hashlib.sha256(task.encode()).hexdigest(), stand_in_for=stand_in_for)


BACKBONE = spec.BackboneSpec("minilm-l6", "f" * 64)


def run(
    label: str = "lora",
    seed: int = 0,
    score: float | None = None,
    *,
    task: str = "embedded/question_type",
    stand_in_for: str | None = None,
    experiment: str = "quickstart",
    status: str = "finished",
    reason: str | None = None,
    metric: str = "accuracy",
    direction: str = "max",
    majority: float | None = 0.23,
    steps: int = 40,
    lr: float = 5e-3,
    others: Mapping[str, float] | None = None,
    examples: int = 400,
    started: str = "2026-01-01T00:00:00Z",
    env: Mapping[str, Any] = ENV,
    method: spec.MethodSpec | None = None,
    samples: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """The body of one run's record; `score` defaults to the label's mean with a little noise from the seed."""
    rng = random.Random(f"{label}{seed}{task}")
    method = method or method_spec(label)
    asked = spec.RunSpec(BACKBONE, task_spec(task, stand_in_for), method, spec.TrainSpec(lr, steps, 16, 96), seed)
    known = EIGHT.get(label, EIGHT["lora"])
    score = known[5] + rng.gauss(0, 0.008) if score is None else score
    done = status == "finished"
    loss = [
        1.1 * 0.5 ** (i / (8 + 10 * known[5])) + 0.35 + rng.gauss(0, 0.06) for i in range(steps if done else steps // 2)
    ]
    labels = [i % 2 for i in range(examples)]
    return {
        "kind": "run",
        "spec_id": asked.id,
        "env_id": record.env_id(env),
        "slug": asked.slug,
        "status": status,
        "reason": reason,
        "traceback": None,
        "started": started,
        "ended": started,
        "seconds": {"total": 12.0, "load": None, "train": None, "evaluate": None},
        "experiment": experiment,
        "reference": "full",
        "spec": spec.as_dict(asked),
        "hyper": dict(method.hyper),
        "env": dict(env),
        "parameters": parameters(known[2]),
        "memory": memory(int(known[6] * 2**20)) if done else None,
        "time": None,
        "curve": {"loss": loss, "validation": []},
        "metrics": {
            "test": {metric: score, **(others or {})},
            "validation": {},
            "primary": metric,
            "direction": direction,
            "majority": majority,
        }
        if done
        else None,
        "predictions": {"ids": [f"{i:016x}" for i in range(examples)], "values": labels, "labels": labels}
        if done
        else None,
        **({"samples": list(samples)} if samples else {}),
        "stopped_at": steps,
        "checkpoint_step": steps,
    }


def with_ids(body: dict[str, Any]) -> dict[str, Any]:
    """A run's body with the ids of its spec, for a test that has changed the spec."""
    asked = spec.RunSpec.from_dict(body["spec"])
    return {**body, "spec_id": asked.id, "slug": asked.slug}


def as_trial(body: dict[str, Any], number: int) -> dict[str, Any]:
    """A run's body as that of a tuning trial with the same score, on the validation split."""
    asked = replace(spec.RunSpec.from_dict(body["spec"]), trial=number)
    stated = body["metrics"]
    metrics = {"validation": stated["test"], "primary": stated["primary"], "direction": stated["direction"]}
    ids = {"spec": spec.as_dict(asked), "spec_id": asked.id, "slug": asked.slug}
    kept = {k: v for k, v in body.items() if k not in ("predictions", "samples")}
    return {**kept, **ids, "metrics": metrics}


def parameters(trainable: int, head: int = 2_310) -> dict[str, int]:
    return {
        "trainable": trainable,
        "head": head,
        "added": 0,
        "total": 22_713_216,
        "stored_bytes": trainable * 4,
    }


def memory(peak_bytes: int) -> dict[str, Any]:
    """What a run says of a step with this peak: of 64 bytes of adapter, and as many of weights as of activations."""
    parts = dict.fromkeys(("head", "gradients", "optimizer", "temporaries"), 0)
    weights = (peak_bytes - 64) // 2
    return {
        "peak_bytes": peak_bytes,
        "at_peak": {**parts, "adapter": 64, "weights": weights, "activations": peak_bytes - 64 - weights},
        "peak_phase": "backward",
        "resident_bytes": None,
        "allocated_bytes": None,
        "reserved_bytes": None,
        "batch": [16, 32],
        "attention": "sdpa",
        "optimizer": "AdamW, foreach",
        "source": "tracker",
    }


def profile(
    labels: Sequence[str] = tuple(EIGHT),
    *,
    task: str = "embedded/question_type",
    stand_in_for: str | None = None,
    experiment: str = "quickstart",
    started: str = "2026-01-01T01:00:00Z",
    env: Mapping[str, Any] = ENV,
    status: str = "finished",
    reason: str | None = None,
    step_ms: Mapping[str, float] | None = None,
    others: float | None = None,
    work: bool = False,
    process: int = 0,
) -> dict[str, Any]:
    """The body of one profile pass over `labels`; `others` is the share of the cores that other programs used.

    With `work` it has what steps are made of and the ratios' intervals, which older records lack.
    """
    methods = tuple(method_spec(label) for label in labels)
    asked = spec.ProfileSpec(
        BACKBONE, task_spec(task, stand_in_for), methods, (5e-3,) * len(labels), 16, 96, process=process
    )
    rows = [
        profile_row(label, task, (step_ms or {}).get(label, EIGHT.get(label, EIGHT["lora"])[7])) for label in labels
    ]
    return {
        "kind": "profile",
        "spec_id": asked.id,
        "env_id": record.env_id(env),
        "slug": asked.slug,
        "status": status,
        "reason": reason,
        "traceback": None,
        "started": started,
        "ended": started,
        "seconds": {"total": 30.0},
        "experiment": experiment,
        "reference": "full",
        "spec": spec.as_dict(asked),
        "env": dict(env),
        "rows": [{**row, **(_work(row) if work else {})} for row in rows] if status == "finished" else None,
        "base": None,
        "time": {"background_cpu_share": others, "product": None},
        "sources": {},
    }


def profile_row(label: str, task: str, milliseconds: float) -> dict[str, Any]:
    """A configuration as a pass has it that did not look into its steps, and kept no lengths of its latencies."""

    def measured(ms: float) -> dict[str, Any]:
        return {"median": ms / 1e3, "iqr": ms / 2e4, "n": 5, "samples": []}

    def timed(batch: int, unmerged: float, merged: float | None) -> dict[str, Any]:
        passes = {"unmerged": unmerged, "merged": merged}
        seconds = {k: None if ms is None else {**measured(ms), "p95": None, "ratio": None} for k, ms in passes.items()}
        return {"phase": "forward", "batch": batch, "length": None, "typical": True, **seconds}

    known = EIGHT.get(label, EIGHT["lora"])
    cost = 4.0 + len(label) * 0.13
    not_measured = ("split_seconds", "tokens", "tokens_per_second", "flops", "flops_per_second", "product_share")
    return {
        "label": label,
        "method": known[0],
        "task": task,
        "step_seconds": measured(milliseconds),
        "ratio": {"median": milliseconds / 95.0, "iqr": 0.02, "n": 5, "low": None, "high": None},
        "latency": [timed(1, cost, 4.0 if known[8] else None), timed(32, cost * 14, 56.0 if known[8] else None)],
        "merge_max_change": 1e-6 if known[8] else None,
        "merge_seconds": None,
        "switch_seconds": None,
        "shape": [16, 32],
        **dict.fromkeys(not_measured),
    }


def _work(row: Mapping[str, Any]) -> dict[str, Any]:
    """Two fifths forward and backward each, a fifth optimizer; 320 tokens, 3 GFLOP and a rate of 100 GFLOP/s."""
    median = row["step_seconds"]["median"]
    parts = {"forward": 0.4, "backward": 0.4, "optimizer": 0.2}
    share = 3e9 / median / 1e11
    ratio = row["ratio"]
    return {
        "ratio": {**ratio, "low": ratio["median"] - 0.03, "high": ratio["median"] + 0.02, "n": 11},
        "split_seconds": {p: _seconds(median * part) for p, part in parts.items()} | {"rounds": "the step's"},
        "tokens": 320,
        "tokens_per_second": {"median": 320 / median, "iqr": 0.0, "n": 11},
        "flops": {"forward": 10**9, "backward": 2 * 10**9, "optimizer": 0, "total": 3 * 10**9},
        "flops_per_second": {"median": 3e9 / median, "iqr": 0.0, "n": 11},
        "product_share": {"median": share, "iqr": 0.0, "low": share - 0.01, "high": share + 0.01, "n": 11},
    }


def _seconds(median: float) -> dict[str, Any]:
    return {"median": median, "iqr": 0.0, "n": 11, "samples": []}


def grid(
    labels: Sequence[str] = tuple(EIGHT), seeds: int = 2, tasks: Mapping[str, str | None] | None = None, **changes: Any
) -> list[dict[str, Any]]:
    """Bodies of every run of a grid; `tasks` maps what ran to what it stands in for."""
    tasks = tasks or {"embedded/question_type": None}
    return [
        run(label, seed, task=task, stand_in_for=asked, **changes)
        for task, asked in tasks.items()
        for label in labels
        for seed in range(seeds)
    ]


def write_all(directory: Path, bodies: Sequence[Mapping[str, Any]]) -> list[Path]:
    return [record.write(directory, body) for body in bodies]


def perplexities() -> list[dict[str, Any]]:
    """Runs of two methods with a metric of which lower is better; full fine-tuning has the best mean."""
    scores = {"full": (11.0, 11.4, 10.7), "lora": (12.0, 11.1, 11.9)}
    return [
        run(label, seed, score, metric="perplexity", direction="min", majority=None)
        for label, of in scores.items()
        for seed, score in enumerate(of)
    ]
