"""Run the real training step on fake tensors (shapes only) under the memory tracker.

The step is `Trainer.step`. The second step is tracked, so that the optimizer's state exists.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from peftbench.backbones.experts import owner_of
from peftbench.backbones.load import Backbone
from peftbench.backbones.sharded import is_sharded, local
from peftbench.errors import UserError
from peftbench.estimate.card.traffic import KernelCounter, Together
from peftbench.estimate.program.optimizer_state import AllocatedAdamW
from peftbench.estimate.simulate.simulated_ranks import SimulatedRank
from peftbench.estimate.simulate.timeline import StepTimeline, TimelineTracker
from peftbench.measure import module_roles
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.method.layers.nf4 import NF4Linear
from peftbench.method.layers.nf4_quantization import by_shape_alone
from peftbench.method.layers.pieces import alike_pieces_once
from peftbench.records.spec import TrainSpec
from peftbench.run.parallel import shards
from peftbench.run.parallel.ranks import ONE, Ranks
from peftbench.run.train import Trainer

STEPS = 100  # of the training whose second step is simulated; AdaLoRA's budget depends on it
FOUR_BIT = (*NF4Linear.STORED, "pairs", "dynamic")


@dataclass(frozen=True)
class Watch:
    """What a recording of a step replaces in its simulation.

    Attributes:
        counter: Makes what counts the kernels.
        rank: Kind of the first of several processes.
        made: Is given the trainer before its first step.
    """

    counter: Callable[[], KernelCounter] = KernelCounter
    rank: type[SimulatedRank] = SimulatedRank
    made: Callable[[Trainer], None] = lambda _: None


def batch_of(backbone: Backbone, size: int, length: int, padded: bool) -> dict[str, Tensor]:
    """Make a batch of zeros with the tensors that a task's batches have.

    Args:
        backbone: The backbone.
        size: Number of texts.
        length: Tokens of each text.
        padded: Whether the first text is one token shorter.
    """
    config = backbone.net.config
    ids = torch.zeros(size, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -1] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if config.model_type == "bert":
        batch["token_type_ids"] = torch.zeros_like(ids)
    if backbone.kind != "generation":
        return {**batch, "labels": torch.zeros(size, dtype=torch.long)}
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.zeros_like(ids)
    return {**batch, "labels": torch.ones_like(ids)}


def trainer_of(backbone: Backbone, method: Method, dtype: str, optimizer: str = "adamw", ranks: Ranks = ONE) -> Trainer:
    """Attach a method and make its trainer.

    Args:
        backbone: The backbone.
        method: The method.
        dtype: Dtype of the forward pass.
        optimizer: "adamw" for the method's own; "sgd" or "adamw8bit" for another one over the same groups.
        ranks: The processes that share the step.

    Raises:
        UserError: `optimizer` replaces an optimiser that is not AdamW.
    """
    edit = Edit(backbone)
    method.attach(edit)
    backbone.reset_head()
    trainer = Trainer.start(edit, method, TrainSpec(method.lr, STEPS, 1, 1), dtype, ranks)
    if optimizer == "adamw":
        return trainer
    own = trainer.optimizer
    if type(own) is not torch.optim.AdamW:
        raise UserError(f"{method.name} has an optimiser of its own, {type(own).__name__}; leave --optimizer out")
    groups = [{k: g[k] for k in ("params", "lr", "weight_decay", "peak_lr")} for g in own.param_groups]
    other: Any = (torch.optim.SGD if optimizer == "sgd" else AllocatedAdamW)(groups, lr=method.lr)
    for owner, state in own.state.items():  # what a method stores with the moments
        other.state[owner] = state
    return replace(trainer, optimizer=other)


def tracked(
    trainer: Trainer,
    batch: Mapping[str, Tensor],
    by_role: bool = False,
    counter: Callable[[], KernelCounter] = KernelCounter,
) -> StepTimeline:
    """Take a first step, then return the timeline of the second.

    Args:
        trainer: The trainer.
        batch: The batch of both steps.
        by_role: Whether to record the role of every storage.
        counter: Makes what counts the kernels.
    """
    trainer.backbone.net.train()
    with by_shape_alone(), alike_pieces_once():
        trainer.step(batch, 1 / STEPS)
    trainer.edit.check_used()
    gc.collect()
    net, optimizer = trainer.backbone.net, trainer.optimizer
    live = TimelineTracker(trainer.groups(), optimizer, roles=module_roles.of(trainer.backbone) if by_role else None)

    def mark_output(module: nn.Module, args: Any, out: Any) -> None:
        live.mark()
        out.logits.register_hook(live.mark)

    hooks = [
        net.register_forward_hook(mark_output),
        optimizer.register_step_pre_hook(live.mark),
        optimizer.register_step_post_hook(live.mark),
    ]
    try:
        with counter() as kernels, live, alike_pieces_once(kernels.times):
            trainer.step(batch, 2 / STEPS, Together(live, kernels))
    finally:
        for hook in hooks:
            hook.remove()
    group = optimizer.param_groups[0]
    variant = next((v for v in ("fused", "foreach") if group.get(v)), "loop")
    timeline = StepTimeline(live.levels, live.marks, live.phases, live.lives, kernels.total, _held(trainer))
    if isinstance(optimizer, AllocatedAdamW):
        kernels.add("optimizer", *optimizer.work())
    timeline.traffic = kernels.traffic
    if trainer.ranks.shards > 1:
        timeline.shards = _shards(trainer)
    timeline.optimizer = f"{type(optimizer).__name__}, {variant}"
    timeline.attention = net.config._attn_implementation
    timeline.experts = any(owner_of(site.path) for site, _ in trainer.edit.placed())
    return timeline


def _shards(trainer: Trainer) -> dict[str, int]:
    block, rest = shards.gathered_bytes(trainer.backbone)
    sharded = [p for p in trainer.backbone.net.parameters() if is_sharded(p)]
    state = [t for p in sharded for t in tree_leaves(trainer.optimizer.state.get(p, {})) if isinstance(t, Tensor)]
    return {"block": block, "rest": rest, "offloadable": sum(local(t).nbytes for t in [*sharded, *state])}


def _held(trainer: Trainer) -> dict[str, int]:
    """Return the bytes that exist before a step: storages of each group, once, and of 4-bit layers by tensor."""
    seen: set[int] = set()
    held: dict[str, int] = {}

    def add(name: str, tensor: Tensor) -> None:
        storage = local(tensor).untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            held[name] = held.get(name, 0) + storage.nbytes()

    for module in trainer.backbone.net.modules():
        if isinstance(module, NF4Linear):
            for name in FOUR_BIT:
                if getattr(module, name) is not None:
                    add(f"4-bit {name}", getattr(module, name))
    for name, tensors in trainer.groups().items():
        held.setdefault(name, 0)
        for t in tensors:
            add(name, t)
    return held
