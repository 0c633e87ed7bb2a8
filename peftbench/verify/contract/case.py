"""What a promise is tried on: a method on a tiny network (`Case`), and the two put together (`AdaptedModel`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones import prompt
from peftbench.backbones.load import Backbone
from peftbench.backbones.losses import counted, loss_sum
from peftbench.errors import UserError
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.method.registry import make
from peftbench.records.spec import TrainSpec
from peftbench.run.train import Trainer
from peftbench.verify.contract.networks import LABELS, NETWORKS, Network
from peftbench.verify.contract.networks import make as make_network

Batch = dict[str, Tensor]

LENGTHS = (12, 9, 5, 7)  # tokens of each row of a batch; most rows are padded
END = 4  # the token that ends a text
STEPS = 3
RATE = 1e-2  # large, so that three steps move every tensor far beyond rounding


@dataclass(frozen=True)
class Case:
    """A method with hyperparameters, and the network to try it on.

    Attributes:
        method: a class that follows the contract, registered or not.
        hyper: the hyperparameters that differ from the defaults.
        backbone: a key of `networks.NETWORKS`, such as "tiny-encoder", "tiny-decoder" or "tiny-t5".
    """

    method: type[Method]
    hyper: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "tiny-encoder"

    @property
    def network(self) -> Network:
        """What the network is."""
        return NETWORKS[self.backbone]

    @property
    def kind(self) -> str:
        """The kind of task."""
        return self.network.kind

    @property
    def causal_ids(self) -> str:
        """The name of the input with causal attention, in which a token attends to itself and earlier tokens."""
        return "decoder_input_ids" if self.network.has_decoder_inputs else "input_ids"

    @cached_property
    def made(self) -> Method:
        """The method with the case's hyperparameters."""
        return make(self.method, self.hyper)

    def refusal(self) -> str | None:
        """Return why the method rejects this network with these hyperparameters; None if it accepts it."""
        try:
            self.made.attach(Edit(network(self)))
        except UserError as error:
            return str(error)
        return None

    def __str__(self) -> str:
        hyper = " ".join(f"{k}={v}" for k, v in self.hyper.items())
        return f"{self.method.name}{' ' if hyper else ''}{hyper} on {self.backbone}"


class AdaptedModel:
    """A new tiny network with the case's method attached, before training.

    Attributes:
        case: the method, its hyperparameters and the network.
        backbone: the network with its sites and head.
        net: the transformers network.
        edit: the edit with the method's adapters.
        method: the method with its hyperparameters.
        trainer: the trainer; None until `start`.
    """

    def __init__(self, case: Case, seed: int = 1, backbone: Backbone | None = None, **options: Any) -> None:
        """Attach the method.

        Args:
            case: the method, its hyperparameters and the network.
            seed: the seed of the adapter's initial values.
            backbone: the network to attach to; by default a new one.
            options: arguments of `networks.make` for a new network, such as `dtype`.
        """
        self.case = case
        self.backbone = backbone or network(case, **options)
        self.net = self.backbone.net
        self.edit = Edit(self.backbone)
        self.method = case.made
        torch.manual_seed(seed)
        self.method.attach(self.edit)
        self.trainer: Trainer | None = None

    def start(self, rate: float = RATE) -> Trainer:
        """Create the optimiser. From here on the head and the method train."""
        spec = TrainSpec(rate, STEPS, len(LENGTHS), max(LENGTHS), warmup=0.0, decay="constant", clip=None)
        self.trainer = Trainer.start(self.edit, self.method, spec, "float32")
        return self.trainer

    def train(
        self, steps: int = STEPS, seed: int = 1, first: int = 0, of: int | None = None, seeded: bool = True
    ) -> list[float]:
        """Train for a few steps, as the runner does.

        Args:
            steps: the number of optimiser steps.
            seed: the seed of the batches and the dropout.
            first: the number of steps that were taken before.
            of: the number of steps of the whole training; by default these are all.
            seeded: whether the stream of the dropout begins anew.

        Returns:
            The loss of each step.
        """
        trainer, of = self.trainer or self.start(), of or steps
        self.net.train()
        if seeded:
            torch.manual_seed(seed)
        losses = []
        for step in range(first, first + steps):
            losses.append(float(trainer.step(batch(self.case, 100 * seed + step), (step + 1) / of)))
        return losses

    def logits(self, inputs: Batch | None = None) -> Tensor:
        """Return the network's logits in evaluation mode.

        Args:
            inputs: a batch; by default one fixed padded batch. Labels are ignored.

        Returns:
            (rows, classes) for a classifier, else (rows, tokens, vocabulary) of the text's own tokens.
        """
        plain = batch(self.case) if inputs is None else inputs
        widened = self.backbone.inputs(plain)
        out = evaluated_logits(self.net, widened)
        if self.backbone.virtual_tokens:  # the promises concern the text's own tokens
            out = prompt.remove(out, widened, self.net.get_input_embeddings().num_embeddings)
        return out

    def gradients(self, dtype: str = "float32") -> dict[str, Tensor]:
        """Return the gradients of one batch's loss, in the network's current mode.

        Args:
            dtype: "float32", or "bfloat16" for autocast.

        Returns:
            The gradient of each trained parameter by its name, the head's included.
        """
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
        """Let the head's parameters train."""
        for p in self.backbone.head_parameters():
            p.requires_grad_(True)

    def head(self) -> list[Tensor]:
        """Return copies of the head's tensors."""
        return [p.detach().clone() for p in self.backbone.head_parameters()]

    def set_head(self, tensors: list[Tensor]) -> None:
        """Copy values into the head's tensors."""
        with torch.no_grad():
            for p, value in zip(self.backbone.head_parameters(), tensors, strict=True):
                p.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the adapter's state."""
        return {name: t.clone() for name, t in self.edit.state().items()}


