"""What a prefix in peft's cache is under rotary positions, and where it is no function of ours at all.

peft lets the text's positions start after the prefix of length L, the paper (and peftbench) at 0; the prefix's keys are
rotated in neither. A score is then (R_{p+L} q)^T K' there and (R_p q)^T K here, so K' = R_L K makes both equal, and
scores among the text's own tokens depend on differences only. Absolute positions have no such K'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftbench.errors import UserError

ROTARY = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox")  # all rotate halves, in the leading dimensions
STATIC = ("default", "linear", "llama3", "yarn")  # kinds whose frequencies do not change with the text's length


def turned(net: Any, K: Tensor, positions: int) -> Tensor:
    """K (heads, length, head width) rotated by so many positions, as this network rotates; negative turns back."""
    inv_freq = next(m.inv_freq for m in net.modules() if hasattr(m, "inv_freq")).double()
    angle = positions * torch.cat([inv_freq, inv_freq])
    turning, rest = K.double().split([len(angle), K.shape[-1] - len(angle)], dim=-1)
    a, b = turning.chunk(2, dim=-1)
    turning = turning * angle.cos() + torch.cat([-b, a], dim=-1) * angle.sin()
    return torch.cat([turning, rest], dim=-1).to(K.dtype)


def check(config: Any, doing: str) -> None:
    """Raises `UserError` where peft's prefix is another function than the paper's."""
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
