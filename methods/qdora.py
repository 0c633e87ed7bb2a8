"""QDoRA: DoRA in place of LoRA over a base in 4-bit NormalFloat (Liu et al. 2024, arXiv:2402.09353, which combines
QLoRA with DoRA; reported by Turgutlu, "Efficient finetuning of Llama 3 with FSDP QDoRA", Answer.AI 2024).

W' = m (V + B A) / ||V + B A||  with V = dequant(W_NF4), rowwise, the norm held constant in the gradient. m starts as
the norm of V, not of the original weight, so that only the rounding changes the network before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftbench.method import Sites, register
from peftbench.methods.dora import DoRALinear
from peftbench.methods.qlora import QLoRA


@register
@dataclass(frozen=True)
class QDoRA(QLoRA):
    """DoRA over a base whose linear layers are quantised to 4-bit NormalFloat.

    Not the identity at the start: quantisation itself changes the network. Folding gives a dense layer.
    """

    name = "qdora"
    paper = "arXiv:2402.09353"
    version = 2  # one fused product of base and update: the last digits changed
    formula = "h = m (V + (alpha/r) B A) x / ||V + (alpha/r) B A||,  V = dequant(W_NF4)"
    lr = 2e-4
    lr_source = "what QLoRA (table 9 of its paper) and DoRA (table 8) have in common"
    size_formula = "r (in + out) + out at each site"
    caveats = (
        "The slowest step of the family: each forward dequantises every weight twice, for the product and for its "
        "norm, and holds it dense meanwhile. The published evidence is one report, on Orca-Math; what the cards of "
        "qlora and dora say holds here too"
    )
    layer = DoRALinear

    def parameters(self, sites: Sites) -> int:  # r (in + out), and out magnitudes
        return super().parameters(sites) + sum(site.size[1] for site in sites.linear(self.roles))
