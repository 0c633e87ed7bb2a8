"""Adapters computed operation by operation, with the casts of peft, in place of this suite's fused products.

From peft 0.21, `tuners/lora/layer.py`: a layer's input is cast to the dtype of the adapter's weights, the update is
added to what the base returns, and the sum is cast to the base's dtype. Each layer casts for itself, so what it keeps
for backward is shared with no other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from peftbench.backbones.networks import DTYPES
from peftbench.backbones.sites import BLOCKS, LINEAR
from peftbench.estimate.programs import Program
from peftbench.method.adapter import Adapter
from peftbench.method.edit import Edit


def compute_plainly(edit: Edit, own: Program) -> None:
    """Let every adapter of an edit compute as peft's would.

    Args:
        edit: The edit, with its method attached.
        own: The program, which says the adapters' dtype.
    """
    for site, top in edit.placed():
        module: Any = top
        while isinstance(module, Adapter):
            if hasattr(module, "can_fuse"):
                module.__dict__["can_fuse"] = _never
            if site.role in (*LINEAR, *BLOCKS):
                _cast_around(module, DTYPES[own.trained])
            else:
                module.register_forward_hook(lambda _, args, out: _to(DTYPES[own.weights], out))
            module = module.base


def _never() -> bool:
    return False


def _to(dtype: torch.dtype, values: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)


def _cast_around(module: Adapter, dtype: torch.dtype) -> None:
    """Cast what the adapter itself computes with; its base gets the input as it came and decides the result's dtype."""
    seen: dict[str, Any] = {}

    def enter(_: nn.Module, args: tuple[Any, ...]) -> Any:
        seen["args"] = args
        return _to(dtype, args)

    def to_base(_: nn.Module, args: tuple[Any, ...]) -> Any:
        return seen.pop("args", args)

    def from_base(_: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            seen["result"] = out.dtype

    def leave(_: nn.Module, args: Any, out: Any) -> Any:
        given = seen.pop("args", None)
        first = given[0].dtype if given and isinstance(given[0], Tensor) else dtype
        return _to(seen.pop("result", first), out)

    module.register_forward_pre_hook(enter)
    if isinstance(module.base, nn.Module):
        module.base.register_forward_pre_hook(to_base)
        module.base.register_forward_hook(from_base)
    module.register_forward_hook(leave)
