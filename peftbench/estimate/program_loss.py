"""How programs get from hidden states to a loss: with all logits at once, by parts, or without keeping any."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from peftbench.backbones.losses import IGNORED
from peftbench.estimate.programs import Program


def outputs_and_loss(net: Any, batch: Mapping[str, Tensor], own: Program) -> tuple[dict[str, Any], Tensor]:
    """Run the forward pass of a program.

    Args:
        net: A transformers network.
        batch: Its inputs, with labels.
        own: The program.

    Returns:
        What the program may keep alive, by name, and the mean loss.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if net.get_output_embeddings() is None or net.config.is_encoder_decoder:  # a classifier, or T5
        out = net(**batch)
        return {"logits": out.logits}, out.loss
    if own.loss == "whole" and own.exact_loss:
        out = net(**batch)
        logits = out.logits.float() if own.float_outputs else out.logits
        return {"logits": logits, "cache": out.past_key_values}, out.loss
    if own.loss == "whole":
        out = net(**inputs)
        labels = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
        loss = functional.cross_entropy(out.logits.flatten(0, 1), labels, ignore_index=IGNORED)
        return {"logits": out.logits, "cache": out.past_key_values}, loss
    hidden = net.base_model(**inputs).last_hidden_state
    labels = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    if own.loss == "chunked":
        return _by_parts(net, hidden, labels, own)
    head = net.get_output_embeddings()
    return {}, _Fused.apply(hidden.flatten(0, 1), head.weight, labels.flatten())


def _by_parts(net: Any, hidden: Tensor, labels: Tensor, own: Program) -> tuple[dict[str, Any], Tensor]:
    """Return the logits of each part, and the loss: every part's cross-entropy keeps its own intermediate results."""
    head = net.get_output_embeddings()
    parts = [head(part) for part in hidden.split(own.chunk, dim=1)]
    if own.float_outputs:
        parts = [part.float() for part in parts]
    sums = []
    for logits, answers in zip(parts, labels.split(own.chunk, dim=1), strict=True):
        exact = logits.float() if own.exact_loss else logits
        sums.append(
            functional.cross_entropy(exact.flatten(0, 1), answers.flatten(), ignore_index=IGNORED, reduction="none")
        )
        del exact
    return {"logits": parts}, torch.cat(sums).sum() / labels.numel()


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
