"""A method, its hyperparameters and a network, and the bench on which a promise tries them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones import prompt
from peftbench.backbones.load import Backbone, load
from peftbench.backbones.losses import counted, loss_sum
from peftbench.errors import UserError
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.method.registry import make
from peftbench.records.spec import TrainSpec
from peftbench.run.train import Trainer

Batch = dict[str, Tensor]

ROUNDING = 1e-5  # largest difference, over the largest value, that float32 arithmetic in another order explains
FOLDING = 3e-5  # the same, where a weight and its update are rounded together: 1.6e-5 seen after large steps
LABELS = 3
LENGTHS = (12, 9, 5, 7)  # of a batch's rows: most are padded
STEPS = 3
RATE = 1e-2  # large, so that three steps move every tensor far beyond rounding


@dataclass(frozen=True)
class Case:
    """What a promise is tried on. `method` may be any class that follows the contract, registered or not."""

    method: type[Method]
    hyper: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "tiny-encoder"  # or "tiny-decoder", or "tiny-t5"

    @property
    def kind(self) -> str:
        """The encoder classifies; the decoder, and the two together, generate without a head."""
        return "classification" if self.backbone == "tiny-encoder" else "generation"

    @property
    def causal_ids(self) -> str:
        """The input whose every token sees only what is before it."""
        return "decoder_input_ids" if self.backbone == "tiny-t5" else "input_ids"

    @cached_property
    def made(self) -> Method:
        """The method with the case's hyperparameters."""
        return make(self.method, self.hyper)

    def refusal(self) -> str | None:
        """Why the method does not take this network with these hyperparameters; None where it does."""
        try:
            self.made.attach(Edit(network(self)))
        except UserError as error:
            return str(error)
        return None

    def __str__(self) -> str:
        said = " ".join(f"{k}={v}" for k, v in self.hyper.items())
        return f"{self.method.name}{' ' if said else ''}{said} on {self.backbone}"


class Bench:
    """A fresh network with the method attached: what every run of it starts from."""

    def __init__(self, case: Case, seed: int = 1, backbone: Backbone | None = None, **options: Any) -> None:
        """`options` go to `network`; `seed` is that of the adapter's initialisation."""
        self.case = case
        self.backbone = backbone or network(case, **options)
        self.net = self.backbone.net
        self.edit = Edit(self.backbone)
        self.method = case.made
        torch.manual_seed(seed)
        self.method.attach(self.edit)
        self.trainer: Trainer | None = None

    def start(self, rate: float = RATE) -> Trainer:
        """Make the optimiser; head and method train from here on."""
        spec = TrainSpec(rate, STEPS, len(LENGTHS), max(LENGTHS), warmup=0.0, decay="constant", clip=None)
        self.trainer = Trainer.start(self.edit, self.method, spec, "float32")
        return self.trainer

    def train(self, steps: int = STEPS, seed: int = 1) -> list[float]:
        """Train for a few steps as the runner does; returns the losses. `seed` draws the batches and the dropout."""
        trainer = self.trainer or self.start()
        self.net.train()
        torch.manual_seed(seed)
        losses = []
        for step in range(steps):
            losses.append(float(trainer.step(batch(self.case, 100 * seed + step), (step + 1) / steps)))
        return losses

    def logits(self, inputs: Batch | None = None) -> Tensor:
        """The network's answer in evaluation, without its loss; inputs default to one fixed padded batch."""
        plain = batch(self.case) if inputs is None else inputs
        widened = self.backbone.inputs(plain)
        out = answer(self.net, widened)
        if self.backbone.virtual_tokens:  # promises are about the text's own tokens
            out = prompt.remove(out, widened, self.net.get_input_embeddings().num_embeddings)
        return out

    def gradients(self, dtype: str = "float32") -> dict[str, Tensor]:
        """Gradients of one batch's loss by name, of all that trains, the head too; in the network's present mode."""
        self.head_trains()
        self.net.zero_grad(set_to_none=True)
        inputs = self.backbone.inputs(batch(self.case))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            out = self.net(**{k: v for k, v in inputs.items() if k != "labels"}).logits
        kind = self.backbone.kind
        loss = loss_sum(kind, out, inputs["labels"]) / counted(kind, inputs["labels"])
        extra = self.method.extra_loss(self.net)
        (loss if extra is None else loss + extra).backward()
        found = {n: p.grad for n, p in self.net.named_parameters() if p.requires_grad and p.grad is not None}
        self.net.zero_grad(set_to_none=True)
        return found

    def head_trains(self) -> None:
        for p in self.backbone.head_parameters():
            p.requires_grad_(True)

    def head(self) -> list[Tensor]:
        """Copies of the head's tensors."""
        return [p.detach().clone() for p in self.backbone.head_parameters()]

    def set_head(self, tensors: list[Tensor]) -> None:
        with torch.no_grad():
            for p, value in zip(self.backbone.head_parameters(), tensors, strict=True):
                p.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """A copy of the adapter's state."""
        return {name: t.clone() for name, t in self.edit.state().items()}


