"""Convert prefix keys between peft's positions and ours under rotary embeddings, and refuse networks without them.

In peft the text's positions start after the prefix of length L; in the paper, and here, at 0. Neither rotates the
prefix's keys. A score is then (R_{p+L} q)^T K' in peft and (R_p q)^T K here, so K' = R_L K makes both equal. Scores
among the text's tokens depend only on differences of positions. With absolute positions no such K' exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftbench.errors import UserError

ROTARY = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox")  # all rotate halves of the leading dimensions
STATIC = ("default", "linear", "llama3", "yarn")  # types whose frequencies do not depend on the text's length


def turned(net: Any, K: Tensor, positions: int) -> Tensor:
    """Rotate prefix keys as this network rotates its own.

    Args:
        net: A network with rotary embeddings.
        K: Keys (heads, length, head width).
        positions: Number of positions to rotate by; negative to rotate back.

    Returns:
        Keys of the same shape and dtype.
    """
    inv_freq = next(m.inv_freq for m in net.modules() if hasattr(m, "inv_freq")).double()
    angle = positions * torch.cat([inv_freq, inv_freq])
    turning, rest = K.double().split([len(angle), K.shape[-1] - len(angle)], dim=-1)
    a, b = turning.chunk(2, dim=-1)
    turning = turning * angle.cos() + torch.cat([-b, a], dim=-1) * angle.sin()
    return torch.cat([turning, rest], dim=-1).to(K.dtype)


def check(config: Any, doing: str) -> None:
    """Raise `UserError` if peft's prefix differs from the paper's on this network."""
    if config.model_type not in ROTARY:
        raise UserError(
            f"{doing} a prefix for {config.model_type}: peft puts the prefix into the cache, so that the text's "
            "absolute positions start after it, and the paper (and peftbench) leave them alone; the logits would "
            f"differ. It is exact for rotary positions only: {', '.join(ROTARY)}"
        )
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in STATIC:
        raise UserError(f"{doing} a prefix: rotary positions of type {kind!r} change with the text's length")
    if getattr(config, "sliding_window", None):
        raise UserError(
            f"{doing} a prefix for a sliding window of {config.sliding_window}: in peft's cache the prefix slides out "
            "of it, in peftbench every token sees the prefix; the logits would differ"
        )
