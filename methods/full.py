"""Full fine-tuning: every parameter of the base trains. The reference that other methods are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from peftbench.method import Edit, Method, Sites, register


@register
@dataclass(frozen=True)
class Full(Method):
    """All of the base's parameters train, from their pretrained values.

    Nothing is added and nothing is merged. The optimiser stores two numbers per weight, so this method needs the most
    memory. Devlin et al. 2019 (arXiv:1810.04805), appendix A.3, recommend rates of 2e-5 to 5e-5.
    """

    name = "full"
    paper = "arXiv:1810.04805"
    formula = "theta <- theta - lr * AdamW(grad)"
    lr = 5e-5
    lr_source = "BERT, appendix A.3: the largest of its three rates"
    size_formula = "all parameters of the base"
    caveats = (
        "It forgets more than LoRA does: after instruction tuning on code, the mean of HellaSwag, ARC-C and WinoGrande "
        "is .414 against .509 at r 64 (arXiv:2405.09673). And it keeps two numbers a weight: 36 GiB where LoRA takes "
        "21 (method_comparison of Hugging Face peft, a model of 3 billion)"
    )
    search_space = {"lr": (1e-5, 1e-3)}

    def attach(self, edit: Edit) -> None:
        edit.thaw("*")

    def parameters(self, sites: Sites) -> int:
        return sites.base
