"""Training steps of other programs, with real tensors on the CPU: transformers' networks, peft's layers, torch's loop.

Written from what each program does, without this suite's layers, optimisers or trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from peftbench.estimate.program.programs import Program
from peftbench.estimate.simulate.timeline import TimelineTracker

SIZES = {
    "vocab_size": 1_000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config}
KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH, SEQ, LR = 2, 64, 1e-3


def saved_config(folder: Path, architecture: str, **changed: Any) -> Any:
    """Write the config.json of a small network and return the configuration."""
    config = CONFIGS[architecture](**{**SIZES, **changed})
    config.architectures = [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[architecture]]
    config.save_pretrained(folder)
    return config


def network(config: Any, own: Program, adapter: Any) -> nn.Module:
    """Return the network in the dtype of its weights, with peft's adapter; None trains all weights."""
    net = AutoModelForCausalLM.from_config(config, dtype=DTYPES[own.weights])
    net.config._attn_implementation = "eager" if own.attention == "eager" else "sdpa"
    if own.checkpointing:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    net.config.use_cache = own.cache
    if adapter is not None:
        net = get_peft_model(net, adapter, autocast_adapter_dtype=own.trained == "float32")
    return net.train()


def batch_of(padded: bool, size: int = BATCH, length: int = SEQ) -> dict[str, Tensor]:
    """Return a batch; the first text is one token shorter if `padded`."""
    ids = torch.randint(0, 1_000, (size, length))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -1] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}


def groups(net: nn.Module) -> dict[str, list[Tensor]]:
    """Return the tensors that exist before a step by their part."""
    added = [p for p in net.parameters() if p.requires_grad] if isinstance(net, PeftModel) else []
    placed = {id(p) for p in added}
    rest = [t for t in [*net.parameters(), *net.buffers()] if id(t) not in placed]
    return {"weights": rest, "adapter": added, "head": []}


def optimizer(net: nn.Module, own: Program) -> torch.optim.Optimizer:
    """Return the optimiser over what trains."""
    trained = [p for p in net.parameters() if p.requires_grad]
    if own.optimizer == "sgd":
        return torch.optim.SGD(trained, LR, foreach=own.update == "foreach")
    return torch.optim.AdamW(trained, LR, foreach=own.update == "foreach", fused=own.update == "fused")


@contextmanager
def kernels(own: Program) -> Iterator[None]:
    """Run attention by the program's kernel."""
    with sdpa_kernel(KERNELS[own.attention]) if own.attention in KERNELS else nullcontext():
        yield


class Loop:
    """A training loop as people write it; its variables live from one step to the next."""

    def __init__(self, net: Any, own: Program) -> None:
        self.net, self.own, self.outputs = net, own, None
        self.optimizer = optimizer(net, own)
        self.inner: dict[Any, torch.optim.Optimizer] = {}
        if own.gradients == "in_backward":
            self._update_in_backward()

    def step(self, batch: dict[str, Tensor], phase: Callable[[str], None] = lambda _: None) -> None:
        """Take one step."""
        own = self.own
        if own.gradients == "until_forward":
            self.optimizer.zero_grad()
        if own.mask == "never":
            batch = {k: v for k, v in batch.items() if k != "attention_mask"}
        with torch.autocast("cpu", torch.bfloat16, enabled=own.autocast):
            if own.loss == "whole":
                outputs = self.net(**batch)
                loss = outputs.loss
                if own.float_outputs:
                    outputs.logits = outputs.logits.float()
            else:
                outputs, loss = self._chunked(batch)
            if own.outputs != "freed":
                self.outputs = outputs
            del outputs
        phase("backward")
        loss.backward()
        phase("optimizer")
        if own.outputs == "freed":
            loss = loss.detach()
        if own.outputs == "until_update":
            self.outputs = None
        if own.gradients == "in_backward":
            return
        if own.clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        if hasattr(getattr(self.net, "base_model", None), "update_and_allocate"):
            self.net.base_model.update_and_allocate(1)
        if own.gradients in ("freed", "kept"):
            self.optimizer.zero_grad(set_to_none=own.gradients == "freed")

    def _chunked(self, batch: dict[str, Tensor]) -> tuple[Any, Tensor]:
        labels = batch["labels"]
        base = self.net.get_base_model() if hasattr(self.net, "get_base_model") else self.net
        hidden = base.model(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state
        shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        logits = [base.lm_head(part) for part in hidden.split(self.own.chunk, dim=1)]
        if self.own.float_outputs:
            logits = [part.float() for part in logits]
        losses = [
            cross_entropy(part.float().flatten(0, 1), answers.flatten(), ignore_index=-100, reduction="none")
            for part, answers in zip(logits, shifted.split(self.own.chunk, dim=1), strict=True)
        ]
        return logits, torch.cat(losses).sum() / labels.numel()

    def _update_in_backward(self) -> None:
        for p in [p for p in self.net.parameters() if p.requires_grad]:
            one = optimizer(nn.ParameterList([p]), self.own)
            one.state = self.optimizer.state  # where the tracker looks for it

            def update(p: nn.Parameter, one: torch.optim.Optimizer = one) -> None:
                one.step()
                one.zero_grad()

            p.register_post_accumulate_grad_hook(update)


class Comparison(Loop):
    """The loop of peft's method comparison: its variables `outputs` and `loss` live until they are assigned again."""

    loss: Tensor | None = None

    def step(self, batch: dict[str, Tensor], phase: Callable[[str], None] = lambda _: None) -> None:
        """Take one step."""
        items = int(batch["attention_mask"].sum())
        self.optimizer.zero_grad()
        self.outputs = self.net(**batch, num_items_in_batch=items)
        self.loss = self.outputs.loss
        phase("backward")
        self.loss.backward()
        phase("optimizer")
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()


def measured(net: Any, own: Program, padded: bool, loop: Loop | None = None) -> TimelineTracker:
    """Return the tracker of the second step of a loop."""
    loop = loop or Loop(net, own)
    with kernels(own):
        loop.step(batch_of(padded))
        batch = batch_of(padded)
        with TimelineTracker(groups(net), loop.optimizer) as live:
            touch(loop.outputs)
            loop.step(batch, live.phase)
    return live


def course(levels: list[int], phases: list[tuple[int, str]]) -> dict[str, int]:
    """Return the peak of each phase and the bytes after the step."""
    stops = [start for start, _ in phases[1:]] + [len(levels)]
    peaks = {name: max(levels[start - 1 : stop]) for (start, name), stop in zip(phases, stops, strict=True)}
    return {**peaks, "after": levels[-1]}


def touch(kept: Any) -> None:
    """Let the tracker see tensors that no operation of the step touches."""
    for leaf in tree_leaves(list(kept.values()) if hasattr(kept, "values") else kept):
        if isinstance(leaf, Tensor):
            leaf.detach()
        for layer in getattr(leaf, "layers", ()):
            touch([layer.keys, layer.values])
