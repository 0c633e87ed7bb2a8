"""Adapters computed operation by operation, with the casts of peft, in place of this suite's fused products.

From peft 0.21, `tuners/lora/layer.py`: a layer's input is cast to the dtype of the adapter's weights, the update is
added to what the base returns, and the sum is cast to the base's dtype. Each layer casts for itself, so what it keeps
for backward is shared with no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from peftbench.backbones.networks import DTYPES
from peftbench.backbones.sites import BLOCKS, LINEAR
from peftbench.estimate.program.programs import Program
from peftbench.method.adapter import Adapter
from peftbench.method.edit import Edit
from peftbench.method.layers import lowrank


def compute_plainly(edit: Edit, own: Program) -> None:
    """Let every adapter of an edit compute as peft's would. It needs `unfused` around the steps.

    Args:
        edit: The edit, with its method attached.
        own: The program, which says the adapters' dtype.
    """
    for site, top in edit.placed():
        module: Any = top
        while isinstance(module, Adapter):
            _cast_buffers(module, DTYPES[own.trained])
            if type(module).__name__ in AS_IN_PEFT:
                module.forward = partial(AS_IN_PEFT[type(module).__name__], module)
            elif site.role in (*LINEAR, *BLOCKS):
                _cast_around(module, DTYPES[own.trained])
            else:
                module.register_forward_hook(lambda _, args, out: _to(DTYPES[own.weights], out))
            module = module.base


@contextmanager
def unfused() -> Iterator[None]:
    """Let no method of this suite compute base and update in one product."""
    usual = lowrank.fits
    lowrank.fits = lambda base: False
    try:
        yield
    finally:
        lowrank.fits = usual


def _to(dtype: torch.dtype, values: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)


def _cast_buffers(adapter: Adapter, dtype: torch.dtype) -> None:
    """Cast what an adapter holds besides parameters, such as VeRA's projections; drop what only fused products need."""
    if "squares" in adapter._buffers:
        del adapter._buffers["squares"]
    beside = [part for name, child in adapter.named_children() if name != "base" for part in child.modules()]
    for module in (adapter, *beside):
        for name, t in module._buffers.items():
            if t is not None and t.is_floating_point():
                module._buffers[name] = t.to(dtype)


def _scaled_output(module: Any, x: Tensor) -> Tensor:
    """Return l (W x + b) as peft 0.21, `tuners/ia3/layer.py`: from a copy of l, and in the wider dtype."""
    scale = 1 * module.l
    y = module.base(x)
    return (y * scale).to(y.dtype)


def _scaled_input(module: Any, x: Tensor) -> Tensor:
    """Return W (l x) + b in the same way."""
    scale = 1 * module.l
    wide = x.to(scale.dtype)  # lives as long as the call, like peft's
    return module.base((wide * scale).to(x.dtype))


def _decomposed(module: Any, x: Tensor) -> Tensor:
    """Return W x + P Lambda Q x, added in place, as peft 0.21, `tuners/adalora/layer.py`: divided by a tensor.

    peft's cast of that tensor for weights in bfloat16 makes it require a gradient, for which the division keeps more.
    """
    y = module.base(x)
    x = functional.dropout(x.to(module.Q.dtype), module.dropout, module.training)
    rank = module.Lambda.new_ones(1).requires_grad_(getattr(module.base, "weight", y).dtype != torch.float32)
    y += (x @ (module.Q * module.Lambda.unsqueeze(1)).T @ module.P.T) * module.scale / rank
    return y


def _directed(module: Any, x: Tensor) -> Tensor:
    """Return DoRA's output as peft 0.21, `tuners/lora/variants.py` and `dora.py`.

    With dropout, W x is computed again from the dropped input and a copy of W in the adapter's dtype, which is kept.
    """
    y = module.base(x)
    x = x.to(module.A.dtype)
    if not (module.training and module.dropout):
        return (y + _change(module, x, y)).to(y.dtype)
    return (y + _change(module, functional.dropout(x, module.dropout), None)).to(y.dtype)


def _change(module: Any, x: Tensor, y: Tensor | None) -> Tensor:
    """Return what DoRA adds to the base's output y; what it computes with lives until it returns."""
    update = _update(module).to(x.dtype)
    weight = module.base.dense_weight().to(x.dtype)
    norm = _norm(weight, module.scale, update.detach())
    g = (module.m / norm).view(1, -1)
    low_rank = functional.linear(functional.linear(x, module.A), module.B)
    if y is None:
        y = functional.linear(x, weight)
    elif module.base.bias is not None:
        y = y - module.base.bias
    return (g - 1) * y + g * low_rank * module.scale


def _update(module: Any) -> Tensor:
    """Return B A, as the layers' output for every unit vector."""
    eye = torch.eye(module.A.shape[1], dtype=module.A.dtype, device=module.A.device)
    return functional.linear(functional.linear(eye, module.A), module.B).T


def _norm(weight: Tensor, scale: float, update: Tensor) -> Tensor:
    weight = weight + scale * update
    return torch.linalg.norm(weight, dim=1).to(weight.dtype).detach()


AS_IN_PEFT = {
    "ScaledOutput": _scaled_output,
    "ScaledInput": _scaled_input,
    "SVDLinear": _decomposed,
    "DoRALinear": _directed,
}


def _cast_around(module: Adapter, dtype: torch.dtype) -> None:
    """Cast what the adapter itself computes with; its base gets the input as it came, and decides the result's dtype.

    If the adapter changes the input, its base gets that in the input's dtype. Nothing is held where backward stops a
    second forward pass half way, as checkpointing does.
    """
    usual = module.forward
    seen: dict[str, Any] = {}

    def forward(*args: Any) -> Any:
        seen.update({"given": args, "cast": _to(dtype, args)})
        first = args[0].dtype if args and isinstance(args[0], Tensor) else dtype
        try:
            out = usual(*seen["cast"])
            return _to(seen.get("result", first), out)
        finally:
            seen.clear()

    def to_base(_: nn.Module, args: tuple[Any, ...]) -> Any:
        if not seen:
            return args
        given, cast = seen.pop("given", args), seen.pop("cast", args)
        unchanged = len(args) == len(cast) and all(a is b for a, b in zip(args, cast, strict=True))
        return given if unchanged else _to(given[0].dtype, args)

    def from_base(_: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            seen["result"] = out.dtype

    module.forward = forward
    if isinstance(module.base, nn.Module):
        module.base.register_forward_pre_hook(to_base)
        module.base.register_forward_hook(from_base)
