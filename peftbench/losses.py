"""The training loss of each kind of task, as a sum and a count, so that micro-batches add up to the batch's mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

IGNORED = -100  # label of a position that is not trained on: prompt and padding


def counted(kind: str, labels: Tensor) -> int:
    """How many terms the loss of a batch has: examples, or for generation the answer tokens that are predicted."""
    if kind != "generation":
        return len(labels)
    told = (labels[:, 1:] != IGNORED).sum()
    return labels[:, 1:].numel() if isinstance(told, FakeTensor) else int(told)  # without numbers, all are answers


def loss_sum(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (classification, generation: next answer token) or squared error (regression), summed, float32.

    `logits` (batch, classes), (batch, 1) or (batch, length, vocabulary); `labels` (batch) or (batch, length).
    """
    logits = logits.float()
    if kind == "classification":
        return F.cross_entropy(logits, labels, reduction="sum")
    if kind == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")


def finite(loss: Tensor) -> bool:
    return bool(torch.isfinite(loss))
