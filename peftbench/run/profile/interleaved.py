"""The profile pass: step time and inference latency of every configuration, measured in interleaved rounds.

No other run of the command uses the machine meanwhile. The load from other programs is measured and recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from peftbench.backbones import devices
from peftbench.backbones.load import Backbone
from peftbench.measure import background_load, timing
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.records.spec import ProfileSpec, TrainSpec
from peftbench.run.profile import inputs, latency, steps
from peftbench.run.train import Abandoned, Trainer
from peftbench.tasks.tokens import Encoded

Samples = dict[str, list[float]]


def profile(
    spec: ProfileSpec,
    networks: Sequence[Backbone],
    methods: Sequence[Method],
    data: Mapping[str, Encoded],
    on_progress: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Time every configuration of a grid on one task.

    Every configuration gets the same batches, of the training data's median length. Ratios are taken within rounds.

    Args:
        spec: the configurations, the rounds, and the shapes of batches.
        networks: one for each method, without a method yet.
        methods: one for each configuration of `spec`.
        data: the token ids of each split, by name.
        on_progress: called with the phase.
        stop: called before each action; True abandons the pass.

    Returns:
        What the record says in addition to the spec; times in seconds, None where something was not measured.

    Raises:
        Abandoned: `stop` returned True.
        UserError: the spec names a length of latencies that the network has no positions for.
    """
    names = [m.label for m in spec.methods]
    base = latency.untouched(networks[0])
    _reset_head(spec, base)
    trainers = [_start(spec, i, net, method) for i, (net, method) in enumerate(zip(networks, methods, strict=True))]
    batch = inputs.typical(data["train"], spec.batch_size, networks[0])

    def rounds(
        phase: str, actions: Mapping[str, Callable[[], Any]], number: int = spec.rounds, *, last: str | None = None
    ) -> Samples:
        on_progress({"phase": phase})

        def stoppable(action: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                if stop():
                    raise Abandoned("stopped on request while profiling")
                action()

            return run

        if not actions:
            return {}
        actions = {name: stoppable(action) for name, action in actions.items()}
        synchronise = partial(devices.synchronise, networks[0].device)
        return timing.interleaved(actions, number, spec.warmup, synchronise, last=last)

    watch = background_load.LoadMonitor()
    for t in trainers:
        t.backbone.net.train()
    stepped, product = steps.measure(dict(zip(names, trainers, strict=True)), batch, spec.reference, rounds)
    for t, method in zip(trainers, methods, strict=True):
        method.finish(t.edit)
        t.backbone.net.eval()
    base.net.eval()
    edits = {n: t.edit for n, t in zip(names, trainers, strict=True)}

    def passes(phase: str, actions: Mapping[str, Callable[[], Any]]) -> Samples:
        return rounds(phase, actions, spec.latency.rounds or spec.rounds)

    latencies, base_latency = latency.measure(latency.Pass(spec, base, edits, passes), data["test"])
    background_cpu_share = watch.share()
    rows = [
        {"label": m.label, "method": m.name, "task": spec.task.name, **stepped[m.label], **latencies[m.label]}
        for m in spec.methods
    ]
    return {
        "rows": rows,
        "base": {"latency": base_latency},
        "time": {"background_cpu_share": background_cpu_share, "product": product},
        "sources": {**steps.SOURCES, **latency.SOURCES},
    }


def _start(spec: ProfileSpec, i: int, net: Backbone, method: Method) -> Trainer:
    axes = (spec.backbone.model, spec.task.identity, 0)
    edit = Edit(net)
    devices.seed("adapter", spec.methods[i].name, *axes)
    method.attach(edit)
    _reset_head(spec, net)
    parts = spec.accumulations[i] if spec.accumulations else spec.accumulation
    train = TrainSpec(spec.lrs[i], spec.rounds + spec.warmup, spec.batch_size, spec.max_length, parts)
    return Trainer.start(edit, method, train, spec.backbone.dtype)


def _reset_head(spec: ProfileSpec, net: Backbone) -> None:
    devices.seed("head", spec.backbone.model, spec.task.identity, 0)
    net.reset_head()
