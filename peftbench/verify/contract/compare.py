"""Compare tensors and whole networks: bit for bit, or by their largest difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones.load import Backbone

ROUNDING = 1e-5  # largest difference / largest value that float32 arithmetic in another order explains
FOLDING = 3e-5  # the same if a weight and its update are rounded together; 1.6e-5 measured after large steps


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, type and shape included."""
    return a.dtype == b.dtype and torch.equal(a, b)


def distance(a: Tensor, b: Tensor, whole: Tensor | None = None) -> float:
    """Return the largest absolute difference / the largest absolute value; inf if any value is not finite.

    Args:
        a: A tensor.
        b: Another of the same shape, whose values give the scale.
        whole: What `b` is a part of, to give the scale instead: a few logits of one row may all be near zero.
    """
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    scale = (b if whole is None else whole).float().abs().max().clamp(min=1e-30)
    return float((a.float() - b.float()).abs().max() / scale)


def tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer of the network by its path, non-persistent buffers included."""
    found: dict[str, Tensor] = dict(net.named_parameters(remove_duplicate=False))
    return {**found, **dict(net.named_buffers(remove_duplicate=False))}


def storage_address(t: Tensor) -> tuple[int, int]:
    """Return the address of a tensor's data, which a parameter and its detached view share."""
    return t.untyped_storage().data_ptr(), int(t.storage_offset())


def snapshot(backbone: Backbone) -> dict[str, Any]:
    """Return everything that `undo` must restore, by description: modules, tensors, flags, hooks, attention."""
    net: Any = backbone.net
    state: dict[str, Any] = {"the attention implementation": net.config._attn_implementation}
    head = {id(p) for p in backbone.head_parameters()}
    for path, module in net.named_modules(remove_duplicate=False):
        where = path or "the network itself"
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        state[f"{where}: module"] = (type(module).__name__, id(module))
        state[f"{where}: number of hooks"] = sum(len(getattr(module, h)) for h in hooks)
        state[f"{where}: attributes"] = sorted(vars(module))
        state[f"{where}: training mode"] = module.training
    for name, t in tensors(net).items():
        if id(t) not in head:  # the runner trains and resets the head
            state[f"{name}: object, type, requires_grad"] = (id(t), t.dtype, t.requires_grad)
            state[f"{name}: values"] = t.detach().clone()
    return state


def first_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return a sentence on the first difference of two snapshots; None if they are equal."""
    for what in [*before, *(k for k in after if k not in before)]:
        if what not in after:
            return f"{what} is gone"
        if what not in before:
            return f"{what} is new"
        old, new = before[what], after[what]
        if not (same(old, new) if isinstance(old, Tensor) else old == new):
            return f"{what} changed" if isinstance(old, Tensor) else f"{what} was {old} and is {new}"
    return None
