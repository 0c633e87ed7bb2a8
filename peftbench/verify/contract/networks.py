"""The tiny networks that the contract is tried on: random weights, made from a configuration, nothing downloaded.

The first three are the families. The others are each the smallest network with one more property: a task head, or an
attention or a feed-forward part of another kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from peftbench.backbones import tiny
from peftbench.backbones.in_memory import wrap
from peftbench.backbones.load import Backbone, load
from peftbench.backbones.networks import DTYPES, prepare_for_training, random_network

LABELS = 3
WINDOW = 4  # tokens; shorter than most texts of a batch


@dataclass(frozen=True)
class Network:
    """One tiny network.

    Attributes:
        says: What it is, as a noun with its article.
        kind: Kind of task.
        preset: The preset that it is, or whose sizes it has.
        facts: Values of the configuration that differ from the preset's.
        chooses: Whether it sends a token to some of its experts. In bfloat16 it may choose others, whatever the method.
    """

    says: str
    kind: str
    preset: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    chooses: bool = False

    @property
    def has_decoder_inputs(self) -> bool:
        """Whether the network reads a text and is given what it writes apart from that."""
        return self.preset == "tiny-t5" and self.kind == "generation"


FAMILIES = {
    "tiny-encoder": Network("an encoder", "classification", "tiny-encoder"),
    "tiny-decoder": Network("a decoder", "generation", "tiny-decoder"),
    "tiny-t5": Network("an encoder-decoder", "generation", "tiny-t5"),
}
NETWORKS = {
    **FAMILIES,
    "decoder-classifier": Network("a decoder that classifies", "classification", "tiny-decoder"),
    "t5-classifier": Network("an encoder-decoder that classifies", "classification", "tiny-t5"),
    "sliding-window": Network(
        "a decoder with sliding windows",
        "generation",
        "tiny-decoder",
        {"model_type": "mistral", "sliding_window": WINDOW},
    ),
    "soft-capping": Network(
        "a decoder with soft-capping",
        "generation",
        "tiny-decoder",
        {
            "model_type": "gemma2",
            "head_dim": 16,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,  # of the size of the scores, so that it matters
            "query_pre_attn_scalar": 16,
        },
    ),
    "sinks": Network(
        "a decoder with attention sinks",
        "generation",
        "tiny-decoder",
        {
            "model_type": "gpt_oss",
            "head_dim": 8,
            "sliding_window": WINDOW,
            "tie_word_embeddings": False,
            "num_local_experts": 2,
            "num_experts_per_tok": 2,  # all: here a choice of experts would only magnify rounding
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "multi-query": Network(
        "a decoder with one key-value head", "generation", "tiny-decoder", {"num_key_value_heads": 1}
    ),
    "experts": Network(
        "a decoder with experts",
        "generation",
        "tiny-decoder",
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
        chooses=True,
    ),
}


def make(name: str, dtype: str = "float32", gradient_checkpointing: bool = False) -> Backbone:
    """Make the network of this name, with its preset's tokenizer.

    Args:
        name: A key of `NETWORKS`.
        dtype: "float32" or "bfloat16".
        gradient_checkpointing: Whether to recompute activations in the backward pass.
    """
    network = NETWORKS[name]
    if not network.facts:
        return load(network.preset, network.kind, LABELS, dtype=dtype, gradient_checkpointing=gradient_checkpointing)
    config = tiny.config(network.preset, **network.facts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tiny.SEED)
        net = random_network(network.kind, config).to(DTYPES[dtype])
    backbone = wrap(net, tiny.tokenizer(network.preset))
    prepare_for_training(net, gradient_checkpointing)
    return backbone
