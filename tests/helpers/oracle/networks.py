"""The two networks of a comparison: ours with a method attached, and the untouched one that the other library wraps.

Both are in float64 and evaluation mode. Root-mean-square norms of transformers round to float32 inside, whatever their
input: in both networks they are computed in float64, so that only the method can differ.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from architectures import Model, batch
from torch import Tensor, nn

from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.verify.contract.compare import storage_address

RATE, DECAY, STEPS = 1e-2, 0.1, 5


def _exact_norm(self: Any, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


def exact(net: nn.Module) -> Any:
    """`net` in float64, in evaluation mode, with no step in float32 left."""
    for module in net.double().eval().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_exact_norm, module)
    return net


def untouched(model: Model) -> Any:
    """The network as transformers makes it, its parameters frozen."""
    return exact(copy.deepcopy(model.untouched)).requires_grad_(False)


def logits(net: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The logits that mean something: (rows, classes), or (tokens, vocabulary) without the padding's."""
    out = net(**inputs).logits
    return out[inputs["attention_mask"].bool()] if out.ndim == 3 else out


def objective(kept: Tensor) -> Tensor:
    """A scalar with a different gradient for every logit; transformers' own losses round to float32."""
    probe = torch.randn(kept.shape, generator=torch.Generator().manual_seed(3), dtype=kept.dtype)
    return (probe * kept).mean() + kept.square().mean()


class Ours:
    """One of our methods on one architecture, every trained number moved away from where it starts.

    ``roles="*"`` stands for every linear role of the network.
    """

    def __init__(self, model: Model, method: str, **hyper: Any) -> None:
        self.model, self.plain = model, untouched(model)
        net, parameters = copy.deepcopy((model.backbone.net, model.backbone.parameters))
        self.backbone = replace(model.backbone, net=net, parameters=parameters)
        self.edit = Edit(self.backbone)
        if hyper.get("roles") == "*":
            hyper["roles"] = self.edit.linear_roles
        self.method = make(find(method), hyper)
        torch.manual_seed(1)
        self.method.attach(self.edit)
        self.net = exact(self.backbone.net)
        self.started = self.state()
        draws = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for p in self.trained.values():
                p += 0.3 * torch.randn(p.shape, generator=draws, dtype=p.dtype)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by the names of the adapter's state."""
        names = {storage_address(t): name for name, t in self.edit.state().items()}
        return {names[storage_address(p)]: p for p in self.edit.trained()}

    def state(self) -> dict[str, Tensor]:
        """A copy of the adapter's state."""
        return {name: t.clone() for name, t in self.edit.state().items()}

    def optimizer(self) -> torch.optim.Optimizer:
        return self.method.optimizer(self.net, RATE, DECAY)

    def loss(self, inputs: dict[str, Tensor]) -> Tensor:
        value, extra = objective(logits(self.net, inputs)), self.method.extra_loss(self.net)
        return value if extra is None else value + extra


def batches() -> list[dict[str, Tensor]]:
    """One padded batch for every step."""
    return [batch(seed=1 + step) for step in range(STEPS)]
