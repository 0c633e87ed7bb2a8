"""Prefix slots in transformers' attention interface: an attention function and its mask function.

Both are needed. With the attention function alone, transformers builds no mask for an unknown implementation, and
padded batches are silently wrong. The mask is always explicit, because `is_causal` would misalign with the longer keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "peftbench_prefix"


def prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute scaled dot-product attention over [prefix; keys]; every query sees the whole prefix (2101.00190, eq. 3).

    transformers calls it for every attention layer of a network that has a method in its prefix slots.

    Args:
        module: The architecture's attention layer, which has a `prefix_slot`.
        query: (batch, heads, queries, head width), after the rotary embedding.
        key: (batch, key-value heads, keys, head width), including cached keys.
        value: As `key`.
        attention_mask: (batch, 1, queries, keys), True where a query attends; None for no mask.
        dropout: Dropout probability of the attention weights.
        scaling: Factor of the scores; None for 1 / sqrt(head width).
        position_bias: Bias to add to the scores (T5).

    Returns:
        The output (batch, queries, heads, head width), and None for the attention weights.
    """
    slot = module.prefix_slot
    slot.__dict__["was_called"] = True
    prefix = slot()
    if attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", False):
        attention_mask = _causal(query.shape[2], key.shape[2], query.device)
    if prefix is not None:
        front_k, front_v = (p.to(key.dtype).expand(key.shape[0], -1, -1, -1) for p in prefix)
        length = front_k.shape[2]
        key, value = torch.cat([front_k, key], dim=2), torch.cat([front_v, value], dim=2)
        if attention_mask is not None:
            attention_mask = F.pad(
                attention_mask, (length, 0), value=1.0 if attention_mask.dtype == torch.bool else 0.0
            )
        if position_bias is not None:
            position_bias = F.pad(position_bias, (length, 0))
    if position_bias is not None:
        attention_mask = _added(position_bias, attention_mask)
    groups = query.shape[1] // key.shape[1]
    grouped = groups > 1 and query.device.type == "cpu"  # CUDA's kernels take groups or a mask, not both
    if groups > 1 and not grouped:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


def prefix_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Build the mask of `sdpa`; never skip one that `is_causal` would replace."""
    kwargs["allow_is_causal_skip"] = False
    return sdpa_mask_without_sync(*args, **kwargs)


def sdpa_mask_without_sync(*args: Any, **kwargs: Any) -> Tensor | None:
    """Build the mask of `sdpa` without reading from the device whether it hides anything.

    transformers skips a mask that hides nothing; to decide, it reads the padding, which waits for the device. Here a
    padding mask on an asynchronous device is applied unread. `devices.on_device` leaves out the mask of a batch without
    padding. On the CPU nothing waits, and behaviour is unchanged.
    """
    padding = kwargs.get("attention_mask")
    if padding is not None and is_asynchronous(padding.device):
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, **kwargs)


def is_asynchronous(device: torch.device) -> bool:
    """Whether work on `device` is queued and runs while Python continues."""
    return device.type != "cpu"


def configurations(net: Any) -> list[Any]:
    """Return every configuration object in the network; T5's stacks have their own copies."""
    return list({id(m.config): m.config for m in net.modules() if hasattr(m, "config")}.values())


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return a causal mask (queries, keys); the last query sees the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _added(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


AttentionInterface.register(NAME, prefix_attention)
AttentionMaskInterface.register(NAME, prefix_mask)
AttentionMaskInterface.register("sdpa", sdpa_mask_without_sync)
