"""One method on two copies of a network, ours and Hugging Face peft's, with equal weights and equal settings.

`build` makes both sides of a `Case`: peft's gets the head and the adapter of ours, whose every number is moved away
from where it starts, and `difference` says how far the two networks' outputs then lie apart: that they do the same work
is shown, not supposed. Nothing is dropped on either side: drawing for dropout takes a fifth of BERT's step on a CPU,
the same for both, and would hide as much of what they differ in. `floor` is the same network without an adapter whose
backward pass goes as far. For networks whose layers nothing fuses (BERT, Llama).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import peft.optimizers
import torch
from cases import Case
from torch import Tensor, nn

from peftbench.backbones import devices, source
from peftbench.backbones.configuration import natural_kind
from peftbench.backbones.load import Backbone, load
from peftbench.backbones.losses import IGNORED, counted, loss_sum
from peftbench.backbones.networks import DTYPES
from peftbench.method import registry
from peftbench.method.edit import Edit
from peftbench.records.spec import TrainSpec
from peftbench.run.train import Trainer

RATE = 1e-4
NOISE = 0.02  # added to every number of the adapter
HORIZON = 10_000  # steps of the training that a method's schedule supposes
Batch = dict[str, Tensor]


@dataclass
class Side:
    """A network that can be stepped. `loss` is the mean of a batch, the method's own term included."""

    net: Any
    loss: Callable[[Batch], Tensor]
    optimizer: torch.optim.Optimizer | None  # None where nothing trains
    after_step: Callable[[int], None] = lambda step: None

    def stepper(self, batch: Batch) -> Callable[[], None]:
        """A function that takes one training step each time it is called."""
        self.net.train()
        taken = 0

        def step() -> None:
            nonlocal taken
            taken += 1
            self.loss(batch).backward()
            if self.optimizer is not None:
                self.optimizer.step()
                self.after_step(taken)
                self.optimizer.zero_grad(set_to_none=True)

        return step


@dataclass
class Twins:
    """Both sides, and what the comparison of their outputs needs."""

    ours: Side
    theirs: Side
    backbone: Backbone
    made: Any  # the method
    dtype: str


def build(case: Case, model: str, dtype: str, device: torch.device) -> Twins:
    """Both sides of a case; raises UserError for a model that cannot be had."""
    torch.manual_seed(0)
    backbone = load(model, natural_kind(source.origin(model)), 2, dtype=dtype, dropout=0.0, device=device)
    edit, made = Edit(backbone), registry.make(registry.find(case.method), case.settings(backbone))
    made.attach(edit)
    backbone.reset_head()
    with torch.no_grad():
        for p in edit.trained():
            p += NOISE * torch.randn(p.shape).to(p)
    twin = _theirs(case, backbone, edit, made, model, dtype)
    return Twins(_ours(backbone, edit, made, dtype), twin, backbone, made, dtype)


def batch_for(backbone: Backbone, size: int, length: int) -> Batch:
    """Random tokens, every second row padded by a quarter; a class for each row, or its own tokens to be predicted."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 250, (size, length), generator=draws)
    mask = torch.ones_like(ids)
    mask[::2, length - length // 4 :] = 0
    if backbone.kind == "generation":
        labels = ids.masked_fill(mask == 0, IGNORED)
    else:
        labels = torch.randint(0, 2, (size,), generator=draws)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: t.to(backbone.device) for name, t in batch.items()}


def floor(case: Case, model: str, dtype: str, device: torch.device) -> Side:
    """The frozen network and its head; backward goes down to the lowest layer that the case adapts, as the case's does.

    No gradient of a weight is computed but the head's: this is what the adapters' own work comes on top of.
    """
    torch.manual_seed(0)
    backbone = load(model, natural_kind(source.origin(model)), 2, dtype=dtype, dropout=0.0, device=device)
    backbone.reset_head()
    roles = case.settings(backbone).get("roles", "q v")
    for site in backbone.sites.linear(roles):
        backbone.net.get_submodule(site.path).register_forward_hook(_begin_graph)
    head = backbone.head_parameters()
    for p in head:
        p.requires_grad_(True)
    optimizer = _adamw(head, device) if head else None
    return Side(backbone.net, lambda batch: _mean_loss(backbone.net, batch, backbone, dtype), optimizer)


def _begin_graph(module: nn.Module, args: Any, out: Tensor) -> None:
    if not out.requires_grad:  # above the lowest it does already
        out.requires_grad_(True)


def difference(twins: Twins, batch: Batch, case: Case) -> float:
    """The largest difference of two logits over the largest logit, in evaluation mode; padding does not count.

    Where peft places a prefix or a prompt otherwise than this project, ours is called so that it does the same.
    """
    backbone, given = twins.backbone, batch
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if case.method == "prefix":  # peft counts the text's positions from the prefix's end on
        at = torch.arange(ids.shape[1], device=ids.device) + twins.made.length
        given = {**batch, "position_ids": at.expand_as(ids)}
    if case.method == "prompt":  # peft puts it in front of an encoder's first token too
        first = backbone.net.get_input_embeddings().num_embeddings
        front = torch.arange(first, first + twins.made.length, device=ids.device).expand(len(ids), -1)
        mask = torch.cat([torch.ones_like(front), mask], 1)
        given = {"input_ids": torch.cat([front, ids], 1), "attention_mask": mask}
    with torch.no_grad():
        a = _logits(_evaluating(twins.ours.net), given, backbone, twins.dtype)
        b = _logits(_evaluating(twins.theirs.net), batch, backbone, twins.dtype)
    if a.ndim == 3:
        a, b = a[mask.bool()], b[mask.bool()]
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def _evaluating(net: Any) -> Any:
    """`net` in evaluation mode, bitsandbytes' layers not: evaluated on the CPU, they go over to bfloat16 for good."""
    for module in net.eval().modules():
        if type(module).__module__.startswith("bitsandbytes"):
            module.training = True
    return net


