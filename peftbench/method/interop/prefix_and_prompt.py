"""Export prefixes and prompts to peft's format, and import them from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.load import Backbone
from peftbench.backbones.prompt import is_encoder
from peftbench.errors import UserError
from peftbench.method.interop import rotary_prefix
from peftbench.method.interop.peft_names import Exported, Read
from peftbench.method.interop.trained_adapter import TrainedAdapter

SAMPLED = {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM"}  # peft's names for how a prompt started


def write_prefix(trained: TrainedAdapter) -> Exported:
    """Export a prefix: all keys and values in one tensor.

    Raises:
        UserError: peft's prefix computes something else on this network.
    """
    net = trained.backbone.net
    rotary_prefix.check(net.config, "exporting")
    parts = [t for _, m in trained.edit.placed() for t in (rotary_prefix.turned(net, m.K, m.K.shape[1]), m.V)]
    rows = [t.transpose(0, 1).flatten(1) for t in parts]  # (length, key-value heads * head width)
    prompt = torch.cat(rows, dim=1)  # (length, layers * 2 * key-value heads * head width)
    _, module = trained.edit.placed()[0]
    heads, length, width = module.K.shape
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "token_dim": heads * width,
        "num_attention_heads": heads,
        "num_layers": len(rows) // 2,
        "encoder_hidden_size": heads * width,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    return config, {"prompt_embeddings": prompt}


def read_prefix(config: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone) -> Read:
    """Import a prefix: keys and values by layer, rotated back.

    Args:
        config: peft's adapter configuration.
        tensors: peft's tensors by name, without the head.
        backbone: The backbone.

    Returns:
        Method, hyperparameters and state.

    Raises:
        UserError: peft's prefix computes something else on this network.
    """
    rotary_prefix.check(backbone.net.config, "importing")
    prompt = _only(tensors, "prefix")  # (length, layers * 2 * width)
    slots = backbone.sites.of("prefix")
    heads, width = slots[0].size
    _check_width(prompt, 2 * len(slots) * heads * width, "prefix")
    parts = prompt.unflatten(1, (2 * len(slots), heads, width)).permute(
        1, 2, 0, 3
    )  # (layers * 2, heads, length, width)
    state: dict[str, Tensor] = {}
    for site, K, V in zip(slots, parts[::2], parts[1::2], strict=True):
        state |= {f"{site.path}.K": rotary_prefix.turned(backbone.net, K, -len(prompt)), f"{site.path}.V": V}
    return "prefix", {"length": len(prompt)}, state


def write_prompt(trained: TrainedAdapter) -> Exported:
    """Export a prompt: the vectors in front of the text.

    Raises:
        UserError: peft's prompt computes something else on this network.
    """
    _check_prompt(trained.backbone, "exporting")
    _, module = trained.edit.placed()[0]
    net = trained.backbone.net.config
    config = {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": SAMPLED[trained.hyper["init"]],
        "num_virtual_tokens": len(module.P),
        "token_dim": module.P.shape[1],
        "num_attention_heads": net.num_attention_heads,
        "num_layers": net.num_hidden_layers,
        "num_transformer_submodules": 1,  # an encoder-decoder's encoder only
    }
    return config, {"prompt_embeddings": module.P}


def read_prompt(config: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone) -> Read:
    """Import a prompt: the vectors in front of the text.

    Args:
        config: peft's adapter configuration.
        tensors: peft's tensors by name, without the head.
        backbone: The backbone.

    Returns:
        Method, hyperparameters and state.

    Raises:
        UserError: peft's prompt computes something else on this network.
    """
    _check_prompt(backbone, "importing")
    prompt = _only(tensors, "prompt")
    (slot,) = backbone.sites.of("prompt")
    _check_width(prompt, slot.size[0], "prompt")
    if len(prompt) != config["num_virtual_tokens"]:
        raise UserError(
            f"the adapter has {len(prompt)} vectors where a prompt of {config['num_virtual_tokens']} is set: a second "
            "prompt for the decoder (num_transformer_submodules: 2), which no method of peftbench has"
        )
    init = "random" if config.get("prompt_tuning_init") == "RANDOM" else "vocabulary"
    return "prompt", {"length": len(prompt), "init": init}, {f"{slot.path}.P": prompt}


def _check_prompt(backbone: Backbone, doing: str) -> None:
    """Raise `UserError` if the logits would differ."""
    if is_encoder(backbone.net.config):
        raise UserError(
            f"{doing} a prompt for the encoder {backbone.net.config.model_type}: peft's stands in front of the text, "
            "so that pooling reads a prompt vector, and peftbench's after the first token, which pools ([CLS]); the "
            "logits would differ. A prompt is no weight either, so it cannot be merged; keep the adapter file"
        )
    if backbone.kind != "generation":
        raise UserError(
            f"{doing} a prompt for a {backbone.net.config.model_type} classifier: peft passes embeddings in place of "
            "tokens, so that transformers cannot see where a padded text ends and reads the padding; the logits would "
            "differ. A prompt is no weight either, so it cannot be merged; keep the adapter file"
        )


def _only(tensors: Mapping[str, Tensor], what: str) -> Tensor:
    if set(tensors) != {"prompt_embeddings"}:
        raise UserError(f"a {what} is one tensor, prompt_embeddings; this adapter has {', '.join(sorted(tensors))}")
    return tensors["prompt_embeddings"].float()


def _check_width(prompt: Tensor, columns: int, what: str) -> None:
    if prompt.ndim != 2 or prompt.shape[1] != columns:
        raise UserError(
            f"prompt_embeddings has the shape {tuple(prompt.shape)}; a {what} for this backbone has {columns} columns"
        )
