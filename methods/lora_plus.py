"""LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou et al. 2024, arXiv:2402.12354).

LoRA with two learning rates,  eta_B = lambda eta_A,  lambda > 1. With one rate for both, A and B of a wide network do
not both learn features. The paper recommends lambda = 2^4.

The groups are those of peft's `create_loraplus_optimizer`, weight decay included (AdamW scales it with the rate, so B
decays lambda times as fast). The task head differs: peft steps the head's matrices with A and its biases with B; here
the runner trains the head at the same rate for every method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from peftbench.method import adamw, register
from peftbench.methods.lora import LoRA, LoRALinear


@register
@dataclass(frozen=True)
class LoRAPlus(LoRA):
    """LoRA whose B has `ratio` times the learning rate of its A.

    The network, its size and merging are LoRA's. The experiment's `lr` is A's; a schedule scales both rates together.
    """

    name = "lora_plus"
    paper = "arXiv:2402.12354"
    version = 2  # one fused product of base and update: the last digits changed
    formula = "h = W x + (alpha/r) B A x,  eta_B = lambda eta_A"
    lr = 1e-4
    lr_source = "the authors' script for RoBERTa base on MNLI, there with a ratio of 20"
    caveats = (
        "Where LoRA's own rate is tuned, little is left to gain: 1 to 2 % between all its variants (arXiv:2602.04998). "
        "By its own paper the ratio matters least on tasks that the model finds easy. At LoRA's rate it is too fast: B "
        "steps with 16 times that"
    )
    search_space = {"lr": (5e-5, 5e-3), "ratio": (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)}

    ratio: Annotated[float, Field(ge=1, description="lambda, the rate of B over that of A")] = 16.0

    def optimizer(self, net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        layers = [m for m in net.modules() if isinstance(m, LoRALinear)]
        groups = [
            {"params": [layer.A for layer in layers], "lr": lr, "weight_decay": weight_decay},
            {"params": [layer.B for layer in layers], "lr": self.ratio * lr, "weight_decay": weight_decay},
        ]
        return adamw(net, groups, lr)
