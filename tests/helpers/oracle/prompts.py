"""Prefix tuning, with and without the reparametrisation, and prompt tuning against `peft`.

`peft` puts the prefix into the key-value cache, so that the network counts positions from the prefix's end on; ours
leaves the text's positions alone. It is given the shifted ones here, and then both compute the same: a prefix key has
no position of its own, under rotary embedding neither.

`peft` puts a prompt in front of everything, an encoder's first token included, which pooling then no longer reads. Ours
stands behind it (peftbench/backbones/prompt.py); here its placeholders are put in front, as in `peft`.
"""

from __future__ import annotations

import copy
from typing import Any

import peft
import torch
from torch import Tensor, nn

from oracle.compare import Counterpart, Theirs
from oracle.networks import Ours
from oracle.pairs import Pair, positions, whole

TASKS = {"classification": "SEQ_CLS", "generation": "CAUSAL_LM"}


class Shifted(Theirs):
    """Their text starts at position `shift`."""

    shift: int

    def inputs_of_ours(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = inputs["input_ids"]
        return {**inputs, "position_ids": torch.arange(self.shift, self.shift + ids.shape[1]).expand_as(ids)}


def prefix(ours: Ours) -> Theirs:
    method: Any = ours.method
    config = peft.PrefixTuningConfig(
        task_type=TASKS[ours.model.kind],
        num_virtual_tokens=method.length,
        prefix_projection=method.reparametrise,
        encoder_hidden_size=method.hidden,
    )
    twin = peft.get_peft_model(copy.deepcopy(ours.plain), config, autocast_adapter_dtype=False)
    slots = [site.path for site in ours.backbone.sites.of("prefix")]
    heads, width = ours.backbone.sites.of("prefix")[0].size
    encoder: Any = twin.prompt_encoder["default"]
    pairs = _mlp(ours, encoder, slots) if method.reparametrise else _plain(encoder, slots, heads, width)
    theirs = Shifted(twin.double().eval(), pairs)
    theirs.shift = method.length
    return theirs


def _plain(encoder: Any, slots: list[str], heads: int, width: int) -> dict[str, Pair]:
    """One row for each position: keys and values of the layers in turn, head by head."""
    rows = encoder.embedding.weight
    places = positions(rows).unflatten(1, (2 * len(slots), heads, width))
    named = [f"{slot}.{part}" for slot in slots for part in "KV"]
    return {name: Pair(rows, places[:, i].transpose(0, 1)) for i, name in enumerate(named)}


def _mlp(ours: Ours, encoder: Any, slots: list[str]) -> dict[str, Pair]:
    """Under grouped heads `peft` makes P' as narrow as the keys; ours, and the paper's, is as wide as the network."""
    d, hidden = ours.backbone.sites.width, encoder.transform[0].out_features
    encoder.embedding = nn.Embedding(encoder.embedding.num_embeddings, d)
    encoder.transform[0] = nn.Linear(d, hidden)
    first, last, shared = encoder.transform[0], encoder.transform[2], f"{slots[0]}.shared"
    pairs = {f"{shared}.P": whole(encoder.embedding.weight)}
    for kind in ("weight", "bias"):
        pairs[f"{shared}.first.{kind}"] = whole(getattr(first, kind))
        rows = getattr(last, kind)
        for slot, where in zip(slots, positions(rows).chunk(len(slots)), strict=True):
            pairs[f"{slot}.last.{kind}"] = Pair(rows, where)
    return pairs


class InFront(Theirs):
    """Their batches are longer by the prompt; ours get its placeholders."""

    placeholders: Tensor  # (length,)

    def inputs_of_ours(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        front = self.placeholders.expand(len(ids), -1)
        longer = torch.cat([torch.ones_like(front), mask], dim=1)
        return {"input_ids": torch.cat([front, ids], dim=1), "attention_mask": longer}

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        out = self.net(**inputs).logits
        return out[self.inputs_of_ours(inputs)["attention_mask"].bool()] if out.ndim == 3 else out


def prompt(ours: Ours) -> Theirs:
    (site,) = ours.backbone.sites.of("prompt")
    (width,) = site.size
    method: Any = ours.method
    config = peft.PromptTuningConfig(
        task_type=TASKS[ours.model.kind], num_virtual_tokens=method.length, token_dim=width
    )
    twin = peft.get_peft_model(copy.deepcopy(ours.plain), config, autocast_adapter_dtype=False).double().eval()
    theirs = InFront(twin, {f"{site.path}.P": whole(twin.prompt_encoder["default"].embedding.weight)})
    first = ours.backbone.net.config.vocab_size
    theirs.placeholders = torch.arange(first, first + method.length)
    return theirs


MLP = {"length": 5, "reparametrise": True, "hidden": 7}
COUNTERPARTS = {
    "prefix": Counterpart("prefix", prefix, {"length": 5}, merges=False),
    "prefix, reparametrised": Counterpart("prefix", prefix, MLP, merges=False),
    "prompt": Counterpart("prompt", prompt, {"length": 4}, merges=False),
}