def network(case: Case, **options: Any) -> Backbone:
    """A copy of the case's tiny network, always with the same weights; `options` are those of `load`."""
    loaded = _loaded(case.backbone, case.kind, tuple(sorted(options.items())))
    net, parameters = copy.deepcopy((loaded.net, loaded.parameters))
    return replace(loaded, net=net, parameters=parameters)


@lru_cache
def _loaded(preset: str, kind: str, options: tuple[tuple[str, Any], ...]) -> Backbone:
    """The preset with weights in which a mistake shows.

    The presets' own are as small as a new transformer's: a wrong adapter would change the logits by 1e-6, and biases
    are zero. Here every weight is drawn so that signals keep their size, and rounded to what bfloat16 can hold, so that
    the network is the same one in both precisions.
    """
    backbone = load(preset, kind, LABELS, **dict(options))
    draws = torch.Generator().manual_seed(7)
    norms = {id(m.weight) for m in backbone.net.modules() if "norm" in type(m).__name__.lower()}
    queries = [backbone.net.get_submodule(s.path).weight for s in backbone.sites.of("q")]
    unscaled = {id(w) for w in queries if backbone.sites.kind == "t5"}  # T5's weights hold the 1 / sqrt(head width)
    with torch.no_grad():
        for p in backbone.parameters.values():
            noise = torch.randn(p.shape, generator=draws)
            value = noise / p.shape[1] ** 0.5 if p.ndim > 1 else 0.2 * noise
            if id(p) in unscaled:
                value /= backbone.net.config.head_dim**0.5
            p.copy_((value + (id(p) in norms)).bfloat16())
        for p in backbone.head_parameters():
            p.data = p.data.float()  # what trains is float32, as the runner has it
    return backbone


def answer(net: nn.Module, inputs: Batch) -> Tensor:
    """The network's logits in evaluation mode, without a gradient."""
    net.eval()
    with torch.no_grad():
        return net(**{k: v for k, v in inputs.items() if k != "labels"}).logits


def batch(case: Case, seed: int = 0) -> Batch:
    """Random sentences of several lengths, padded on the right; labels as the case's kind of task has them."""
    draws = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(5, 256, (len(LENGTHS), max(LENGTHS)), generator=draws)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = ids * mask
    inputs = {"input_ids": ids, "attention_mask": mask}
    if case.kind == "classification":
        labels = torch.randint(LABELS, (len(LENGTHS),), generator=draws)
    else:
        if case.causal_ids != "input_ids":  # answers of their own, after the token that a decoder begins with
            answers = torch.randint(5, 256, ids.shape, generator=draws)
            answers[:, 0] = 0
            inputs[case.causal_ids] = answers * mask
        labels = inputs[case.causal_ids].masked_fill(mask == 0, -100)
        labels[:, :2] = -100  # the prompt
    return {**inputs, "labels": labels}


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, in type and shape too."""
    return a.dtype == b.dtype and torch.equal(a, b)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, over the largest value of `b`; infinite if something is no number."""
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30))


def tensors(net: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of the network by path, buffers that are not saved included."""
    found: dict[str, Tensor] = dict(net.named_parameters(remove_duplicate=False))
    return {**found, **dict(net.named_buffers(remove_duplicate=False))}


def place(t: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers lie in memory, the same for a parameter and its detached view."""
    return t.untyped_storage().data_ptr(), int(t.storage_offset())


def portrait(backbone: Backbone) -> dict[str, Any]:
    """Everything about a network that an edit must put back: modules, tensors, flags, hooks, attention."""
    net: Any = backbone.net
    seen: dict[str, Any] = {"the attention implementation": net.config._attn_implementation}
    head = {id(p) for p in backbone.head_parameters()}
    for path, module in net.named_modules(remove_duplicate=False):
        where = path or "the network itself"
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        seen[f"{where}: module"] = (type(module).__name__, id(module))
        seen[f"{where}: number of hooks"] = sum(len(getattr(module, h)) for h in hooks)
        seen[f"{where}: attributes"] = sorted(vars(module))
        seen[f"{where}: training mode"] = module.training
    for name, t in tensors(net).items():
        if id(t) not in head:  # the runner's own to train and to reset
            seen[f"{name}: object, type, requires_grad"] = (id(t), t.dtype, t.requires_grad)
            seen[f"{name}: values"] = t.detach().clone()
    return seen


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The first thing that two portraits disagree on, in words."""
    for what in [*before, *(k for k in after if k not in before)]:
        if what not in after:
            return f"{what} is gone"
        if what not in before:
            return f"{what} is new"
        old, new = before[what], after[what]
        if not (same(old, new) if isinstance(old, Tensor) else old == new):
            return f"{what} changed" if isinstance(old, Tensor) else f"{what} was {old} and is {new}"
    return None