def network(case: Case, **options: Any) -> Backbone:
    """Return a new copy of the case's tiny network, always with the same weights.

    Args:
        case: the case.
        options: arguments of `networks.make`: `dtype` and `gradient_checkpointing`.
    """
    loaded = _loaded(case.backbone, tuple(sorted(options.items())))
    net, parameters = copy.deepcopy((loaded.net, loaded.parameters))
    return replace(loaded, net=net, parameters=parameters)


@lru_cache
def _loaded(name: str, options: tuple[tuple[str, Any], ...]) -> Backbone:
    """Make a network with weights that reveal a mistake.

    The preset's own weights are as small as those of a new transformer, and its biases are zero: a wrong adapter would
    change the logits by only 1e-6. Here the weights keep the scale of activations from layer to layer. They are rounded
    to bfloat16, so that the network is the same in both precisions.
    """
    backbone = make_network(name, **dict(options))
    draws = torch.Generator().manual_seed(7)
    norms = {id(m.weight) for m in backbone.net.modules() if "norm" in type(m).__name__.lower()}
    queries = [backbone.net.get_submodule(s.path).weight for s in backbone.sites.of("q")]
    unscaled = {id(w) for w in queries if backbone.sites.kind == "t5"}  # T5 folds 1 / sqrt(head width) into its weights
    with torch.no_grad():
        for p in backbone.parameters.values():
            noise = torch.randn(p.shape, generator=draws)
            value = noise / p.shape[1] ** 0.5 if p.ndim > 1 else 0.2 * noise
            if id(p) in unscaled:
                value /= backbone.net.config.head_dim**0.5
            p.copy_((value + (id(p) in norms)).bfloat16())
        for p in backbone.head_parameters():
            p.data = p.data.float()  # trained parameters are float32, as in the runner
    return backbone


def evaluated_logits(net: nn.Module, inputs: Batch) -> Tensor:
    """Return the network's logits in evaluation mode, without a gradient."""
    net.eval()
    with torch.no_grad():
        return net(**{k: v for k, v in inputs.items() if k != "labels"}).logits


def batch(case: Case, seed: int = 0) -> Batch:
    """Draw sentences of random tokens, padded on the right.

    Args:
        case: decides the inputs' names and the kind of labels.
        seed: the seed of the tokens and labels.

    Returns:
        `input_ids` and `attention_mask` (rows, tokens), and `labels`: (rows,) for a classifier, else (rows, tokens).
    """
    draws = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(5, 256, (len(LENGTHS), max(LENGTHS)), generator=draws)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    if case.network.preset == "tiny-t5" and case.kind == "classification":  # it reads the class off the end token
        ids[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1] = END
    ids = ids * mask
    inputs = {"input_ids": ids, "attention_mask": mask}
    if case.kind == "classification":
        labels = torch.randint(LABELS, (len(LENGTHS),), generator=draws)
    else:
        if case.causal_ids != "input_ids":  # separate target texts, after the decoder's start token
            answers = torch.randint(5, 256, ids.shape, generator=draws)
            answers[:, 0] = 0
            inputs[case.causal_ids] = answers * mask
        labels = inputs[case.causal_ids].masked_fill(mask == 0, -100)
        labels[:, :2] = -100  # the prompt
    return {**inputs, "labels": labels}
