"""The profile pass: step time and inference latency of every configuration, interleaved.

No other run of the command goes on meanwhile; what other programs use of the machine is measured and recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftbench import devices
from peftbench.backbones.load import Backbone
from peftbench.edit import Edit, NotMergeable
from peftbench.measure import neighbours, steps, timing
from peftbench.method import Method
from peftbench.spec import ProfileSpec, TrainSpec
from peftbench.tasks import batches
from peftbench.tasks.tokens import Encoded
from peftbench.train import Abandoned, Trainer

LATENCY_BATCHES = (1, 32)
Samples = dict[str, list[float]]


def profile(
    spec: ProfileSpec,
    networks: Sequence[Backbone],
    methods: Sequence[Method],
    data: Mapping[str, Encoded],
    on_progress: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Time every configuration of a grid on one task; `networks` holds one fresh network a method.

    Every configuration takes the same batches, of the training data's median length. Ratios are taken within rounds.
    """
    names = [m.label for m in spec.methods]
    trainers = [_start(spec, i, net, method) for i, (net, method) in enumerate(zip(networks, methods, strict=True))]
    batch = _typical(data["train"], spec.batch_size, networks[0])

    def rounds(phase: str, actions: Mapping[str, Callable[[], Any]]) -> Samples:
        on_progress({"phase": phase})

        def guarded(action: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                if stop():
                    raise Abandoned("asked to stop while profiling")
                action()

            return run

        if not actions:
            return {}
        actions = {name: guarded(action) for name, action in actions.items()}
        return timing.interleaved(actions, spec.rounds, spec.warmup, lambda: timing.synchronise(networks[0].device))

    watch = neighbours.Watch()
    for t in trainers:
        t.backbone.net.train()
    stepped, product = steps.measure(dict(zip(names, trainers, strict=True)), batch, spec.reference, rounds)
    for t, method in zip(trainers, methods, strict=True):
        method.finish(t.edit)
        t.backbone.net.eval()
    inputs = {size: _typical(data["test"], size, networks[0]) for size in LATENCY_BATCHES}
    plain = {s: rounds(f"latency, batch {s}", _forward(spec, names, trainers, x)) for s, x in inputs.items()}
    merged, change = _merged(spec, names, trainers, inputs, rounds)
    others = watch.share()
    rows = []
    for i, name in enumerate(names):
        rows.append(
            {
                "label": name,
                "method": spec.methods[i].name,
                "task": spec.task.name,
                **stepped[name],
                "latency": {
                    str(s): {
                        "unmerged": timing.summary(plain[s][name]),
                        "merged": timing.summary(merged[s][name]) if name in merged[s] else None,
                        "shape": list(inputs[s]["input_ids"].shape),
                    }
                    for s in LATENCY_BATCHES
                },
                "merge_max_change": change.get(name),
            }
        )
    return {"rows": rows, "time": {"others_cpu_share": others, "product": product}, "sources": steps.SOURCES}


def _start(spec: ProfileSpec, i: int, net: Backbone, method: Method) -> Trainer:
    axes = (spec.backbone.model, spec.task.name, 0)
    edit = Edit(net)
    devices.seed("adapter", spec.methods[i].name, *axes)
    method.attach(edit)
    devices.seed("head", *axes)
    net.reset_head()
    train = TrainSpec(spec.lrs[i], spec.rounds + spec.warmup, spec.batch_size, spec.max_length, spec.accumulation)
    return Trainer.start(edit, method, train, spec.backbone.dtype)


def _forward(
    spec: ProfileSpec, names: Sequence[str], trainers: Sequence[Trainer], batch: Mapping[str, Tensor]
) -> dict[str, Callable[[], Tensor]]:
    inputs = {k: v for k, v in batch.items() if k != "labels"}

    def action(trainer: Trainer) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode(), devices.autocast(trainer.backbone.device, spec.backbone.dtype):
                logits: Tensor = trainer.backbone.net(**trainer.backbone.inputs(inputs)).logits
            return logits

        return run

    return {name: action(t) for name, t in zip(names, trainers, strict=True)}


def _merged(
    spec: ProfileSpec,
    names: Sequence[str],
    trainers: Sequence[Trainer],
    inputs: Mapping[int, Mapping[str, Tensor]],
    rounds: Callable[[str, Mapping[str, Callable[[], Any]]], Samples],
) -> tuple[dict[int, Samples], dict[str, float]]:
    """Latency with the adapters folded in, where they fold, and the largest change of a logit that folding causes."""
    largest = max(inputs)
    before = {name: run() for name, run in _forward(spec, names, trainers, inputs[largest]).items()}
    with ExitStack() as stack:
        folding: dict[str, Trainer] = {}
        for name, trainer in zip(names, trainers, strict=True):
            if not trainer.edit.adapters():
                continue  # nothing to fold: the network is plain already
            try:
                stack.enter_context(trainer.edit.merged())
            except NotMergeable:
                continue
            folding[name] = trainer
        them = (list(folding), list(folding.values()))
        after = {name: run() for name, run in _forward(spec, *them, inputs[largest]).items()}
        change = {name: float((after[name] - before[name]).abs().max()) for name in folding}
        times = {s: rounds(f"merged latency, batch {s}", _forward(spec, *them, x)) for s, x in inputs.items()}
    return times, change


def _typical(data: Encoded, size: int, net: Backbone) -> dict[str, Tensor]:
    """A batch of `size` examples around the median length (repeated where the data are fewer)."""
    order = np.argsort(data.lengths, kind="stable")
    start = max(0, (len(order) - size) // 2)
    indices = np.resize(order[start : start + size], size)
    batch = batches.collate(data, indices, net.tokenizer.pad_token_id)
    return {k: v.to(net.device) for k, v in batch.items()}
