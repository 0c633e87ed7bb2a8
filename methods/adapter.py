"""Bottleneck adapters in the placements of three papers. x, f and r are a sublayer's input, output and residual.

houlsby   (Houlsby et al. 2019, arXiv:1902.00751, section 2.1)  f' = f + U s(D f), after attention and after the FFN;
          the layer norms train too
pfeiffer  (Pfeiffer et al. 2020, arXiv:2005.00247, section 3.1) f' = f + U s(D norm(f + r)), after the FFN only
parallel  (He et al. 2021, arXiv:2110.04366, section 4)         f' = f + scale U s(D x), parallel to the FFN
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.method import Adapter, Block, Edit, Method, Sites, move, register

NONLINEARITY: dict[str, Callable[[Tensor], Tensor]] = {
    "houlsby": F.gelu,  # from the authors' code
    "pfeiffer": F.relu,
    "parallel": F.relu,
}


class Bottleneck(Adapter):
    """D: width -> bottleneck, a nonlinearity, U: bottleneck -> width; D and U have biases."""

    def __init__(self, base: Block, bottleneck: int, placement: str, scale: float, device: torch.device) -> None:
        super().__init__(base)
        self.placement, self.scale = placement, scale
        self.D, self.U = nn.Linear(base.width, bottleneck), nn.Linear(bottleneck, base.width)
        self._initialise()
        self.D, self.U = move(self.D, device), move(self.U, device)

    def _initialise(self) -> None:
        for layer in (self.D, self.U):
            nn.init.zeros_(layer.bias)
            if self.placement == "parallel":  # He et al., section 4.1: like LoRA, so that it starts as the identity
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
            else:  # section 3.6 of Houlsby: near the identity
                nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
        if self.placement == "parallel":
            nn.init.zeros_(self.U.weight)

    def forward(self, x: Tensor, f: Tensor, r: Tensor) -> Tensor:  # each (..., width)
        h = {"houlsby": f, "parallel": x}.get(self.placement)
        if h is None:  # pfeiffer
            h = self.base.norm(f + r)
        change = self.U(NONLINEARITY[self.placement](self.D(h)))
        return f + (change if self.scale == 1 else self.scale * change)


@register
@dataclass(frozen=True)
class BottleneckAdapter(Method):
    """Small two-layer networks after, or parallel to, the sublayers of a frozen base.

    It is not a linear map, so it never merges and adds inference time. Parallel adapters start as the identity, the
    others near it.
    """

    name = "adapter"
    paper = "arXiv:1902.00751"
    formula = "f + U s(D f)  |  f + U s(D norm(f + r))  |  f + scale U s(D x)"
    lr = 3e-4
    lr_source = "section 3.2 of Houlsby: GLUE, the middle of 3e-5, 3e-4, 3e-3"
    size_formula = "2 d m + d + m at each sublayer; houlsby: two a layer, and the layer norms, else one"
    caveats = (
        "It never merges: GPT-2 medium answers 21 to 30 % later with it at batch 1 (arXiv:2106.09685, table 1). On "
        "small data its seeds differ widely: RTE 71.5 with a standard deviation of 2.7 at 0.3 M parameters (table 2 "
        "there)"
    )
    size_knob = "bottleneck"
    search_space = {"lr": (1e-4, 1e-2)}

    bottleneck: Annotated[int, Field(ge=1, description="m, the width of the bottleneck")] = 64
    placement: Annotated[Literal["houlsby", "pfeiffer", "parallel"], Field(description="where it sits")] = "houlsby"
    scale: Annotated[
        float | None, Field(gt=0, description="s; null: 4 for parallel (He et al., section 4.5), 1 for the others")
    ] = None
    train_norm: Annotated[
        bool | None, Field(description="train the layer norms too; null: for houlsby only, as its paper does")
    ] = None

    @property
    def starts_as_identity(self) -> bool:  # type: ignore[override]
        return self.placement == "parallel"

    @property
    def _norms(self) -> bool:
        return self.placement == "houlsby" if self.train_norm is None else self.train_norm

    @property
    def _blocks(self) -> str:
        return "attn ffn" if self.placement == "houlsby" else "ffn"

    def attach(self, edit: Edit) -> None:
        scale = self.scale or (4.0 if self.placement == "parallel" else 1.0)
        place = edit.backbone.device

        def make(base: Block) -> nn.Module:
            return Bottleneck(base, self.bottleneck, self.placement, scale, place)

        edit.swap(self._blocks, make)
        if self._norms:
            edit.thaw("norm")

    def parameters(self, sites: Sites) -> int:  # 2 d m + d + m at each block
        m = self.bottleneck
        norms = sum(site.parameters for site in sites.of("norm")) if self._norms else 0
        return norms + sum(2 * d * m + d + m for (d,) in (site.size for site in sites.of(self._blocks)))
