"""Inference latency of every configuration, and of the base network without adapters in the same rounds.

For an encoder, latency is the time of one forward pass. For a network that generates, it is the time of the pass over
the prompt that fills a cache (prefill) and, apart from it, of each token after that (decode). Adapters are timed as
they are and, if they can be folded into the weights, folded. Folding them, and replacing their tensors by another
adapter's, are timed, too.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftbench.backbones import devices
from peftbench.backbones.load import Backbone
from peftbench.measure import timing
from peftbench.method import serving
from peftbench.method.edit import Edit, NotMergeable
from peftbench.records.spec import TAIL, ProfileSpec
from peftbench.run.profile import decoding, inputs
from peftbench.tasks.tokens import Encoded

BASE = "the base network, without adapters"
SOURCES = {
    "latency": "wall clock around whole passes in inference mode, the device synchronised; ratio to the base's own "
    "pass in the same round",
    "merge_max_change": "largest absolute difference of a logit, of the largest batch",
    "merge_seconds": "wall clock: folding every adapter, putting the layers in place and out again",
    "switch_seconds": "wall clock: copying another adapter's tensors and head, held on the device, into place",
}
Samples = dict[str, list[float]]
Logits = dict[str, Tensor]  # by label
Rounds = Callable[[str, Mapping[str, Callable[[], Any]]], Samples]
Clock = Callable[[], float]


@dataclass(frozen=True)
class TimedBatch:
    """A batch that every configuration is timed on."""

    tensors: Mapping[str, Tensor]  # without labels
    typical: bool  # of the task's median length, not of a length that the experiment names

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, tokens)"""
        rows, length = self.tensors["input_ids"].shape
        return rows, length


@dataclass(frozen=True)
class Pass:
    """What all measurements of a profile pass share."""

    spec: ProfileSpec
    base: Backbone
    edits: Mapping[str, Edit]  # by label: trained, finished, in evaluation mode
    rounds: Rounds
    clock: Clock = time.perf_counter


