"""How programs get from hidden states to a loss: with all logits at once, by parts, or without keeping any."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from peftbench.backbones.losses import IGNORED
from peftbench.estimate.program.programs import Program


def loss_of(net: Any, batch: Mapping[str, Tensor], own: Program, alive: dict[str, Any]) -> Tensor:
    """Run the forward pass of a program and return its mean loss.

    Args:
        net: A transformers network.
        batch: Its inputs, with labels.
        own: The program.
        alive: Holds the last step's outputs, and then those that the program keeps.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if not writes_on(net) or (own.loss == "whole" and own.exact_loss):
        out = net(**batch)
        loss = out.loss
        logits = out.logits.float() if own.float_outputs else out.logits
        _replace(alive, {"logits": logits, "cache": getattr(out, "past_key_values", None)}, own)
        return loss
    labels = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    if own.loss == "whole":
        out = net(**inputs)
        _replace(alive, {"logits": out.logits, "cache": out.past_key_values}, own)
        return functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    hidden, head = net.base_model(**inputs).last_hidden_state, net.get_output_embeddings()
    if own.loss == "fused":
        _replace(alive, {}, own)
        return _Fused.apply(hidden.flatten(0, 1), head.weight, labels.flatten())
    parts = [_capped(head(part), net) for part in hidden.split(own.chunk, dim=1)]
    if own.float_outputs:
        parts = [part.float() for part in parts]
    _replace(alive, {"logits": parts}, own)
    return _by_parts(parts, labels, own)


def writes_on(net: Any) -> bool:
    """Whether a network has a head over words behind its last layer: no classifier, no T5."""
    return net.get_output_embeddings() is not None and not net.config.is_encoder_decoder


def _capped(logits: Tensor, net: Any) -> Tensor:
    """Return the logits as the network's own head gives them: Gemma 2 bounds them by a tanh (arXiv:2408.00118)."""
    cap = getattr(net.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _replace(alive: dict[str, Any], outputs: dict[str, Any], own: Program) -> None:
    """Let the last outputs go, and hold the new ones if the program does."""
    alive.clear()
    if own.outputs != "freed":
        alive.update(outputs)


def _by_parts(parts: list[Tensor], labels: Tensor, own: Program) -> Tensor:
    """Return the mean loss; the cross-entropy of every part keeps intermediate results of its own."""
    sums = []
    for logits, answers in zip(parts, labels.split(own.chunk, dim=1), strict=True):
        exact = logits.float() if own.exact_loss else logits
        sums.append(
            functional.cross_entropy(exact.flatten(0, 1), answers.flatten(), ignore_index=IGNORED, reduction="none")
        )
        del exact
    return torch.cat(sums).sum() / labels.numel()


class _Fused(torch.autograd.Function):
    """Linear layer and cross-entropy in one (Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989, section 3.2).

    The gradient is computed in the forward pass, by parts of the rows: only the part's logits exist, and they become
    its gradient in place. Kept are the gradients of the hidden states and, if it trains, of the head.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        rows, width = hidden.shape
        count = ceil(weight.shape[0] / width)
        size = 1 << (ceil(rows / count) - 1).bit_length()
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        losses = torch.zeros(rows, dtype=torch.float32, device=hidden.device)
        for start in range(0, rows, size):
            part = hidden[start : start + size]
            logits = part @ weight.to(part.dtype).t()
            grad_hidden[start : start + size] = logits @ weight.to(part.dtype)
            if grad_weight is not None:
                grad_weight += logits.t().to(weight.dtype) @ part.to(weight.dtype)
            del logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_weight = ctx.saved_tensors
        to_hidden.mul_(grad.to(to_hidden.dtype))
        return to_hidden, to_weight, None
