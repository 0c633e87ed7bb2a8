"""Understanding intermediate layers using linear classifier probes (Alain and Bengio 2016, arXiv:1610.01644).

Section 3: a classifier trains on features h = f(x) of a frozen network f:  logits = head(h).
"""

from __future__ import annotations

from dataclasses import dataclass

from peftbench.method import Edit, Method, Sites, UserError, register


@register
@dataclass(frozen=True)
class LinearProbe(Method):
    """Only the task head trains, on the frozen base's last features: the lower bound for every other method.

    The head is the architecture's own and trains with every method; here nothing else does. It is linear in GPT-2 or
    Llama; with BERT's pooler or RoBERTa's dense layer it has two layers. `lr` is the head's rate, unless the experiment
    sets `head_lr`, which takes precedence.
    """

    name = "linear_probe"
    paper = "arXiv:1610.01644"
    formula = "logits = head(f(x)), f frozen"
    lr = 1e-3
    lr_source = "no rate in the paper for transformers; the head's rate in this project's experiment files"
    size_formula = "0: the task head is counted apart"
    caveats = (
        "It cannot change a feature, so it fails where the base does not separate the classes: a mean of 52.9 on "
        "VTAB-1k against 65.6 with full fine-tuning and 72.3 with LoRA (V-PETL-Bench)"
    )
    needs = "a task head"
    search_space = {"lr": (3e-4, 3e-2)}

    def attach(self, edit: Edit) -> None:
        self.parameters(edit.backbone.sites)  # raises for a network without a head

    def parameters(self, sites: Sites) -> int:
        if not sites.head:
            raise UserError(
                f"linear_probe trains the task head alone, and this {sites.kind} network, a causal model, has none: "
                "nothing would train; use it for classification or regression, or another method"
            )
        return 0
