"""The loss without kept logits takes what Liger's kernel is described to take, part by part."""

from __future__ import annotations

from math import ceil

import pytest
import torch

from peftbench.estimate.program.program_loss import _Fused
from peftbench.estimate.simulate.timeline import TimelineTracker


@pytest.mark.parametrize(("rows", "width", "words"), [(96, 32, 1_000), (64, 64, 65), (10, 16, 4_000)])
@pytest.mark.parametrize("head_trains", [False, True])
def test_only_one_part_of_the_logits_exists(rows: int, width: int, words: int, head_trains: bool) -> None:
    hidden = torch.randn(rows, width, dtype=torch.bfloat16, requires_grad=True)
    head = torch.nn.Parameter(torch.randn(words, width, dtype=torch.bfloat16), requires_grad=head_trains)
    labels = torch.zeros(rows, dtype=torch.long)
    optimizer = torch.optim.SGD([head], 0.1)
    with TimelineTracker({"weights": [head], "adapter": [hidden], "head": []}, optimizer) as live:
        loss = _Fused.apply(hidden, head, labels)
        live.phase("backward")
        loss.backward()
    # Liger's description: as many parts as the vocabulary is wider than the layer, each a power of two of rows.
    part = min(rows, 1 << (ceil(rows / ceil(words / width)) - 1).bit_length())
    kept = 2 * rows * width + (2 * words * width if head_trains else 0)  # the gradients, in the dtype of the weights
    losses, logits = 4 * rows, 2 * part * words
    of_the_part = 2 * words * width if head_trains else 2 * part * width  # a product, before it is added
    at_entry = 2 * rows * width + 2 * words * width
    (forward, _), (backward, _) = live.phases
    peak = max(live.levels[forward : backward + 1]) - at_entry
    labels_and_scalars = 8 * rows + 8
    assert 0 <= peak - (kept + losses + logits + of_the_part) <= labels_and_scalars
    assert live.levels[backward] - at_entry <= kept + labels_and_scalars
    assert hidden.grad is not None
    assert hidden.grad.shape == hidden.shape
