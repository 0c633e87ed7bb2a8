"""The training loss of each kind of task, as a sum and a count, so that micro-batches add up to the batch's mean."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # label of a position that is not trained on: prompt and padding


def counted(kind: str, labels: Tensor) -> int | Tensor:
    """How many terms the loss of a batch has: examples, or for generation the answer tokens that are predicted.

    Tokens are counted where the labels are, and the number stays there: reading it would wait for the device.
    """
    return (labels[:, 1:] != IGNORED).sum() if kind == "generation" else len(labels)


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
