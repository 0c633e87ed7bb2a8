"""Where the layers of a program differ from transformers' and this suite's in what they keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from peftbench.estimate.program.programs import Program
from peftbench.method.adapter import Adapter
from peftbench.method.edit import Edit
from peftbench.method.layers import nf4
from peftbench.method.layers.nf4 import NF4Linear


def untie_head(net: Any) -> None:
    """Give the head weights of its own, if the network ties them to the embedding."""
    head, embedding = net.get_output_embeddings(), net.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(torch.empty_like(head.weight), head.weight.requires_grad)


def shape(net: Any, edit: Edit, own: Program, outliving: list[Tensor]) -> None:
    """Let the layers keep what the program's keep.

    Args:
        net: The network, with the method attached.
        edit: The edit.
        own: The program.
        outliving: Takes the inputs of 4-bit layers that outlive backward.
    """
    quantised = [module for module in net.modules() if isinstance(module, NF4Linear)]
    head = net.get_output_embeddings()
    if quantised and own.quantised_head and isinstance(head, nn.Linear):
        first = quantised[0]
        net.set_output_embeddings(NF4Linear.from_dense(head, double=first.scales is not None))
        quantised.append(net.get_output_embeddings())
    if own.quantised_inputs == "until_replaced":
        for module in quantised:
            module.register_forward_pre_hook(lambda _, args: outliving.append(args[0].detach()))
    if own.quantised_inputs == "kept":
        for module in quantised:
            module.register_forward_pre_hook(lambda _, args: (_Keep.apply(args[0]), *args[1:]))
    if own.fused_gelu:
        for module in net.modules():
            for name, child in module.named_children():
                if isinstance(child, NewGELUActivation):
                    setattr(module, name, nn.GELU(approximate="tanh"))
    if own.fused_qkv:
        _fuse(net, edit)


@contextmanager
def dequantised_in(dtype: torch.dtype) -> Iterator[None]:
    """Let 4-bit layers dequantise to a dtype first, then cast to that of the product."""
    usual = nf4._from_parts

    def through(stored: Any, layout: Any, wanted: torch.dtype) -> Tensor:
        return usual(stored, layout, dtype).to(wanted)

    nf4._from_parts = through  # type: ignore[assignment]
    try:
        yield
    finally:
        nf4._from_parts = usual


class _Keep(torch.autograd.Function):
    """The identity, which keeps its input for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        _ = ctx.saved_tensors
        return grad


def _fuse(net: Any, edit: Edit) -> None:
    """Let separate layers for q, k and v keep what one fused layer keeps.

    The values are a part of the tensor that all three are in. From litgpt 0.5, `LoRAQKVLinear`: one dropout feeds the
    updates of all three; `zero_pad` keeps their result where not all three are adapted.
    """
    sites = {role: list(edit.backbone.sites.of(role)) for role in "qkv"}
    for q, k, v in zip(*sites.values(), strict=True):
        if len({q.path, k.path, v.path}) == 1:
            continue  # the network's own layer is fused
        layers = [net.get_submodule(site.path) for site in (q, k, v)]
        before = q.size[1] + k.size[1]
        adapted = [layer for layer in layers if isinstance(layer, Adapter) and hasattr(layer, "update")]
        _share_dropout(adapted)
        if 0 < len(adapted) < len(layers):
            for layer in adapted:
                _keep_update(layer)
        layers[-1].register_forward_hook(lambda _, args, out, before=before: _last_part(out, before))


def _last_part(values: Tensor, before: int) -> Tensor:
    rest = values.new_zeros(*values.shape[:-1], before)
    return torch.cat((rest, values), dim=-1)[..., before:]


def _share_dropout(layers: list[Any]) -> None:
    """Let the layers drop the same numbers of one input, which then exist once."""
    last: dict[str, Any] = {}
    for layer in layers:
        usual, p = layer.update, layer.dropout

        def update(x: Tensor, layer: Any = layer, usual: Any = usual, p: float = p) -> Tensor:
            if last.get("from") is not x:
                last.update({"from": x, "dropped": nn.functional.dropout(x, p, layer.training)})
            dropped = last["dropped"]
            if layer is layers[-1]:
                last.clear()
            layer.dropout = 0.0
            try:
                return usual(dropped)
            finally:
                layer.dropout = p

        layer.update = update


def _keep_update(layer: Any) -> None:
    usual = layer.update
    layer.update = lambda x: _Keep.apply(usual(x))
