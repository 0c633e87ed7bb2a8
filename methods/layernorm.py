"""Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning (Zhao et al. 2023, arXiv:2312.11420).

y = g (x - mean(x)) / sd(x) + b, or y = g x / rms(x): only g and b train. Here they train in every norm of the base,
including the first and the last, as in the paper's variant that trains nothing else. The paper's main variant also
trains the embeddings and the output, which a text-only network does not need.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftbench.method import Edit, Method, Sites, register


@register
@dataclass(frozen=True)
class LayerNormTuning(Method):
    """All norms of the base train, gains and biases, and nothing else.

    Nothing is added, so there is nothing to merge. Houlsby et al. 2019 (arXiv:1902.00751, figure 3) already compare it
    with their adapters.
    """

    name = "layernorm"
    paper = "arXiv:2312.11420"
    formula = "y = g (x - mean(x)) / sd(x) + b, g and b train"
    lr = 1e-3
    lr_source = "no rate in the paper for text of this scale; near the largest of BitFit's, which moves the same biases"
    size_formula = "all parameters of the base's norms"
    caveats = (
        "Few numbers move, and at LoRA's rates hardly: nothing of GSM8K is solved at 1e-4, and images of a subject "
        "score .34 where LoRA has .74 (method_comparison of Hugging Face peft). Sweep its rate upwards before "
        "comparing"
    )
    search_space = {"lr": (3e-4, 3e-2)}

    def attach(self, edit: Edit) -> None:
        edit.thaw("norm")

    def parameters(self, sites: Sites) -> int:
        return sum(site.parameters for site in sites.of("norm"))
