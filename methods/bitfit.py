"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models (Ben Zaken et al. 2021,
arXiv:2106.10199).

Section 3: only the bias terms train: every b of y = W x + b and of the layer norms. Every W and gain stays frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftbench.method import Edit, Method, Sites, UserError, register


@register
@dataclass(frozen=True)
class BitFit(Method):
    """All biases of the base train, including those of its layer norms, and nothing else.

    Nothing is added, so there is nothing to merge. Architectures without biases (Llama, Mistral, Qwen3) are refused;
    Qwen2 has them at queries, keys and values only.
    """

    name = "bitfit"
    paper = "arXiv:2106.10199"
    formula = "h = W x + b, b trains"
    lr = 4e-4
    lr_source = "appendix: BERT and RoBERTa, one of 1e-4, 4e-4, 7e-4, 1e-3"
    size_formula = "all biases of the base"
    caveats = (
        "The more data, the further it falls behind full fine-tuning (its figure 2, on SQuAD), most of all where text "
        "is generated: XSum 40.6 against 44.8 ROUGE-1, translation 26.4 against 37.3 BLEU (arXiv:2110.04366, table 6). "
        "The biases of keys cannot change the softmax where no rotary embedding follows: that part of its size is idle"
    )
    needs = "biases in the base model"
    search_space = {"lr": (1e-4, 2e-2)}

    def attach(self, edit: Edit) -> None:
        self.parameters(edit.backbone.sites)  # raises for a network without biases
        edit.thaw("*", "bias")

    def parameters(self, sites: Sites) -> int:
        if not sites.biases:
            raise UserError(
                f"bitfit trains the biases of the base, and this {sites.kind} network has none; use layernorm, or a "
                "backbone with biases, like BERT, GPT-2 or OPT"
            )
        return sites.biases
