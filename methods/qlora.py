"""QLoRA: Efficient Finetuning of Quantized LLMs (Dettmers et al. 2023, arXiv:2305.14314).

Equation 5:  Y = X doubleDequant(c1, c2, W_NF4) + X L1 L2.  Every linear layer of the base is stored as 4-bit
NormalFloat with double quantisation (section 3; `peftbench/method/layers/nf4.py`) and frozen. LoRA trains over it in
full precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from peftbench.method import Edit, Method, Sites, register
from peftbench.method.layers.nf4 import NF4Linear
from peftbench.methods.lora import LoRALinear


@register
@dataclass(frozen=True)
class QLoRA(Method):
    """LoRA over a base whose linear layers are quantised to 4-bit NormalFloat.

    Not the identity at the start: quantisation itself changes the network. Folding gives a dense layer of the
    dequantised weight and the update.
    """

    name = "qlora"
    paper = "arXiv:2305.14314"
    version = 2  # one fused product of base and update: the last digits changed
    formula = "h = dequant(W_NF4) x + (alpha/r) B A x"
    lr = 2e-4
    lr_source = "table 9: 7B and 13B models"
    size_formula = "r (in + out) at each site"
    caveats = (
        "It saves memory, not time: dequantising makes a step slower than LoRA's, and on a small model the rounding "
        "costs accuracy that LoRA keeps (results/reference/quickstart). Computing in fp16, one in five of its authors' "
        "7B runs broke off (README of artidoro/qlora)"
    )
    size_knob = "rank"
    search_space = {"lr": (1e-4, 1e-2)}  # alpha only scales the update, as the rate does
    starts_as_identity = False
    layer = LoRALinear  # what trains over the quantised base

    rank: Annotated[int, Field(ge=1, description="r, the rank of the update; the paper uses 64")] = 8
    alpha: Annotated[float, Field(gt=0, description="alpha; the update is scaled by alpha / r")] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="probability of dropping an input of A")] = 0.0
    roles: Annotated[
        str | None, Field(description="linear roles to adapt; null, the paper's choice, is every linear layer")
    ] = None
    double_quant: Annotated[bool, Field(description="quantise the quantisation constants too")] = True
    backend: Annotated[Literal["torch", "bitsandbytes"], Field(description="our own NF4, or bitsandbytes' kernels")] = (
        "torch"
    )

    def attach(self, edit: Edit) -> None:
        edit.swap(
            edit.linear_roles, lambda base: NF4Linear.from_dense(base, backend=self.backend, double=self.double_quant)
        )
        roles = edit.linear_roles if self.roles is None else self.roles
        edit.swap(roles, lambda base: self.layer(base, self.rank, self.alpha, self.dropout))

    def parameters(self, sites: Sites) -> int:  # r (in + out) at each site
        return sum(self.rank * sum(site.size) for site in sites.linear(self.roles))
