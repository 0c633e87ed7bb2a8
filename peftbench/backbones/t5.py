"""T5's differences from other architectures that its role table cannot express. From transformers 5.23."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.t5 import modeling_t5


class _Dense(modeling_t5.T5DenseActDense):
    """The FFN of T5 1.0: wo(act(wi x)). The library's version reads ``wo.weight``, which an adapter may lack."""

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        return self.wo(self.dropout(self.act(self.wi(x))))


class _GatedDense(modeling_t5.T5DenseGatedActDense):
    """The FFN of T5 1.1 and Flan-T5: wo(act(wi_0 x) * wi_1 x)."""

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        return self.wo(self.dropout(self.act(self.wi_0(x)) * self.wi_1(x)))


_PLAIN = {modeling_t5.T5DenseActDense: _Dense, modeling_t5.T5DenseGatedActDense: _GatedDense}


def accept_adapted_ffn(net: nn.Module) -> None:
    """Replace the class of every FFN, so that any module can stand in place of its second layer."""
    for module in net.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]


def untie(net: Any) -> None:
    """Give a T5 1.1 or Flan-T5 made from a configuration its own language-model head.

    transformers ties the head of every T5 that it creates from a configuration. `scale_decoder_outputs` is how it keeps
    the configuration's ``tie_word_embeddings: false``. A checkpoint with two different tensors is untied already.
    """
    head = getattr(net, "lm_head", None)
    if head is not None and not net.config.scale_decoder_outputs and head.weight is net.shared.weight:
        own = torch.empty_like(head.weight)
        head.weight = nn.Parameter(nn.init.normal_(own, std=net.config.d_model**-0.5))
