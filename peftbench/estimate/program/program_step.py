"""The training step of another program (programs.py), for the same network and method, on fake tensors.

Only what decides memory is here: which copies exist, in which dtype, and until when. The network is transformers' own;
the method attaches as in a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from peftbench.backbones.load import Backbone
from peftbench.backbones.networks import DTYPES
from peftbench.errors import UserError
from peftbench.estimate.program import program_adapters, program_layers, program_loss
from peftbench.estimate.program.optimizer_state import AllocatedAdamW
from peftbench.estimate.program.programs import Program
from peftbench.estimate.simulate import fake_tensors
from peftbench.measure.timing import Phased
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.records.spec import TrainSpec
from peftbench.run.parallel.ranks import ONE, Ranks
from peftbench.run.train import Batch, Trainer

DTYPES_4BIT = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ProgramTrainer(Trainer):
    """A trainer whose step is that of another program.

    Attributes:
        program: The program.
        alive: What outlives the forward pass: outputs, by name.
        outliving: What 4-bit layers have kept in this forward pass and, until its loss is there, in the one before.
    """

    program: Program = field(default_factory=lambda: Program("plain"))
    alive: dict[str, Any] = field(default_factory=dict)
    outliving: list[Tensor] = field(default_factory=list)

    def step(self, batch: Batch, done: float, live: Phased | None = None) -> Tensor:
        """Take one step; the arguments are those of `Trainer.step`."""
        own, net = self.program, self.backbone.net
        self._show_what_lives()
        batch = self.ranks.share(self.backbone.inputs(batch))
        if own.gradients == "until_forward":
            self.optimizer.zero_grad(set_to_none=True)
        if own.mask == "never":
            batch = {key: value for key, value in batch.items() if key != "attention_mask"}
        before = len(self.outliving)
        with _in_host_memory() if own.offload_activations else nullcontext():
            with self.backbone.computing("bfloat16" if own.autocast else "float32"):
                loss = program_loss.loss_of(net, batch, own, self.alive)
            extra = self.method.extra_loss(net)
            objective = loss if extra is None else loss + extra
            del self.outliving[:before]
            if own.cache and own.outputs != "freed":
                self.alive["prefix"] = self._cached_prefix(len(batch["labels"]))
            if own.outputs == "until_replaced":
                self.alive["loss"] = loss
            _phase(live, "backward")
            objective.backward()
        del objective, extra
        if own.outputs == "freed":
            loss = loss.detach()
        _phase(live, "optimizer")
        if own.outputs == "until_update":
            self.alive.clear()
        if own.gradients != "in_backward":
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            self.ranks.sum_gradients(trained)
            if own.clip:
                self.ranks.clip(trained, 1.0)
            self.optimizer.step()
            self.method.after_step(net, done)
            if own.gradients in ("freed", "kept"):
                self.optimizer.zero_grad(set_to_none=own.gradients == "freed")
        return loss.detach()

    def _cached_prefix(self, texts: int) -> list[Tensor]:
        """Return the keys and values of a prefix, which a cache holds once for each text."""
        slots = [module for site, module in self.edit.placed() if site.role == "prefix"]
        tables = [p for slot in slots for name, p in slot.named_parameters() if name in ("K", "V")]
        dtype = DTYPES[self.program.weights]
        return [torch.empty(texts, *table.shape, dtype=dtype, device=table.device) for table in tables]

    def _show_what_lives(self) -> None:
        """Let the memory tracker see what the last step has left alive: it counts what an operation touches."""
        cache = getattr(self.alive.get("cache"), "layers", ())
        cached = [[layer.keys, layer.values] for layer in cache if getattr(layer, "is_initialized", False)]
        for leaf in tree_leaves([self.alive, self.outliving, cached]):
            if isinstance(leaf, Tensor):
                leaf.detach()


def on_network(own: Program, net: Any) -> Program:
    """Return a program with the parts that a network leaves it: some losses are whole, some attention is the network's.

    Args:
        own: The program.
        net: A transformers network.

    Raises:
        UserError: The user gave a part that the network does not take.
    """
    if own.loss != "whole" and not program_loss.writes_on(net):
        if own.demands("loss"):
            raise UserError(
                f"--part loss={own.loss}: it is for networks that write on; this {net.config.model_type} network's "
                "loss is whole, so leave the part out"
            )
        own = replace(own, loss="whole")
    if own.attention != "eager" and net.config._attn_implementation == "eager":
        if own.demands("attention"):
            raise UserError(
                f"--part attention={own.attention}: this {net.config.model_type} network computes its attention "
                "itself, and no kernel of torch does (soft-capping, sinks or disentangled attention); give --part "
                "attention=eager, or leave the part out"
            )
        own = replace(own, attention="eager")
    return own


def trainer_of(backbone: Backbone, method: Method, own: Program, ranks: Ranks = ONE) -> ProgramTrainer:
    """Attach a method and make the trainer of another program.

    What the method adds has the program's dtype for it; weights of the base that train keep their own.

    Raises:
        UserError: The program's optimiser would replace one that is not AdamW.
    """
    net, edit = backbone.net, Edit(backbone)
    if own.own_head:
        program_layers.untie_head(net)
    method.attach(edit)
    backbone.reset_head()
    added = {id(p) for p in edit.own()}
    for p in net.parameters():
        if p.is_floating_point():
            p.data = p.data.to(DTYPES[own.trained if id(p) in added else own.weights])
    if own.adapters == "plain":
        program_adapters.compute_plainly(edit, own)
    outliving: list[Tensor] = []
    program_layers.shape(net, edit, own, outliving)
    if own.checkpointing and own.input_gradients:
        net.enable_input_require_grads()
    if own.attention == "eager":
        net.config._attn_implementation = "eager"
    if backbone.kind == "classification":  # DeBERTa's loss gathers by the labels' values where it has to guess this
        net.config.problem_type = "single_label_classification"
    net.config.use_cache = own.cache
    made = Trainer.start(edit, method, TrainSpec(method.lr, 100, 1, 1), "float32", ranks)
    optimizer = _optimizer(made.optimizer, net, method, own)
    trainer = ProgramTrainer(backbone, edit, method, made.spec, made.dtype, optimizer, ranks, own, outliving=outliving)
    if own.gradients == "in_backward":
        _update_in_backward(optimizer)
    return trainer


@contextmanager
def context(own: Program) -> Iterator[None]:
    """Enter the kernels of a program on a GPU: its attention, and dropout that keeps a mask of one byte."""
    from transformers.integrations import sdpa_attention

    with ExitStack() as stack:
        kernel = {"math": "math", "eager": None}.get(own.attention, "flash")
        stack.enter_context(fake_tensors.attention(kernel))
        stack.enter_context(fake_tensors.dropout_of_a_gpu())
        if own.quantised_from != "bfloat16":
            stack.enter_context(program_layers.dequantised_in(DTYPES_4BIT[own.quantised_from]))
        if own.adapters == "plain":
            stack.enter_context(program_adapters.unfused())
        usual = sdpa_attention.use_gqa_in_sdpa
        if not own.grouped:
            sdpa_attention.use_gqa_in_sdpa = lambda *_: False
        try:
            yield
        finally:
            sdpa_attention.use_gqa_in_sdpa = usual


def _optimizer(usual: torch.optim.Optimizer, net: nn.Module, method: Method, own: Program) -> torch.optim.Optimizer:
    """Return the program's optimiser over the groups of the method's."""
    if type(usual) is not torch.optim.AdamW:
        if own.optimizer != "adamw":
            raise UserError(
                f"{method.name} has an optimiser of its own, {type(usual).__name__}; leave --part optimizer out"
            )
        return usual
    groups = [{k: g[k] for k in ("params", "lr", "weight_decay", "peak_lr")} for g in usual.param_groups]
    if not own.decay_apart:
        groups = _joined(groups, net)
    made: torch.optim.Optimizer
    if own.optimizer == "adamw":
        made = torch.optim.AdamW(groups, lr=method.lr, fused=own.update == "fused", foreach=own.update == "foreach")
    elif own.optimizer == "sgd":
        made = torch.optim.SGD(groups, lr=method.lr, foreach=own.update == "foreach")
    else:
        paged, bits = own.optimizer.startswith("paged_"), 8 if own.optimizer.endswith("8bit") else 32
        made = AllocatedAdamW(groups, method.lr, bits, paged)
    for owner, state in usual.state.items():  # what a method stores with the moments
        made.state[owner] = state
    return made


def _joined(groups: list[dict[str, Any]], net: nn.Module) -> list[dict[str, Any]]:
    """Return one group for each rate, with the parameters in the network's order."""
    order = {id(p): i for i, p in enumerate(net.parameters())}
    by_rate: dict[float, dict[str, Any]] = {}
    for group in groups:
        made = by_rate.setdefault(group["lr"], {**group, "params": []})
        made["params"] = sorted([*made["params"], *group["params"]], key=lambda p: order[id(p)])
    return list(by_rate.values())


def _update_in_backward(optimizer: torch.optim.Optimizer) -> None:
    """Update and free each parameter's gradient as soon as it is there."""
    kind: Any = type(optimizer)
    more = (optimizer.bits, optimizer.paged) if isinstance(optimizer, AllocatedAdamW) else ()
    for group in optimizer.param_groups:
        rest = {k: v for k, v in group.items() if k != "params"}
        for p in group["params"]:
            one = kind([{**rest, "params": [p]}], group["lr"], *more)
            one.state = optimizer.state  # one table for all, as the tracker looks there

            def update(p: Tensor, one: Any = one) -> None:
                one.step()
                p.grad = None

            p.register_post_accumulate_grad_hook(update)


@contextmanager
def _in_host_memory() -> Iterator[None]:
    """Keep what backward needs on another device, from forward to backward; parameters stay where they are."""

    def pack(t: Tensor) -> Any:
        if isinstance(t, nn.Parameter):
            return t
        return (torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"), t.device)

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        moved, device = kept
        return torch.empty_strided(moved.shape, moved.stride(), dtype=moved.dtype, device=device)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _phase(live: Phased | None, name: str) -> None:
    if live is not None:
        live.phase(name)
