"""The training loss of each kind of task, as a sum and a count, so that micro-batches add up to the batch's mean."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # label of a position that is not trained on: prompt and padding


def counted(kind: str, labels: Tensor) -> int | Tensor:
    """Return the number of terms in the loss of a batch: examples, or predicted answer tokens for generation.

    Tokens are counted on the labels' device, and the count stays there: reading it would wait for the device.

    Args:
        kind: Kind of task.
        labels: (batch,) or, for generation, (batch, length).
    """
    return (labels[:, 1:] != IGNORED).sum() if kind == "generation" else len(labels)


def loss_sum(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed loss of a batch in float32.

    Classification has the cross-entropy, regression the squared error, and generation the cross-entropy of the next
    answer token.

    Args:
        kind: Kind of task.
        logits: (batch, classes), (batch, 1) for regression, or (batch, length, vocabulary) for generation.
        labels: (batch,) or, for generation, (batch, length), with `IGNORED` at positions that are not trained on.
    """
    logits = logits.float()
    if kind == "classification":
        return F.cross_entropy(logits, labels, reduction="sum")
    if kind == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
