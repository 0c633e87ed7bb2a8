"""Specifications of runs on tiny networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peftbench import tasks
from peftbench.backbones import source
from peftbench.records.spec import BackboneSpec, MethodSpec, RunSpec, TaskSpec, TrainSpec

TRAIN = TrainSpec(lr=5e-3, steps=6, batch_size=8, max_length=32, head_lr=5e-3)


def spec(method: str = "lora", task: str = "synthetic/classification", seed: int = 0, **train: Any) -> RunSpec:
    data = tasks.open_task(task)
    model = "tiny-decoder" if data.kind == "generation" else "tiny-encoder"
    backbone = BackboneSpec(model, source.fingerprint(model))
    hyper = {"rank": 2} if method in ("lora", "dora", "qlora") else {}
    where = TaskSpec(task, data.fingerprint, tasks.VERSION[task])
    return RunSpec(backbone, where, MethodSpec(method, method, 1, hyper), replace(TRAIN, **train), seed)
