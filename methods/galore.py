"""GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection (Zhao et al. 2024, arXiv:2403.03507).

Algorithm 2, for each matrix W (m, n) of attention and FFN with gradient G:  every T steps P (m, r) becomes the r first
left singular vectors of G;  Adam sees R = P^T G, so that its moments are (r, n);  W <- W - lr * alpha P N with Adam's
normalised step N. That is for m <= n; a taller matrix is projected from the right, R = G Q with Q (n, r). All other
parameters (embeddings, norms, biases, the head) are trained by plain AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from peftbench.method import Edit, Method, SiteLinear, Sites, register


class GaLoreAdamW(torch.optim.Optimizer):
    """AdamW; groups with a ``rank`` (and ``update_gap``, ``scale``) are stepped in a subspace of their gradients.

    A group without a rank is stepped exactly as torch.optim.AdamW steps it. The moments are kept when the subspace
    changes, as in the paper.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        plain = {"rank": None, "update_gap": 1, "scale": 1.0}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, **plain})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = [p for g in self.param_groups for p in g["params"] if p.grad is not None and self._is_due(p, g)]
        finite = dict(zip(map(id, due), all_finite([p.grad for p in due if p.grad is not None]), strict=True))
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group, finite.get(id(p), True))
        return loss

    def _is_due(self, W: Tensor, group: dict[str, Any]) -> bool:
        """Whether the coming step decomposes the gradient of W."""
        return group["rank"] is not None and self.state[W].get("step", 0) % group["update_gap"] == 0

    def _step(self, W: Tensor, G: Tensor, group: dict[str, Any], finite: bool) -> None:
        due = self._is_due(W, group)
        state = self.state[W]
        t = state["step"] = state.get("step", 0) + 1
        rank, wide = group["rank"], W.ndim == 2 and W.shape[0] <= W.shape[1]
        if rank is not None:
            if due:
                state["P"] = singular_vectors(G if wide else G.T, rank, finite)
            P = state["P"]
            G = P.T @ G if wide else G @ P
        if t == 1:
            state["M"], state["V"] = torch.zeros_like(G), torch.zeros_like(G)
        M, V = state["M"], state["V"]
        beta1, beta2 = group["betas"]
        M.lerp_(G, 1 - beta1)
        V.mul_(beta2).addcmul_(G, G, value=1 - beta2)
        W.mul_(1 - group["lr"] * group["weight_decay"])  # decoupled weight decay is not projected
        lr = group["lr"] / (1 - beta1**t)
        sd = (V / (1 - beta2**t)).sqrt_().add_(group["eps"])  # the only temporary; for an embedding it is large
        if rank is None:
            W.addcdiv_(M, sd, value=-lr)
        else:
            N = torch.div(M, sd, out=sd)
            W.addmm_(*((P, N) if wide else (N, P.T)), alpha=-lr * group["scale"])


def all_finite(tensors: list[Tensor]) -> list[bool]:
    """Whether each tensor is finite; all answers are read from the device at once."""
    return torch.stack([t.isfinite().all() for t in tensors]).tolist() if tensors else []


def singular_vectors(G: Tensor, rank: int, finite: bool) -> Tensor:  # (m, n) -> (m, rank), orthonormal columns
    """Return the first left singular vectors of G (all of them if there are fewer).

    Their signs are arbitrary, but existing moments depend on them: the largest entry of each vector is made positive.

    Args:
        G: (m, n).
        rank: Number of vectors.
        finite: Whether G is finite.

    Returns:
        (m, rank), orthonormal columns; NaN if G is not finite.
    """
    if not finite:
        return G.new_full((len(G), min(rank, *G.shape)), torch.nan)  # the training loop reports the divergence
    U = torch.linalg.svd(G.float() if G.dtype.itemsize < 4 else G, full_matrices=False).U[:, :rank]
    signs = U.gather(0, U.abs().argmax(0, keepdim=True)).sign()
    return (U * signs).to(G.dtype)


@register
@dataclass(frozen=True)
class GaLore(Method):
    """All parameters train; Adam's moments of attention and FFN matrices live in a few directions of their gradients.

    Nothing is added and nothing is merged; it saves optimiser state. The full gradient of a matrix still exists
    briefly, and the directions are recomputed every `update_gap` steps.
    """

    name = "galore"
    paper = "arXiv:2403.03507"
    formula = "W <- W - lr alpha P Adam(P^T grad), P the first r left singular vectors of an earlier grad"
    size_formula = "every parameter of the base"
    lr = 3e-5
    lr_source = "the authors' GLUE example: RoBERTa base on MRPC"
    caveats = (
        "Every `update_gap` steps each matrix's gradient is decomposed: a slow step, and one that may fail to converge "
        "(GaLore issue 58). The pretraining values of alpha and r converge slowly in fine-tuning (GaLore issue 15). "
        "Memory is saved in the optimiser's state only: weights and gradients are those of full fine-tuning, and the "
        "whole model is stored."
    )
    version = 2  # the step without copies of a matrix: the last digits changed
    search_space = {"lr": (1e-5, 2e-3)}

    rank: Annotated[int, Field(ge=1, description="r, directions a matrix; 4 and 8 are the paper's for GLUE")] = 4
    alpha: Annotated[
        float, Field(gt=0, description="alpha, scale of the projected step; 4 in the GLUE example, 0.25 in pretraining")
    ] = 4.0
    update_gap: Annotated[
        int, Field(ge=1, description="T, steps between two decompositions; 200 in pretraining, 500 in the GLUE example")
    ] = 200

    def attach(self, edit: Edit) -> None:
        edit.thaw("*")

    def optimizer(self, net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        sites = [m.weight for m in net.modules() if isinstance(m, SiteLinear)]  # only attention and FFN
        projected = [p for p in dict.fromkeys(sites) if p.requires_grad]
        projected_ids = {id(p) for p in projected}
        others = [p for p in net.parameters() if p.requires_grad and id(p) not in projected_ids]
        own = {"rank": self.rank, "update_gap": self.update_gap, "scale": self.alpha}
        groups = [
            {"params": projected, "weight_decay": weight_decay, **own},
            {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return GaLoreAdamW([g for g in groups if g["params"]], lr=lr)

    def parameters(self, sites: Sites) -> int:
        return sites.base
