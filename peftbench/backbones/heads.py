"""The key-value heads of an attention layer, read from the layer itself: layers of one network may differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftbench.backbones.sites import Site

WIDTH = ("qk_head_dim", "head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads")


@dataclass(frozen=True)
class Heads:
    """The key-value heads of one layer.

    Attributes:
        heads: Number of heads.
        width: Width of a head's keys.
        values: Width of a head's values.
    """

    heads: int
    width: int
    values: int


def of(net: Any, path: str, linear: Sequence[Site]) -> Heads:
    """Return the heads of the attention layer at `path`.

    Args:
        net: The network.
        path: Path of the attention layer.
        linear: The linear sites, whose k and v sites inside the layer have as many outputs as its heads together.
    """
    layer, config = net.get_submodule(path), net.config
    width = _first(layer, WIDTH) or width_of(config)
    if _first(layer, ("qk_head_dim",)):  # compressed keys and values, one for each query head
        heads = _first(layer, ("num_heads", "num_attention_heads")) or config.num_attention_heads
        return Heads(heads, width, _first(layer, ("v_head_dim",)) or width)
    outputs = {s.role: s.size[1] for s in linear if s.role in "kv" and s.path.startswith(f"{path}.")}
    heads = outputs["k"] // width if outputs.get("k", 1) % width == 0 else 0
    heads = heads or _first(layer, HEADS) or _first(config, HEADS) or config.num_attention_heads
    return Heads(heads, width, outputs["v"] // heads if outputs.get("v") else width)


def width_of(config: Any) -> int:
    """Return the width of a head by the configuration."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _first(owner: Any, names: Sequence[str]) -> int:
    """Return the first of these attributes that is a positive whole number; 0 if there is none."""
    values = (getattr(owner, name, None) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), 0)
