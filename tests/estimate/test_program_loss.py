"""The loss without kept logits takes what Liger's kernel is described to take, part by part."""

from __future__ import annotations

from math import ceil

import pytest
import torch

from peftbench.estimate.program.program_loss import _Fused, loss_of
from peftbench.estimate.program.programs import Program
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


@pytest.mark.parametrize("cap", [None, 2.0])
def test_a_loss_by_parts_is_that_of_the_network_which_may_bound_its_logits(cap: float | None) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}
    config = Gemma2Config(**sizes, **heads, final_logit_softcapping=cap, initializer_range=0.5)
    net, ids = Gemma2ForCausalLM(config).eval(), torch.randint(3, 64, (2, 11))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    whole = net(**batch).loss
    by_parts = loss_of(net, batch, Program("plain", loss="chunked", chunk=4), {})
    # Parts are averaged over all tokens, the network's own loss over those that have a next one.
    assert float(by_parts) * ids.numel() == pytest.approx(float(whole) * (ids.numel() - len(ids)), rel=1e-5)