def measure(shared: Pass, data: Encoded) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Measure all latencies of a profile pass.

    Args:
        shared: the configurations, and `rounds`, which runs actions round by round and returns one sample a round.
        data: the test split's token ids.

    Returns:
        By label what a record's row says, and the cells of the base network; seconds, None where not measured.
    """
    batches = list(_batches(shared, data))
    networks = {name: edit.backbone for name, edit in shared.edits.items()}
    largest = _largest(shared, batches, data)
    logits: Logits = {}
    plain = [_latencies(shared, networks, b, "latency", logits if b is largest else {}) for b in batches]
    merged, change = _merged(shared, batches, largest, _completed(shared, networks, largest, logits))
    folding = _folding(shared, change)
    switching = _switching(shared)
    rows = {
        name: {
            "latency": [cell for i, g in enumerate(batches) for cell in _cells(g, name, plain[i], merged[i])],
            "merge_max_change": change.get(name),
            "merge_seconds": timing.summary(folding[name]) if name in folding else None,
            "switch_seconds": timing.summary(switching[name]) if name in switching else None,
        }
        for name in shared.edits
    }
    return rows, [cell for i, g in enumerate(batches) for cell in _cells(g, BASE, plain[i], {})]


def untouched(backbone: Backbone) -> Backbone:
    """A copy of a network without a method, which latencies are compared with."""
    if backbone.shares_weights:
        return backbone.twin()
    backbone.save_snapshot()  # one file serves both
    net = copy.deepcopy(backbone.net)
    return replace(backbone, net=net, parameters=dict(net.named_parameters()))


def _batches(shared: Pass, data: Encoded) -> Iterator[TimedBatch]:
    shapes, base = shared.spec.latency, shared.base
    for size in shapes.batches:
        if base.kind == "generation":
            usual = inputs.exact(data, size, inputs.median_prompt(data), base)
        else:
            usual = inputs.typical(data, size, base)
        yield TimedBatch(_unlabelled(usual), True)
        for length in shapes.lengths:
            yield TimedBatch(inputs.exact(data, size, length, base), False)


def _largest(shared: Pass, batches: Sequence[TimedBatch], data: Encoded) -> TimedBatch:
    """The largest batch of texts of usual length: one of the timed ones, but where the network generates."""
    size = max(shared.spec.latency.batches)
    if shared.base.kind != "generation":
        return next(b for b in batches if b.typical and b.shape[0] == size)
    return TimedBatch(_unlabelled(inputs.typical(data, size, shared.base)), True)


def _unlabelled(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in batch.items() if k != "labels"}


def _latencies(
    shared: Pass, networks: Mapping[str, Backbone], batch: TimedBatch, what: str, logits: Logits
) -> dict[str, Samples]:
    """Samples by phase and label, those of the base network too; `logits` gets what single passes return."""
    rows, length = batch.shape
    title = f"{what}, {rows} x {length}"
    everyone = {BASE: shared.base, **networks}
    if shared.base.kind != "generation":
        passes = {name: _forward(shared, b, batch.tensors, logits, name) for name, b in everyone.items()}
        return {"forward": _warm_samples(shared.rounds, title, passes)}
    laps: dict[str, list[tuple[float, float]]] = {name: [] for name in everyone}
    writing = {name: _generation(shared, b, batch.tensors, laps[name]) for name, b in everyone.items()}
    done = _warm_samples(shared.rounds, title, writing, settle=_generation(shared, shared.base, batch.tensors, []))
    timed = {name: laps[name][-len(done[name]) :] for name in everyone}  # warm-up rounds come first
    return {
        "prefill": {name: [first for first, _ in pairs] for name, pairs in timed.items()},
        "decode": {name: [each for _, each in pairs] for name, pairs in timed.items()},
    }


def _warm_samples(
    rounds: Rounds, title: str, actions: Mapping[str, Callable[[], Any]], settle: Callable[[], Any] | None = None
) -> Samples:
    """The samples of `actions`, none of which is the first of its round, as the first one finds the caches cold.

    `settle` (by default the first action) runs before them. Rounds run forwards and backwards in turn, so it stands at
    both ends of the list, and every other call of it is the last of a round and does nothing.
    """
    if not actions:
        return {}
    work = settle or next(iter(actions.values()))
    turns = itertools.count()

    def first() -> None:
        if next(turns) % 2 == 0:
            work()

    samples = rounds(title, {"before": first, **{f"={name}": run for name, run in actions.items()}, "after": first})
    return {name: samples[f"={name}"] for name in actions}


def _forward(
    shared: Pass, backbone: Backbone, batch: Mapping[str, Tensor], logits: Logits, name: str
) -> Callable[[], None]:
    """A pass over the batch, which puts what it returns into `logits`."""

    def run() -> None:
        with torch.inference_mode(), backbone.computing(shared.spec.backbone.dtype):
            logits[name] = backbone.net(**backbone.inputs(batch)).logits

    return run


def _completed(shared: Pass, networks: Mapping[str, Backbone], batch: TimedBatch, logits: Logits) -> Logits:
    """The logits of all networks on a batch: those that timed passes have left, and the others computed."""
    for name, backbone in networks.items():
        if name not in logits:
            _forward(shared, backbone, batch.tensors, logits, name)()
    return logits


def _generation(
    shared: Pass, backbone: Backbone, batch: Mapping[str, Tensor], laps: list[tuple[float, float]]
) -> Callable[[], None]:
    """Reads the prompts and writes as many tokens as the spec says; each run adds (seconds of prefill, of a token)."""

    def now() -> float:
        devices.synchronise(backbone.device)
        return shared.clock()

    def run() -> None:
        tokens = shared.spec.latency.tokens
        with torch.inference_mode(), backbone.computing(shared.spec.backbone.dtype):
            started = now()
            state = decoding.prefill(backbone, batch)
            filled = now()
            for _ in range(tokens):
                state = decoding.decode(backbone, state, decoding.greedy(state))
            laps.append((filled - started, (now() - filled) / tokens))

    return run


def _merged(
    shared: Pass, batches: Sequence[TimedBatch], largest: TimedBatch, before: Logits
) -> tuple[list[dict[str, Samples]], dict[str, float]]:
    """Latencies of the adapters that can be folded, and the largest change of a logit that folding causes.

    Args:
        shared: the pass.
        batches: the batches to time.
        largest: the batch whose logits are compared.
        before: the logits of all configurations on it, unmerged.
    """
    networks: dict[str, Backbone] = {}
    logits: Logits = {}
    with ExitStack() as stack:
        for name, edit in shared.edits.items():
            if not edit.adapters():
                continue  # nothing to fold: the network is plain already
            try:
                stack.enter_context(edit.merged())
            except NotMergeable:
                continue
            networks[name] = edit.backbone
        if not networks:
            return [{} for _ in batches], {}
        merged = [_latencies(shared, networks, b, "merged latency", logits if b is largest else {}) for b in batches]
        after = _completed(shared, networks, largest, logits)
        return merged, {name: float((after[name] - before[name]).abs().max()) for name in networks}


def _folding(shared: Pass, names: Mapping[str, float]) -> Samples:
    """Seconds of folding all adapters of a network into plain layers, putting these in place and taking them out."""

    def action(edit: Edit) -> Callable[[], None]:
        def run() -> None:
            with edit.merged():
                pass

        return run

    return _warm_samples(shared.rounds, "merging", {name: action(shared.edits[name]) for name in names})


def _switching(shared: Pass) -> Samples:
    """Seconds of replacing the adapter by another one that is on the device: its tensors and its head."""

    def action(edit: Edit) -> Callable[[], None]:
        targets = serving.targets(edit)
        other = {name: t.detach().clone() for name, t in targets.items()}
        return lambda: serving.place(targets, other)

    with torch.no_grad():
        return _warm_samples(shared.rounds, "switching adapters", {n: action(edit) for n, edit in shared.edits.items()})


def _cells(
    batch: TimedBatch, name: str, plain: Mapping[str, Samples], merged: Mapping[str, Samples]
) -> Iterator[dict[str, Any]]:
    """What a record says of one label at one shape: one cell for each phase."""
    rows, length = batch.shape
    for phase, samples in plain.items():
        folded = merged.get(phase, {})
        yield {
            "phase": phase,
            "batch": rows,
            "length": length,
            "typical": batch.typical,
            "unmerged": _statistics(samples, name),
            "merged": _statistics(folded, name) if name in folded else None,
        }


def _statistics(samples: Samples, name: str) -> dict[str, Any]:
    own = samples[name]
    return {
        **timing.summary(own),
        "p95": float(np.quantile(own, 0.95)) if len(own) >= TAIL else None,
        "ratio": None if name == BASE else timing.ratio(own, samples[BASE]),
    }
