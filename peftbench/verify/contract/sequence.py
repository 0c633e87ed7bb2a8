"""Promises about sequences: padding, causality, and generation with a cache. They catch wrong prefixes and masks."""

from __future__ import annotations

import torch
from torch import Tensor

from peftbench.verify.contract.case import LENGTHS, AdaptedModel, Batch, Case, batch
from peftbench.verify.contract.compare import ROUNDING, distance, same

NEW_TOKENS = 6


def padding_changes_nothing(case: Case) -> None:
    """A sentence computes the same alone as padded among longer ones, on the right or (a decoder) on the left."""
    model = _trained(case)
    inputs = batch(case)
    sides = ("right", "left") if case.kind == "generation" else ("right",)
    for side in sides:
        padded = model.logits(inputs if side == "right" else _left(inputs, case))
        for row, length in enumerate(LENGTHS):
            alone = model.logits({k: v[row : row + 1, :length] for k, v in inputs.items() if k != "labels"})[0]
            among = padded[row]
            if case.kind == "generation":
                left = side == "left" and case.causal_ids == "input_ids"
                among = among[-length:] if left else among[:length]
            off = distance(among, alone, padded)
            assert off <= ROUNDING, (
                f"a sentence of {length} tokens padded on the {side} to {max(LENGTHS)} gives other logits than alone, "
                f"by {off:.1e} of their size; the mask must cover what the method puts in"
            )


def the_future_changes_nothing(case: Case) -> None:
    """In a causal model, a token changes no logit before it, and does change its own."""
    model = _trained(case)
    for padded in (True, False):
        length = max(LENGTHS) if padded else min(LENGTHS)
        inputs = {k: v[:, :length] for k, v in batch(case).items() if k != "labels"}
        before = model.logits(inputs)
        for at in (1, 3, min(LENGTHS) - 1):
            other = inputs[case.causal_ids].clone()
            other[:, at] = (other[:, at] + 17) % 200 + 5
            after = model.logits({**inputs, case.causal_ids: other})
            off = distance(after[:, :at], before[:, :at])
            assert off <= ROUNDING, (
                f"changing token {at} changes the logits of tokens before it by {off:.1e} of their size: the method "
                "lets a token see the future"
            )
            assert not same(after[:, at], before[:, at]), f"changing token {at} does not change its own logits"


def cached_generation_is_the_same(case: Case) -> None:
    """Generation with a key-value cache gives the tokens and logits that it gives without."""
    model = _trained(case)
    inputs = _left(batch(case), case)
    found = [_generated(model, inputs, cached) for cached in (True, False)]
    off = distance(found[0][1], found[1][1])
    assert off <= ROUNDING, (
        f"with a cache the logits of generated tokens differ by {off:.1e} of their size from those without; a query of "
        "one token must see the method's change exactly once"
    )
    assert same(found[0][0], found[1][0]), "with a cache other tokens are generated than without"


def _trained(case: Case) -> AdaptedModel:
    """Return the case's model after a few steps, in evaluation mode."""
    model = AdaptedModel(case)
    model.train()
    model.net.eval()
    return model


def _generated(model: AdaptedModel, inputs: Batch, cached: bool) -> tuple[Tensor, Tensor]:
    """Generate greedily; return the tokens (rows, length) and each new token's logits (rows, new, vocabulary)."""
    inputs = model.backbone.inputs({k: inputs[k] for k in ("input_ids", "attention_mask")})
    with torch.no_grad():
        out = model.net.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=cached,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return out.sequences, torch.stack(out.logits, dim=1)


def _left(inputs: Batch, case: Case) -> Batch:
    """Return the same sentences padded on the left, with positions counted from each sentence's first token.

    For an encoder-decoder only the encoder's input is padded on the left. Its positions are relative.
    """
    ids, mask = torch.zeros_like(inputs["input_ids"]), torch.zeros_like(inputs["attention_mask"])
    for row, length in enumerate(LENGTHS):
        ids[row, -length:], mask[row, -length:] = inputs["input_ids"][row, :length], 1
    if case.causal_ids != "input_ids":
        return {**inputs, "input_ids": ids, "attention_mask": mask}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
