"""Prefix slots in transformers' attention interface: an attention function and its mask function.

Both are needed. With the attention function alone, transformers builds no mask for an unknown implementation, and
padded batches are silently wrong. The mask is always explicit, because `is_causal` would misalign with the longer keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peftbench.backbones import dropout as own_masks
from peftbench.errors import UserError

NAME = "peftbench_prefix"
OWN_DROPOUT = "peftbench_dropout"  # transformers' sdpa, with the masks of dropout.py in training
PREFIX_OWN_DROPOUT = f"{NAME}_dropout"
HARMLESS = (  # what architectures give to their attention that changes nothing here
    "sliding_window",  # the mask hides what is outside the window
    "position_ids",  # the queries and keys have their positions
    "cache_position",
    "use_cache",
    "past_key_values",  # the keys have the cached ones
    "deterministic",  # about the backward pass of another implementation
    "return_dict",
    "logits_to_keep",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
)


def prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    own_dropout: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute scaled dot-product attention over [prefix; keys]; every query sees the whole prefix (2101.00190, eq. 3).

    transformers calls it for every attention layer of a network that has a method in its prefix slots.

    Args:
        module: The architecture's attention layer. Without a `prefix_slot` it has no prefix.
        query: (batch, heads, queries, head width), after the rotary embedding.
        key: (batch, key-value heads, keys, head width), including cached keys.
        value: As `key`.
        attention_mask: (batch, 1, queries, keys), True where a query attends; None for no mask.
        dropout: Dropout probability of the attention weights.
        scaling: Factor of the scores; None for 1 / sqrt(head width).
        position_bias: Bias to add to the scores (T5).
        is_causal: Whether a query sees no later key, if there is no mask; None if the layer says it itself.
        softcap: c of the scores c tanh(s / c); None for the scores s themselves (Gemma 2).
        s_aux: Score (heads,) of a sink, which takes part in the softmax and has no value (gpt-oss).
        own_dropout: Whether `dropout` has the masks of dropout.py.
        others: What else the architecture gives: refused, unless it changes nothing.

    Returns:
        The output (batch, queries, heads, head width), and None for the attention weights.

    Raises:
        UserError: The architecture's attention has a part that is not known here, or heads of another size.
    """
    _refuse_unknown(module, others)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", False)
    if attention_mask is None and query.shape[2] > 1 and is_causal:
        attention_mask = _causal(query.shape[2], key.shape[2], query.device)
    prefix = _prefix(module, key, value)
    if prefix is not None:
        front_k, front_v = (p.to(key.dtype).expand(key.shape[0], -1, -1, -1) for p in prefix)
        length = front_k.shape[2]
        key, value = torch.cat([front_k, key], dim=2), torch.cat([front_v, value], dim=2)
        attention_mask = _shown(attention_mask, length)
        if position_bias is not None:
            position_bias = F.pad(position_bias, (length, 0))
    if s_aux is not None:  # a key of zeros, whose score is the sink's bias alone, and a value of zeros
        key, value, attention_mask = F.pad(key, (0, 0, 1, 0)), F.pad(value, (0, 0, 1, 0)), _shown(attention_mask, 1)
        position_bias = _with_sinks(s_aux, position_bias, query, key)
    if position_bias is not None:
        attention_mask = _added(position_bias, attention_mask)
    groups = query.shape[1] // key.shape[1]
    by_formula = softcap is not None or (own_dropout and dropout > 0)
    grouped = groups > 1 and not by_formula and query.device.type == "cpu"  # CUDA's kernels: groups or a mask, not both
    if groups > 1 and not grouped:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if by_formula:
        draw = own_masks.dropout if own_dropout else F.dropout
        out = _by_formula(query, key, value, attention_mask, scaling, softcap, partial(draw, p=dropout))
    else:
        out = F.scaled_dot_product_attention(
            query, key, value, attention_mask, dropout, scale=scaling, enable_gqa=grouped
        )
    return out.transpose(1, 2).contiguous(), None


