"""A method in float64 on the tiny BERT, to be held against an independent computation of logits and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftbench.method.registry import find
from peftbench.verify.contract import Case
from peftbench.verify.contract.case import AdaptedModel, batch, network
from peftbench.verify.contract.compare import storage_address

LAYERS = range(2)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
LAYER = "bert.encoder.layer"


class Trial:
    """A method in float64 on the tiny BERT, every trained number moved away from where it starts."""

    def __init__(self, name: str, **hyper: Any) -> None:
        case = Case(find(name), hyper)
        backbone = network(case)
        self.config = backbone.net.config
        self.base = {n: p.detach().double() for n, p in backbone.parameters.items()}
        self.model = AdaptedModel(case, backbone=backbone)
        self.net = self.model.net.double().eval()
        draws = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for t in self.model.edit.state().values():
                t += 0.3 * torch.randn(t.shape, generator=draws, dtype=t.dtype)
        self.s = {n: t.clone().requires_grad_() for n, t in self.model.edit.state().items()}  # the paper's leaves
        inputs = batch(case)
        self.ids, self.mask = inputs["input_ids"], inputs["attention_mask"]
        self.probe = torch.randn(4, 3, generator=draws, dtype=torch.float64)

    def answer(self, **more: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's own logits, and gradients by the names of its state."""
        logits = self.net(input_ids=self.ids, attention_mask=self.mask, **more).logits
        names = {storage_address(t): n for n, t in self.model.edit.state().items()}
        trained = self.model.edit.trained()
        grads = torch.autograd.grad((logits * self.probe).sum(), trained)
        return logits, {names[storage_address(p)]: g for p, g in zip(trained, grads, strict=True)}

    def weights(self) -> dict[str, Tensor]:
        """The base's weights, thawed ones as leaves."""
        return {n: self.s.get(n, w) for n, w in self.base.items()}

    def agrees(self, logits: Tensor, grads: Mapping[str, Tensor] | None = None, **more: Tensor) -> None:
        """Hold the method against an independent computation; its gradients default to autograd's."""
        mine, mine_grads = self.answer(**more)
        torch.testing.assert_close(mine, logits, **CLOSE)
        if grads is None:
            found = torch.autograd.grad((logits * self.probe).sum(), list(self.s.values()), allow_unused=True)
            grads = {
                n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(self.s.items(), found, strict=True)
            }
        assert mine_grads.keys() == grads.keys()
        for name, gradient in grads.items():
            torch.testing.assert_close(mine_grads[name], gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
