"""The way back from `normalise`: the weights under the names and in the layouts that transformers gives them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftbench.backbones.modules import FusedQKV


def skeleton(net: Any) -> Any:
    """The network as transformers defines it, on the meta device: names, shapes and kinds of layer, no weights."""
    with torch.device("meta"):
        return type(net)(copy.deepcopy(net.config))


def plain_state(net: Any) -> dict[str, Tensor]:
    """The state dict that the network would have without `normalise`; a quantised layer comes dequantised."""
    with torch.no_grad():
        plain = {name: m for name, m in skeleton(net).named_modules(remove_duplicate=False) if isinstance(m, Conv1D)}
        return {
            name: t.t().contiguous() if name.removesuffix(".weight") in plain else t for name, t in _joined(net).items()
        }


def _joined(net: nn.Module) -> dict[str, Tensor]:
    """By name: dense weights (out, in), with q, k and v in one again where they were one."""
    state: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, FusedQKV):
            parts = [module.q, module.k, module.v]
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
        if not any(name.startswith(f"{path}.") for path in layers):
            state[name] = t
    return {name: t.detach() for name, t in state.items()}
