"""Generation in its two parts, as it is measured: one pass over the prompt, and one pass for each token after it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.load import Backbone


@dataclass(frozen=True)
class Begun:
    """Texts of which some tokens are read: what the next pass needs of the last ones."""

    logits: Tensor  # (batch, vocabulary), for the next token
    cache: Any  # keys and values of every layer; a later pass adds to it
    mask: Tensor  # (batch, tokens so far), of the prompt where an encoder reads that
    encoded: Any = None  # what the encoder made of the prompt, if there is one


def prefill(backbone: Backbone, batch: Mapping[str, Tensor]) -> Begun:
    """Read the prompts ``batch``, input_ids and attention_mask (batch, length), unpadded, and fill a cache."""
    inputs = backbone.inputs(batch)
    if backbone.decoder_start is not None:
        inputs["decoder_input_ids"] = torch.full_like(inputs["input_ids"][:, :1], backbone.decoder_start)
    out = backbone.net(**inputs, use_cache=True, **_last_only(backbone.net))
    encoded = (out.encoder_last_hidden_state,) if backbone.decoder_start is not None else None
    return Begun(out.logits[:, -1], out.past_key_values, inputs["attention_mask"], encoded)


def decode(backbone: Backbone, begun: Begun, token: Tensor) -> Begun:
    """Read one more token of each text, (batch, 1), by the cache of all before it."""
    if begun.encoded is not None:
        mask = begun.mask
        inputs = {"encoder_outputs": begun.encoded, "decoder_input_ids": token}
    else:
        mask = torch.cat([begun.mask, torch.ones_like(token)], dim=1)
        inputs = {"input_ids": token}
    out = backbone.net(**inputs, attention_mask=mask, past_key_values=begun.cache, use_cache=True)
    return Begun(out.logits[:, -1], out.past_key_values, mask, begun.encoded)


def greedy(begun: Begun) -> Tensor:
    """The most probable next token of each text, (batch, 1)."""
    return begun.logits.argmax(-1, keepdim=True)


def _last_only(net: Any) -> dict[str, int]:
    """Logits of the last token alone, as generation needs them, where the network can leave the others out."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(net.forward).parameters else {}
