"""Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li and Liang 2021, arXiv:2101.00190).

Section 4.2: each attention layer attends to trained keys and values, P_k and P_v, before its own. Section 4.3: during
training they may be computed as P[i] = MLP(P'[i]) from a smaller matrix P'; the MLP is dropped afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from peftbench.method import Adapter, Edit, Method, PrefixSlot, Sites, move, register


class Prefix(Adapter):
    """Keys and values of one layer's prefix: the trained tensors themselves."""

    def __init__(self, base: PrefixSlot, K: Tensor, V: Tensor) -> None:
        super().__init__(base)
        self.K, self.V = nn.Parameter(K), nn.Parameter(V)  # (key-value heads, length, head width)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.K, self.V


class Reparametrisation(nn.Module):
    """P' (length, width), and the part of the MLP that all layers share: all but its last rows."""

    def __init__(self, length: int, width: int, hidden: int, device: torch.device) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.randn(length, width).to(device))
        self.first = move(nn.Linear(width, hidden), device)

    def forward(self) -> Tensor:  # (length, hidden)
        return torch.tanh(self.first(self.P))


class ReparametrisedPrefix(Adapter):
    """One layer's rows of the MLP's output."""

    def __init__(self, base: PrefixSlot, shared: Reparametrisation) -> None:
        super().__init__(base)
        self.shared = shared
        self.last = move(nn.Linear(shared.first.out_features, 2 * base.heads * base.head_width), shared.P.device)

    def forward(self) -> tuple[Tensor, Tensor]:
        rows = self.last(self.shared())  # (length, 2 * heads * head width)
        parts = rows.unflatten(-1, (2, self.base.heads, self.base.head_width)).permute(1, 2, 0, 3)
        return parts[0], parts[1]


@register
@dataclass(frozen=True)
class PrefixTuning(Method):
    """Trained keys and values before every attention layer's own.

    Not the identity at the start, never merged; attention grows by the prefix's length. With reparametrisation the MLP
    trains too, so many more parameters train than are stored; a parameter budget counts those that train.
    """

    name = "prefix"
    paper = "arXiv:2101.00190"
    formula = "softmax(Q [P_k; K]^T / sqrt(d)) [P_v; V]"
    lr = 5e-5
    lr_source = "appendix, table 7: E2E"
    size_formula = (
        "2 length heads head_width a layer; with the MLP: length d + hidden (d + 1), and (hidden + 1) 2 heads "
        "head_width a layer"
    )
    caveats = (
        "Rate and initialisation decide more than size: .19 or .36 on GSM8K with the same prefix (method_comparison of "
        "Hugging Face peft), and a longer one is not always better (arXiv:2106.09685, figure 2). It makes attention "
        "longer and never merges"
    )
    version = 2  # attention on the CPU without copies of grouped heads: the last digits changed
    size_knob = "length"
    search_space = {"lr": (3e-3, 1.0)}  # far above the paper's rates, which move the MLP and not the vectors themselves
    starts_as_identity = False

    length: Annotated[int, Field(ge=1, description="prefix length; the paper uses 5 to 200")] = 10
    reparametrise: Annotated[bool, Field(description="train through the MLP of section 4.3, dropped afterwards")] = (
        False
    )
    hidden: Annotated[int, Field(ge=1, description="hidden width of that MLP; the paper's is 512")] = 512
    std: Annotated[float, Field(gt=0, description="standard deviation of the first keys and values")] = 0.02

    def attach(self, edit: Edit) -> None:
        place = edit.backbone.device
        if not self.reparametrise:
            edit.swap("prefix", lambda slot: Prefix(slot, *(self._draw(slot).to(place) for _ in range(2))))
            return
        width = edit.net.config.hidden_size
        shared = Reparametrisation(self.length, width, self.hidden, place)
        edit.swap("prefix", lambda slot: ReparametrisedPrefix(slot, shared))

    def _draw(self, slot: PrefixSlot) -> Tensor:
        return self.std * torch.randn(slot.heads, self.length, slot.head_width)

    def finish(self, edit: Edit) -> None:
        """Replace the MLP by the keys and values that it computes."""

        @torch.no_grad()
        def plain(module: ReparametrisedPrefix) -> Prefix:
            K, V = module()
            return Prefix(module.base, K.clone(), V.clone())

        edit.replace(ReparametrisedPrefix, plain)

    def parameters(self, sites: Sites) -> int:
        slots = [2 * heads * width for heads, width in (s.size for s in sites.of("prefix"))]
        if not self.reparametrise:
            return self.length * sum(slots)
        d = sites.width
        return self.length * d + self.hidden * (d + 1) + (self.hidden + 1) * sum(slots)
