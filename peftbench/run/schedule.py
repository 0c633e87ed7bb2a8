"""The learning rate over a run: linear warm-up, then linear, cosine or no decay to zero."""

from __future__ import annotations

import math

from peftbench.records.spec import TrainSpec


def rate(done: int, spec: TrainSpec) -> float:
    """The share of the peak rate for the step that follows `done` steps."""
    warmup = round(spec.warmup * spec.steps)
    if done < warmup:
        return (done + 1) / warmup
    return _decayed((done - warmup) / max(1, spec.steps - warmup), spec.decay)


def rate_at(share: float, spec: TrainSpec) -> float:
    """The share of the peak rate at a share of the training time, for runs that are limited in seconds."""
    if share < spec.warmup:
        return share / spec.warmup
    return _decayed(min(1.0, (share - spec.warmup) / (1 - spec.warmup)), spec.decay)


def _decayed(progress: float, decay: str) -> float:
    if decay == "constant":
        return 1.0
    return 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
