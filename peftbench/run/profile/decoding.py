"""The two parts of generation, measured apart: prefill, one pass over the prompt; decoding, one pass for each token."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.load import Backbone


@dataclass(frozen=True)
class DecodingState:
    """What the next pass needs from those before it."""

    logits: Tensor  # (batch, vocabulary), for the next token
    cache: Any  # keys and values of every layer; a later pass adds to it
    mask: Tensor  # (batch, tokens so far), of the prompt where an encoder reads that
    encoded: Any = None  # the encoder's output for the prompt, if there is an encoder


def prefill(backbone: Backbone, batch: Mapping[str, Tensor]) -> DecodingState:
    """Read the prompts ``batch``, input_ids and attention_mask (batch, length), unpadded, and fill a cache."""
    inputs = backbone.inputs(batch)
    if backbone.decoder_start is not None:
        inputs["decoder_input_ids"] = torch.full_like(inputs["input_ids"][:, :1], backbone.decoder_start)
    out = backbone.net(**inputs, use_cache=True, **_last_only(backbone.net))
    encoded = (out.encoder_last_hidden_state,) if backbone.decoder_start is not None else None
    return DecodingState(out.logits[:, -1], out.past_key_values, inputs["attention_mask"], encoded)


def decode(backbone: Backbone, state: DecodingState, token: Tensor) -> DecodingState:
    """Read one more token of each text, (batch, 1), with the cache of all tokens before it."""
    if state.encoded is not None:
        mask = state.mask
        inputs = {"encoder_outputs": state.encoded, "decoder_input_ids": token}
    else:
        mask = torch.cat([state.mask, torch.ones_like(token)], dim=1)
        inputs = {"input_ids": token}
    out = backbone.net(**inputs, attention_mask=mask, past_key_values=state.cache, use_cache=True)
    return DecodingState(out.logits[:, -1], out.past_key_values, mask, state.encoded)


def greedy(state: DecodingState) -> Tensor:
    """The most probable next token of each text, (batch, 1)."""
    return state.logits.argmax(-1, keepdim=True)


def _last_only(net: Any) -> dict[str, int]:
    """The argument with which a network computes the logits of the last token alone, if it has one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(net.forward).parameters else {}