def _logits(net: Any, batch: Batch, backbone: Backbone, dtype: str) -> Tensor:
    with devices.autocast(backbone.device, dtype):
        out: Tensor = net(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return out


def _mean_loss(net: Any, batch: Batch, backbone: Backbone, dtype: str, front: int = 0) -> Tensor:
    """The task's loss, computed in one way for everybody; `front` outputs more than labels are at the beginning."""
    labels = batch["labels"]
    if front:
        labels = torch.cat([labels.new_full((len(labels), front), IGNORED), labels], 1)
    return loss_sum(backbone.kind, _logits(net, batch, backbone, dtype), labels) / counted(backbone.kind, labels)


def _ours(backbone: Backbone, edit: Edit, made: Any, dtype: str) -> Side:
    trainer = Trainer.start(edit, made, TrainSpec(RATE, HORIZON, 1, 1), dtype)

    def loss(batch: Batch) -> Tensor:
        value = _mean_loss(backbone.net, backbone.inputs(batch), backbone, dtype)
        extra: Tensor | None = made.extra_loss(backbone.net)
        return value if extra is None else value + extra

    return Side(backbone.net, loss, trainer.optimizer, lambda step: made.after_step(backbone.net, step / HORIZON))


def _theirs(case: Case, backbone: Backbone, edit: Edit, made: Any, model: str, dtype: str) -> Side:
    plain = _untouched(case, backbone, made, model, dtype)
    twin = peft.get_peft_model(plain, case.config(backbone, made))
    for path in backbone.head:
        for name, p in plain.get_submodule(path).named_parameters():
            p.requires_grad_("original_module" not in name)  # which peft sets aside where it trains a copy
    for name, p in twin.named_parameters():
        if ".ranknum." in name:  # AdaLoRA's rank, a constant, which peft lets train where it casts it from bfloat16
            p.requires_grad_(False)
    case.copy(edit, twin)
    if case.method == "lora_plus":
        settings = {"lr": RATE, "loraplus_lr_ratio": made.ratio, "fused": _fuses(backbone.device)}
        optimizer = peft.optimizers.create_loraplus_optimizer(twin, torch.optim.AdamW, **settings)
    else:
        optimizer = _adamw([p for p in twin.parameters() if p.requires_grad], backbone.device)
    if case.method != "adalora":
        front = made.length if case.method == "prompt" and backbone.kind == "generation" else 0
        return Side(twin, lambda batch: _mean_loss(twin, batch, backbone, dtype, front), optimizer)

    def loss(batch: Batch) -> Tensor:
        with devices.autocast(backbone.device, dtype):
            value: Tensor = twin(**batch).loss  # peft adds its orthogonality to what the network itself computes
        return value

    return Side(twin, loss, optimizer, twin.base_model.update_and_allocate)


def _untouched(case: Case, backbone: Backbone, made: Any, model: str, dtype: str) -> Any:
    """The network as transformers loads it, frozen, with our head; where the case says so, in bitsandbytes' NF4."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    settings: dict[str, Any] = {"dtype": DTYPES[dtype]}
    if case.quantised:
        settings["device_map"] = {"": backbone.device}
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=made.double_quant,
            bnb_4bit_compute_dtype=DTYPES[dtype],
            llm_int8_skip_modules=[*backbone.head, "lm_head"],
        )
    build = partial(AutoModelForSequenceClassification.from_pretrained, num_labels=2, ignore_mismatched_sizes=True)
    if backbone.kind == "generation":
        build = AutoModelForCausalLM.from_pretrained
    net = build(source.locate(model), **settings)
    net = (net if case.quantised else net.to(backbone.device)).requires_grad_(False)
    for path in backbone.head:
        net.get_submodule(path).float().load_state_dict(backbone.net.get_submodule(path).state_dict())
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    net.config.use_cache = False
    return net


def _adamw(parameters: list[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=_fuses(device))


def _fuses(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda")
