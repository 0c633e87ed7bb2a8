"""The peak memory of the step that a run's record will track, from the run's specification: no weights, no data.

It is the step of `estimate`, with all that the run says about it: its batch, dropout, accumulation and clipping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from peftbench.backbones import load, source
from peftbench.backbones.configuration import load_config
from peftbench.estimate import depth, simulate
from peftbench.estimate.step import NUMBERS_NEEDED, equal_layers, not_estimable, simulated
from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.records.spec import RunSpec
from peftbench.run.train import Trainer
from peftbench.tasks import batches
from peftbench.tasks.tokens import Array, Encoded


def layout(data: Encoded, order: list[Array], pad_id: int, accumulation: int) -> dict[str, Any]:
    """The batch that a run with these batches tracks, without its numbers: every tensor's type and shape.

    `padded`: whether any text is shorter than its batch. `exact`: whether that says it all; it does not where only some
    micro-batches are padded, nor where the first step is the only one, as that one still makes the optimiser's state.
    """
    made = batches.collate(data, order[batches.widest(data.lengths, order)], pad_id)
    parts = {not bool(part.all()) for part in made["attention_mask"].chunk(accumulation)}
    return {
        "tensors": {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in made.items()},
        "padded": any(parts),
        "exact": len(parts) == 1 and len(order) > 1,
    }


def peak(asked: Mapping[str, Any], plugins: Iterable[Path | str] = ()) -> dict[str, Any]:
    """{"bytes", "batch": [texts, tokens]} of a step of the run `asked["spec"]` on the batch `asked["batch"]`.

    Without "tensors" the batch is told by "rows" and "length" alone. Raises UserError for what cannot be simulated.
    """
    spec, kind, labels = RunSpec.from_dict(asked["spec"]), asked["kind"], asked["labels"]
    b, batch = spec.backbone, asked["batch"]
    method = make(find(spec.method.name, plugins), spec.method.hyper)
    origin = source.origin(b.model, b.revision)
    shape: list[int] = []

    def course(layers: int | None) -> simulate.Course:
        network = load.load_on_meta(
            origin,
            kind,
            labels,
            b.roles,
            dtype=b.dtype,
            dropout=b.dropout,
            gradient_checkpointing=b.gradient_checkpointing,
            layers=layers,
        )
        if network.net.config.pad_token_id is None:  # a run takes the tokenizer's; any will do here
            network.net.config.pad_token_id = 0
        with simulate.numberless(batch["padded"]):
            edit = Edit(simulate.fill(network, simulate.fake))
            try:
                method.attach(edit)
                network.reset_head()
                trainer = Trainer.start(edit, method, spec.train, b.dtype)
                made = _batch(batch, network)
                shape[:] = made["input_ids"].shape
                return simulate.tracked(trainer, made)
            except NUMBERS_NEEDED as error:
                raise not_estimable(method, error) from error

    found: depth.Peak = simulated(course, equal_layers(load_config(origin, labels, kind, b.dropout)))[0]
    return {"bytes": found.bytes, "batch": shape}


def _batch(asked: Mapping[str, Any], network: load.Backbone) -> dict[str, torch.Tensor]:
    """Zeros where the run's batch has tokens and labels."""
    if "tensors" not in asked:
        room = getattr(network.net.config, "max_position_embeddings", None)
        length = asked["length"] if room is None else min(asked["length"], room)
        made = simulate.batch_of(network, asked["rows"], length, asked["padded"])
        return {**made, "labels": made["labels"].float()} if network.kind == "regression" else made
    shapes = asked["tensors"].items()
    return {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (dtype, *shape) in shapes}
