"""What T5 needs beside its role table. Facts read from the model definition of transformers 5.23."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.t5 import modeling_t5


class _Dense(modeling_t5.T5DenseActDense):
    """The FFN of T5 1.0: wo(act(wi x)). The library's own looks at ``wo.weight``, which an adapter need not have."""

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        return self.wo(self.dropout(self.act(self.wi(x))))


class _GatedDense(modeling_t5.T5DenseGatedActDense):
    """The FFN of T5 1.1 and Flan-T5: wo(act(wi_0 x) * wi_1 x)."""

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        return self.wo(self.dropout(self.act(self.wi_0(x)) * self.wi_1(x)))


_PLAIN = {modeling_t5.T5DenseActDense: _Dense, modeling_t5.T5DenseGatedActDense: _GatedDense}


def settle(net: nn.Module) -> None:
    """Let any module stand where an FFN's second layer stands."""
    for module in net.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]


def untie(net: Any) -> None:
    """Give a network made from a configuration of T5 1.1 or Flan-T5 the language head of its own that these have.

    transformers ties every T5 that it makes; `scale_decoder_outputs` is what it keeps of a configuration's
    ``tie_word_embeddings: false``. One loaded from a checkpoint with two different tensors is untied already.
    """
    head = getattr(net, "lm_head", None)
    if head is not None and not net.config.scale_decoder_outputs and head.weight is net.shared.weight:
        own = torch.empty_like(head.weight)
        head.weight = nn.Parameter(nn.init.normal_(own, std=net.config.d_model**-0.5))