def sdpa_with_own_dropout(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' sdpa attention; with dropout, by `prefix_attention` with the masks of dropout.py.

    Arguments and result are those of `prefix_attention`. Attention with a part that is not known there keeps torch's
    masks.
    """
    if not dropout or _unknown(others):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, is_causal=is_causal, **others
        )
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)  # what transformers supposes here
    return prefix_attention(
        module, query, key, value, attention_mask, dropout, is_causal=is_causal, own_dropout=True, **others
    )


def replace_dropout(net: Any) -> None:
    """Give the layers and the attention of a network on the CPU the dropout masks of dropout.py.

    Attention that does not call transformers' interface keeps torch's masks: it would not know the implementation.
    """
    own_masks.replace(net)
    if not any(calls_interface(m) for m in net.modules() if not isinstance(m, PreTrainedModel)):
        return
    for config in configurations(net):
        if config._attn_implementation == "sdpa":
            config._attn_implementation = OWN_DROPOUT


def with_prefix(implementation: str | None) -> str:
    """Return the implementation for prefixes in place of another one, with the same dropout masks."""
    return PREFIX_OWN_DROPOUT if implementation == OWN_DROPOUT else NAME


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


@dataclass
class PackedTexts:
    """transformers' search for texts that are packed into one row, in place of which it stands.

    Of a batch without a mask transformers asks whether the positions start anew within a row. The answer is read from
    the device, once for each forward pass. Where each row is known to be one text, there is nothing to search.

    Attributes:
        search: transformers' own function, from position ids (batch, length) to the text of each token, or None.
        none: Whether each row is one text.
    """

    search: Callable[[Tensor], Tensor | None]
    none: bool = False

    def __call__(self, position_ids: Tensor) -> Tensor | None:
        return None if self.none and is_asynchronous(position_ids.device) else self.search(position_ids)


@contextmanager
def one_text_in_a_row() -> Iterator[None]:
    """Let networks know that no row of a batch has several packed texts, so that none waits for the device."""
    before, _packed.none = _packed.none, True
    try:
        yield
    finally:
        _packed.none = before


def is_asynchronous(device: torch.device) -> bool:
    """Whether work on `device` is queued and runs while Python continues."""
    return device.type != "cpu"


def calls_interface(layer: Any) -> bool:
    """Whether an attention layer may call transformers' attention interface, by the source of its class.

    Where the source is not to be had, True: the first step checks that the layer did.
    """
    kind: Any = type(layer)
    return _names_interface(kind)


@cache  # a network has many layers of few classes, and finding a class in its file takes milliseconds
def _names_interface(of: Any) -> bool:
    """Whether the source of a class, or of one that it inherits from, names the interface. torch's own are left out."""
    classes = [c for c in of.__mro__ if c not in torch.nn.Module.__mro__]
    try:
        return any("ALL_ATTENTION_FUNCTIONS" in inspect.getsource(c) for c in classes)
    except (OSError, TypeError):
        return True


def configurations(net: Any) -> list[Any]:
    """Return every configuration object in the network; T5's stacks have their own copies."""
    return list({id(m.config): m.config for m in net.modules() if hasattr(m, "config")}.values())


def _unknown(given: Mapping[str, Any]) -> list[str]:
    """Return the names of arguments that may change what attention computes, and that `prefix_attention` ignores."""
    return [name for name, value in given.items() if name not in _KNOWN and value is not None and value is not False]


def _refuse_unknown(module: Any, given: Mapping[str, Any]) -> None:
    """Raise `UserError` for an argument that may change what attention computes."""
    for name in _unknown(given):
        raise UserError(
            f"a prefix cannot take part in the attention of this network: {type(module).__name__} gives it {name!r}, "
            "which is not known here, so that the network would compute something else. Valid: masks, sliding windows, "
            "a position bias, soft-capping (softcap) and sinks (s_aux). Use another method or another backbone"
        )


def _prefix(module: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the keys and values in the layer's slot, each (heads, length, head width); None for no prefix."""
    slot = getattr(module, "prefix_slot", None)
    if slot is None:
        return None
    slot.__dict__["was_called"] = True
    prefix = slot()
    if prefix is None:
        return None
    found = [(len(part), part.shape[-1]) for part in prefix]
    wanted = [(part.shape[1], part.shape[-1]) for part in (key, value)]
    if found != wanted:
        raise UserError(
            f"a prefix does not fit the attention of this network: the keys and values of {type(module).__name__} have "
            f"{_heads(wanted)}, and the slot's have {_heads(found)}. Use another method or another backbone"
        )
    return prefix


def _heads(sizes: list[tuple[int, int]]) -> str:
    return " and ".join(f"{heads} heads of {width}" for heads, width in dict.fromkeys(sizes))


def _shown(mask: Tensor | None, length: int) -> Tensor | None:
    """Return the mask with `length` columns in front that every query sees."""
    return None if mask is None else F.pad(mask, (length, 0), value=1.0 if mask.dtype == torch.bool else 0.0)


def _with_sinks(sinks: Tensor, bias: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """Return the bias with the sinks' scores as its first column: (1 or batch, heads, 1 or queries, keys)."""
    sinks = sinks.to(query.dtype).reshape(1, -1, 1, 1)
    if bias is None:
        bias = sinks.new_zeros(1, sinks.shape[1], 1, key.shape[2] - 1)
    return torch.cat([sinks.expand(*bias.shape[:3], 1), bias.expand(-1, sinks.shape[1], -1, -1)], dim=-1)


def _by_formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    cap: float | None,
    drop: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute attention that no kernel of torch has. All tensors have as many heads.

    Args:
        cap: c of the scores c tanh(s / c); None for the scores s themselves.
        drop: Dropout, which takes the weights (batch, heads, queries, keys).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if cap is None:
        scores = (query * scale) @ key.transpose(2, 3)
    else:
        scores = cap * torch.tanh(query @ key.transpose(2, 3) * (scale / cap))
    if mask is not None:  # added: several times faster on a CPU than filling where it hides
        scores = scores + _added(scores.new_zeros(()), mask)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return drop(weights) @ value


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return a causal mask (queries, keys); the last query sees the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _added(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


_KNOWN = {*HARMLESS, *inspect.signature(prefix_attention).parameters}
_packed = PackedTexts(masking_utils.find_packed_sequence_indices)
masking_utils.find_packed_sequence_indices = _packed
AttentionInterface.register(NAME, prefix_attention)
AttentionInterface.register(PREFIX_OWN_DROPOUT, partial(prefix_attention, own_dropout=True))
AttentionInterface.register(OWN_DROPOUT, sdpa_with_own_dropout)
AttentionMaskInterface.register(NAME, prefix_mask)
AttentionMaskInterface.register(PREFIX_OWN_DROPOUT, prefix_mask)
AttentionMaskInterface.register(OWN_DROPOUT, sdpa_mask_without_sync)
AttentionMaskInterface.register("sdpa", sdpa_mask_without_sync)
