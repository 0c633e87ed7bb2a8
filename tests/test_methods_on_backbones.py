"""Every method attaches to every architecture, trains, and is undone bit for bit; in every mode of the backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ALL, Model, Zoo, batch, logits, loss
from torch import Tensor

from peftbench import devices
from peftbench.backbones.load import Backbone
from peftbench.edit import Edit
from peftbench.errors import UserError
from peftbench.method import Method, discover, make

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in discover()},
    "lora everywhere": ("lora", {"roles": "q k v o up down"}),
    "dora everywhere": ("dora", {"roles": "q k v o up down"}),
    "adapter pfeiffer": ("adapter", {"placement": "pfeiffer"}),
    "adapter parallel": ("adapter", {"placement": "parallel"}),
    "prefix reparametrised": ("prefix", {"reparametrise": True, "hidden": 16}),
}
EXACT = ["bert", "gpt2", "gpt-neox", "llama"]  # architectures on which each mode is tried with every method


def _method(label: str) -> Method:
    name, hyper = CONFIGURATIONS[label]
    return make(discover()[name], hyper)


def _refused(name: str, label: str) -> bool:
    return name.startswith("deberta") and label.startswith("prefix")


def _attach(backbone: Backbone, label: str) -> tuple[Edit, Method]:
    edit, method = Edit(backbone), _method(label)
    torch.manual_seed(5)
    method.attach(edit)
    return edit, method


def _train(edit: Edit, method: Method, steps: int = 2, dtype: str = "float32") -> list[float]:
    net = edit.net.train()
    optimizer = method.optimizer(net, 1e-2, 0.0)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        with devices.autocast(edit.backbone.device, dtype):
            value = loss(net, batch())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(net, (step + 1) / steps)
        losses.append(float(value.detach()))
    edit.check_used()
    method.finish(edit)
    net.eval()
    return losses


@pytest.mark.parametrize("label", CONFIGURATIONS)
@pytest.mark.parametrize("name", ALL)
def test_every_method_attaches_steps_and_is_undone_bit_for_bit(zoo: Zoo, name: str, label: str) -> None:
    backbone = zoo[name].backbone
    if _refused(name, label):
        with pytest.raises(UserError, match="disentangled"):
            _attach(backbone, label)
        return
    inputs = batch()
    before = logits(backbone.net.eval(), inputs)
    weights = {n: p.detach().clone() for n, p in backbone.net.named_parameters()}
    edit, method = _attach(backbone, label)
    assert edit.counts()["trainable"] == method.parameters(backbone.sites)
    trained = edit.trained()
    start = [p.detach().clone() for p in trained]
    _train(edit, method)
    assert all(not torch.equal(a, p) for a, p in zip(start, trained, strict=True) if p.numel() > 1) or name == "roberta"
    assert not torch.equal(logits(backbone.net, inputs), before)
    edit.undo()
    after = dict(backbone.net.named_parameters())
    assert list(after) == list(weights)
    assert all(torch.equal(after[n], w) and after[n].dtype == w.dtype for n, w in weights.items())
    assert not any(p.requires_grad or p.grad is not None for p in after.values())
    assert torch.equal(logits(backbone.net, inputs), before)
