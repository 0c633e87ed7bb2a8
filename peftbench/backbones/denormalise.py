"""The inverse of `normalise`: weights under the names and in the layouts of transformers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftbench.backbones.experts import CHILD, ExpertSites
from peftbench.backbones.modules import FusedLinear


def plain_on_meta(net: Any) -> Any:
    """Return the network as transformers defines it, on the meta device: names, shapes and layer types, no weights."""
    with torch.device("meta"):
        return type(net)(copy.deepcopy(net.config))


def plain_state(net: Any) -> dict[str, Tensor]:
    """Return the state dict that the network has without `normalise`.

    Args:
        net: A normalised network.

    Returns:
        Tensors by transformers' names. Fused layers are joined, Conv1D weights are (in, out), and quantised weights
        are dequantised.
    """
    with torch.no_grad():
        modules = plain_on_meta(net).named_modules(remove_duplicate=False)
        transposed = {f"{name}.weight" for name, m in modules if isinstance(m, Conv1D)}
        return {name: t.t().contiguous() if name in transposed else t for name, t in _joined(net).items()}


def _joined(net: nn.Module) -> dict[str, Tensor]:
    """Return dense weights (out, in) by name, joined where the architecture has one fused layer."""
    state: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, ExpertSites):
            layers[path] = module
            if module.changed():
                state |= {f"{path.removesuffix(CHILD)}{name}": t for name, t in module.tensors().items()}
        elif isinstance(module, FusedLinear):
            parts: list[Any] = [getattr(module, role) for role in module.roles]
            layers[path] = module
            state[f"{path}.weight"] = module.join([p.dense_weight() for p in parts])
            if all(p.bias is not None for p in parts):
                state[f"{path}.bias"] = module.join([p.bias for p in parts])
        elif hasattr(module, "dense_weight") and not any(path.startswith(f"{p}.") for p in layers):
            layers[path] = module
            state[f"{path}.weight"] = module.dense_weight()
            if module.bias is not None:
                state[f"{path}.bias"] = module.bias
    for name, t in net.state_dict(keep_vars=True).items():
        if name not in state and not any(name.startswith(f"{path}.") for path in layers):
            state[name] = t
    return {name: t.detach() for name, t in state.items()}
