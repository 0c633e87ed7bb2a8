"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al. 2023, arXiv:2303.10512).

Section 3.1:  W' = W + (alpha / r_0) P Lambda Q,  with P (out, r_0), Q (r_0, in) and the diagonal Lambda (r_0,). The
loss gains gamma (||P^T P - I||_F^2 + ||Q Q^T - I||_F^2) for each layer. r_0 is the initial rank.

Section 3.2: a triplet is a column of P, an entry of Lambda and a row of Q. Of all triplets of all layers, only the b(t)
with the largest scores S keep their Lambda. With I = |w dL/dw| of each number w, averaged as I', and |I - I'| averaged
as U', the score is s = I' U'  and  S_i = s(Lambda_i) + mean s(P's column i) + mean s(Q's row i). A masked entry still
gets gradients and may return. Section 3.3: b(t) falls by a cubic from all triplets to r per layer.

The paper has no alpha / r_0; the authors' code and peft have it (peft adds 1e-5 to r_0). Their regulariser is the mean
of the norms, unsquared, where section 3.1 has the sum of squares; so their gamma has another scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.method import Adapter, Edit, Method, SiteLinear, Sites, UserError, register
from peftbench.method.layers import lowrank


class SVDLinear(Adapter):
    """A linear layer with an update in the form of a singular value decomposition."""

    def __init__(self, base: SiteLinear, initial_rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.scale, self.dropout = alpha / initial_rank, dropout
        where = base.dense_weight().device
        self.P = nn.Parameter(torch.empty(base.out_features, initial_rank).normal_(std=0.02).to(where))
        self.Lambda = nn.Parameter(torch.zeros(initial_rank, device=where))
        self.Q = nn.Parameter(torch.empty(initial_rank, base.in_features).normal_(std=0.02).to(where))
        self.steps = 0
        # I' and U' by tensor. Like an optimiser's moments, they are not part of the adapter.
        self.averages: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if lowrank.fits(self.base) and not (self.training and self.dropout):  # the same result from one fused product
            return lowrank.linear(x, self.base, self.Lambda.unsqueeze(1) * self.Q, self.P, self.scale)
        y = self.base(x)
        x = F.dropout(x, self.dropout, self.training)
        update = F.linear(self.Lambda * F.linear(x, self.Q), self.P)
        return y + (self.scale * update).to(y.dtype)

    def folded(self) -> SiteLinear:
        W = self.base.dense_weight()
        return SiteLinear.of((W + self.scale * (self.P * self.Lambda) @ self.Q).to(W.dtype), self.base.bias)

    def scores(self) -> Tensor:  # S, (r_0,)
        """Return S of section 3.2 for each triplet, (r_0,)."""
        s = {name: sensitivity * uncertainty for name, (sensitivity, uncertainty) in self.averages.items()}
        return s["Lambda"] + s["P"].mean(0) + s["Q"].mean(1)


def orthogonality(layers: list[SVDLinear]) -> Tensor:
    """Return R(P, Q) of section 3.1, summed over `layers`."""
    products = torch.stack([G for layer in layers for G in (layer.P.T @ layer.P, layer.Q @ layer.Q.T)])
    eye = torch.eye(products.shape[-1], device=products.device, dtype=products.dtype)
    return (products - eye).square().sum()


@torch.no_grad()
def update_sensitivity(layers: list[SVDLinear], beta1: float, beta2: float) -> None:
    """Update the averages of sensitivity (decay `beta1`) and uncertainty (decay `beta2`) with this step's gradients."""
    for layer in layers:
        for name, w in layer.named_parameters(recurse=False):
            if name not in layer.averages:
                layer.averages[name] = (torch.zeros_like(w), torch.zeros_like(w))
    trained = [(w, *layer.averages[name]) for layer in layers for name, w in layer.named_parameters(recurse=False)]
    weights, sensitivity, uncertainty = (list(column) for column in zip(*trained, strict=True))
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]  # None: no text reached the layer
    importance = torch._foreach_mul(weights, gradients)
    torch._foreach_abs_(importance)
    torch._foreach_lerp_(sensitivity, importance, 1 - beta1)
    torch._foreach_sub_(importance, sensitivity)
    torch._foreach_abs_(importance)
    torch._foreach_lerp_(uncertainty, importance, 1 - beta2)


def budget(t: int, steps: int, warmup: int, final: int, start: int, end: int) -> int:
    """Return b(t) of section 3.3: how many triplets of all layers are kept after step t.

    Between warm-up and final phase, the excess over `end` is (1 - (t - t_i) / (T - t_i - t_f))^3 of its initial value,
    rounded down, as in the authors' code.

    Args:
        t: Number of steps done.
        steps: T, all steps.
        warmup: t_i, steps before the budget falls.
        final: t_f, steps with the final budget.
        start: Budget at the start.
        end: Budget at the end.
    """
    if t < warmup:
        return start
    if t >= steps - final:
        return end
    return int(end + (start - end) * (1 - (t - warmup) / (steps - warmup - final)) ** 3)


@torch.no_grad()
def allocate(layers: list[SVDLinear], kept: int) -> None:
    """Keep Lambda where the score is among the `kept` largest of all layers, and zero it elsewhere."""
    scores = torch.cat([layer.scores() for layer in layers])
    mask = torch.zeros_like(scores)
    mask[scores.argsort(descending=True, stable=True)[:kept]] = 1
    for layer, own in zip(layers, mask.split([len(layer.Lambda) for layer in layers]), strict=True):
        layer.Lambda.mul_(own)


def final_ranks(net: nn.Module) -> dict[str, int]:
    """Return the number of non-zero singular values by the path of the layer."""
    return {path: int(m.Lambda.count_nonzero()) for path, m in net.named_modules() if isinstance(m, SVDLinear)}


@register
@dataclass(frozen=True)
class AdaLoRA(Method):
    """Low-rank updates whose ranks are reallocated during training: important layers keep more singular values.

    Starts as the identity (Lambda = 0) and merges into the weights. `rank` is the average rank at the end. All triplets
    of the initial rank, by default half as many again, train and are stored.
    """

    name = "adalora"
    paper = "arXiv:2303.10512"
    formula = "h = W x + (alpha/r_0) P Lambda Q x, Lambda masked to the most important of all layers"
    size_formula = "r_0 (in + out + 1) at each site, r_0 the initial rank, 1.5 r unless given"
    lr = 1.2e-3
    lr_source = "the authors' GLUE scripts: RTE (MNLI 5e-4, CoLA 8e-4)"
    caveats = (
        "Slower to converge than LoRA: three stages share the steps, and ranks that fall too fast cannot adapt; the "
        "authors give the fall half of the steps (AdaLoRA issue 19). Its best rates lie outside the range that the "
        "paper names (AdaLoRA issue 11). All initial triplets cost memory and storage to the end. Stopping early, or "
        "taking the best checkpoint, may leave more than the target rank."
    )
    version = 2  # one fused product of base and update: the last digits changed
    size_knob = "rank"
    search_space = {"lr": (5e-4, 1e-1), "gamma": (0.1, 0.3, 0.5)}

    rank: Annotated[int, Field(ge=1, description="r, the average rank at the end")] = 8
    initial_rank: Annotated[
        int | None, Field(ge=1, description="r_0, the rank of every layer at the start; null, the paper's, is 1.5 r")
    ] = None
    alpha: Annotated[float, Field(gt=0, description="alpha; the update is scaled by alpha / r_0")] = 16.0
    gamma: Annotated[float, Field(ge=0, description="weight of the orthogonality of P and Q")] = 0.1
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="t_i / T, share of the steps before ranks fall; RTE in the GLUE scripts")
    ] = 0.15
    final: Annotated[
        float, Field(ge=0, lt=1, description="t_f / T, share of the steps with final ranks; RTE in the GLUE scripts")
    ] = 0.46
    interval: Annotated[int, Field(ge=1, description="Delta_T, steps between two allocations; 1 to 100 in GLUE")] = 1
    beta1: Annotated[float, Field(ge=0, lt=1, description="decay of the average of sensitivity; the paper's")] = 0.85
    beta2: Annotated[float, Field(ge=0, lt=1, description="decay of the average of uncertainty; the paper's")] = 0.85
    dropout: Annotated[float, Field(ge=0, lt=1, description="probability of dropping an input of Q")] = 0.0
    roles: Annotated[
        str | None, Field(description="linear roles to adapt; null, the paper's choice, is every linear layer")
    ] = None

    def attach(self, edit: Edit) -> None:
        if self.first_rank < self.rank:
            raise UserError(f"adalora: initial_rank {self.first_rank} is below rank {self.rank}; ranks only fall")
        if self.warmup + self.final >= 1:
            raise UserError(
                f"adalora: warmup {self.warmup} and final {self.final} leave no step in which ranks could fall; "
                "they are shares of the steps, below 1 together"
            )
        roles = edit.linear_roles if self.roles is None else self.roles
        edit.swap(roles, lambda base: SVDLinear(base, self.first_rank, self.alpha, self.dropout))

    @property
    def first_rank(self) -> int:
        """r_0, the initial rank."""
        return math.ceil(1.5 * self.rank) if self.initial_rank is None else self.initial_rank

    def optimizer(self, net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        optimizer = super().optimizer(net, lr, weight_decay)
        for layer in _layers(net):  # stored with the moments, so that they count as the optimiser's memory
            optimizer.state[layer] = layer.averages  # type: ignore[index]
        return optimizer

    def extra_loss(self, net: nn.Module) -> Tensor | None:
        return self.gamma * orthogonality(_layers(net))

    def after_step(self, net: nn.Module, done: float) -> None:
        layers = _layers(net)
        for layer in layers:
            layer.steps += 1
        t = layers[0].steps
        steps = max(t, round(t / done))  # T: `done` is t / T
        warmup, final = int(self.warmup * steps), int(self.final * steps)
        if t <= steps - final:  # afterwards scores and ranks stay fixed
            update_sensitivity(layers, self.beta1, self.beta2)
        if t >= steps - final or (t >= warmup and t % self.interval == 0):
            start, end = self.first_rank * len(layers), self.rank * len(layers)
            allocate(layers, budget(t, steps, warmup, final, start, end))

    def parameters(self, sites: Sites) -> int:  # the triplets of the initial rank
        return sum(self.first_rank * (sum(site.size) + 1) for site in sites.linear(self.roles))


def _layers(net: nn.Module) -> list[SVDLinear]:
    return [m for m in net.modules() if isinstance(m, SVDLinear)]
