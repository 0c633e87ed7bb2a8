"""Prefix slots behind transformers' attention interface: an attention function and its mask function.

Both are needed. With the function alone, transformers builds no mask for an unknown implementation and padded batches
are silently wrong. The mask is always explicit: `is_causal` would shift with the longer key side.
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
    module: Any,  # the architecture's attention layer, with a `prefix_slot`
    query: Tensor,  # (batch, heads, queries, head width), after rotary embedding
    key: Tensor,  # (batch, key-value heads, keys, head width), the cache's included
    value: Tensor,
    attention_mask: Tensor | None,  # (batch, 1, queries, keys), True = attend
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention over [prefix; keys]; every query sees the whole prefix (2101.00190, eq. 3)."""
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
    """The mask of `sdpa`, never skipped where a skip would lean on `is_causal`."""
    kwargs["allow_is_causal_skip"] = False
    return sdpa_mask_unread(*args, **kwargs)


def sdpa_mask_unread(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask of `sdpa`, without reading from the device whether it hides anything: that would wait for its work.

    transformers leaves out a mask that hides nothing, and to know that it reads the padding. Here a padding mask on a
    device with a queue is applied unread; a batch without padding comes without one (`devices.on_device`). On the CPU
    nothing waits, and nothing changes.
    """
    padding = kwargs.get("attention_mask")
    if padding is not None and is_queued(padding.device):
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, **kwargs)


def is_queued(device: torch.device) -> bool:
    """Whether work on `device` goes on while Python does, until something is read."""
    return device.type != "cpu"


def configurations(net: Any) -> list[Any]:
    """Every configuration that a part of the network reads: the network's, and T5's stacks have copies of their own."""
    return list({id(m.config): m.config for m in net.modules() if hasattr(m, "config")}.values())


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """True where a query may see a key; the last query sees the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _added(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


AttentionInterface.register(NAME, prefix_attention)
AttentionMaskInterface.register(NAME, prefix_mask)
AttentionMaskInterface.register("sdpa", sdpa_mask_unread)
