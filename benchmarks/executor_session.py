"""A session that trains nothing: each run is a tiny record, so that what an executor adds to a run can be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftbench.records.spec import BackboneSpec, MethodSpec, RunSpec, TaskSpec, TrainSpec

STEPS = 3


class Diverged(Exception):
    """No run of this session diverges."""


class Abandoned(Exception):
    """The runner asked for the end of a run."""


class Session:
    """Takes the arguments of a session that trains, and uses none of them."""

    device = "cpu"

    def __init__(self, **_: Any) -> None:
        return

    def execute(self, spec: RunSpec, on_progress: Callable[..., None], stop: Callable[[], bool]) -> dict[str, Any]:
        """What the record of a run says beside its spec: three losses and four predictions."""
        for step in range(1, STEPS + 1):
            if stop():
                raise Abandoned
            on_progress({"phase": "train", "step": step, "steps": STEPS, "loss": 1.0 / step})
        sizes = {"trainable": 1, "head": 1, "added": 1, "total": 2, "stored_bytes": 4}
        score = {"test": {"accuracy": 0.5}, "validation": {}, "majority": None}
        return {
            "parameters": sizes,
            "curve": {"loss": [1.0, 0.5, 0.25], "validation": []},
            "metrics": {**score, "primary": "accuracy", "direction": "max"},
            "predictions": {"ids": list("abcd"), "values": [0, 0, 0, 0], "labels": [0, 1, 0, 1]},
        }


def grid(runs: int) -> list[RunSpec]:
    """So many runs, which differ in their seed alone."""
    train = TrainSpec(lr=1e-3, steps=STEPS, batch_size=4, max_length=8)
    method = MethodSpec("lora", "lora", 1, {})
    backbone, task = BackboneSpec("none", "0" * 64), TaskSpec("none", "0" * 64)
    return [RunSpec(backbone, task, method, train, seed) for seed in range(runs)]
