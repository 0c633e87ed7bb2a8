"""Simulate the peak memory of the step that a run's record tracks, from the run's specification, without weights or
data.

It is the step of `step_estimate` with all settings of the run: its batch, dropout, accumulation and clipping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from peftbench.backbones import load, source
from peftbench.backbones.configuration import load_config
from peftbench.errors import UserError
from peftbench.estimate.simulate import fake_tensors, simulated_step
from peftbench.estimate.simulate.extrapolation import rounds_of, simulate_depths
from peftbench.estimate.simulate.fake_tensors import VALUES_NEEDED, not_estimable
from peftbench.estimate.simulate.simulated_ranks import simulated_ranks
from peftbench.estimate.simulate.timeline import StepTimeline
from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.records.spec import RunSpec
from peftbench.run.train import Trainer
from peftbench.tasks import batches
from peftbench.tasks.tokens import Array, Encoded


def batch_layout(data: Encoded, order: list[Array], pad_id: int, accumulation: int) -> dict[str, Any]:
    """Return the layout of the batch that a run tracks: every tensor's dtype and shape, without values.

    Args:
        data: The encoded training split.
        order: Indices of the examples of each batch.
        pad_id: Id of the padding token.
        accumulation: Number of micro-batches.

    Returns:
        "tensors", the layout; "padded", whether any text is shorter than its batch; "exact", whether this determines
        the peak. It does not if only some micro-batches are padded. Nor does it if there is only one step, because that
        step also creates the optimiser's state.
    """
    made = batches.collate(data, order[batches.widest(data.lengths, order)], pad_id)
    parts = {not bool(part.all()) for part in made["attention_mask"].chunk(accumulation)}
    return {
        "tensors": {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in made.items()},
        "padded": any(parts),
        "exact": len(parts) == 1 and len(order) > 1,
    }


def answer(query: Mapping[str, Any], plugins: Iterable[Path | str] = ()) -> dict[str, Any]:
    """Return what `peak` returns, or the reason for none as "refused": a failure here stops no run."""
    try:
        return peak(query, plugins)
    except UserError as error:
        return {"bytes": None, "refused": str(error)}
    except Exception as error:  # fake tensors raise many kinds of errors
        return {"bytes": None, "refused": f"cannot be simulated: {type(error).__name__}: {error}"}


def peak(query: Mapping[str, Any], plugins: Iterable[Path | str] = ()) -> dict[str, Any]:
    """Simulate the peak of a run's step.

    Args:
        query: "spec" (the run's specification), "kind" and "labels" of its task, and "batch": either "tensors" and
            "padded", as from `batch_layout`, or "rows", "length" and "padded".
        plugins: Python files that register further methods.

    Returns:
        {"bytes": peak, "batch": [texts, tokens]}.

    Raises:
        UserError: The step cannot be simulated.
    """
    spec, kind, labels = RunSpec.from_dict(query["spec"]), query["kind"], query["labels"]
    b, layout = spec.backbone, query["batch"]
    method = make(find(spec.method.name, plugins), spec.method.hyper)
    origin = source.origin(b.model, b.pinned_revision)
    shape: list[int] = []

    def simulate(layers: int | None) -> StepTimeline:
        network = load.load_on_meta(
            origin,
            kind,
            labels,
            b.roles,
            dtype=b.dtype,
            dropout=b.dropout,
            dropout_version=b.dropout_version,
            gradient_checkpointing=b.gradient_checkpointing,
            layers=layers,
        )
        if network.net.config.pad_token_id is None:  # a run uses the tokenizer's; here any id serves
            network.net.config.pad_token_id = 0
        with simulated_ranks(spec.train) as ranks, fake_tensors.fake_mode(layout["padded"]):
            edit = Edit(fake_tensors.replace_tensors(network, fake_tensors.fake_like))
            try:
                method.attach(edit)
                network.reset_head()
                trainer = Trainer.start(edit, method, spec.train, b.dtype, ranks)
                batch = _batch(layout, network)
                shape[:] = batch["input_ids"].shape
                return simulated_step.tracked(trainer, batch)
            except VALUES_NEEDED as error:
                raise not_estimable(method, error) from error

    predicted, *_ = simulate_depths(simulate, rounds_of(load_config(origin, labels, kind, b.dropout)))
    return {"bytes": predicted.bytes, "batch": shape}


def _batch(layout: Mapping[str, Any], network: load.Backbone) -> dict[str, torch.Tensor]:
    """Return the batch, with zeros as tokens and labels."""
    if "tensors" not in layout:
        positions = getattr(network.net.config, "max_position_embeddings", None)
        length = layout["length"] if positions is None else min(layout["length"], positions)
        batch = simulated_step.batch_of(network, layout["rows"], length, layout["padded"])
        return {**batch, "labels": batch["labels"].float()} if network.kind == "regression" else batch
    shapes = layout["tensors"].items()
    return {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (dtype, *shape) in shapes}
