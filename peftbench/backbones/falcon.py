"""Falcon's difference from other architectures that its role table cannot express. From transformers 5.23."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.falcon import modeling_falcon


class _MLP(modeling_falcon.FalconMLP):
    """The FFN. The layer adds the attention's output to it in place, which autograd forbids for an adapter's view."""

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        out: Tensor = super().forward(x)
        return out.clone() if out.requires_grad and out._is_view() else out


def accept_adapted_ffn(net: nn.Module) -> None:
    """Replace the class of every FFN, so that any module can stand in place of its second layer."""
    for module in net.modules():
        if type(module) is modeling_falcon.FalconMLP:
            module.__class__ = _MLP
