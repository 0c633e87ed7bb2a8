"""What a method sees of a sublayer: its input x, output f and residual r, wherever the architecture keeps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ALL, EXPERTS, LAYERS, T5, Zoo, batch, logits
from torch import Tensor, nn

from peftbench.backbones.load import Backbone, load
from peftbench.errors import UserError
from peftbench.method.edit import Adapter, Edit
from peftbench.method.registry import discover, make

PARALLEL = {"gpt-neox", "phi", "stablelm-parallel", "falcon", "falcon-40b"}
POST_NORM = {"bert", "roberta", "electra", "distilbert", "deberta-v2", "deberta-v3", "opt-350m"}
LAYER = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "electra": "electra.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "deberta-v2": "deberta.encoder.layer",
    "deberta-v3": "deberta.encoder.layer",
    "gpt2": "transformer.h",
    "gpt2-classifier": "transformer.h",
    "opt": "model.decoder.layers",
    "opt-350m": "model.decoder.layers",
    "gpt-neox": "gpt_neox.layers",
    "gpt-neox-serial": "gpt_neox.layers",
    **dict.fromkeys(("falcon", "falcon-40b", "falcon-serial"), "transformer.h"),
    "t5": "encoder.block",
    "t5-gated": "encoder.block",
}


class Spy(Adapter):
    """Notes what it is given, and goes on with `scale` times f."""

    def __init__(self, base: nn.Module, scale: float) -> None:
        super().__init__(base)
        self.scale = scale
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, f: Tensor, r: Tensor) -> Tensor:
        self.calls.append((x.clone(), f.clone(), r.clone()))
        return f * self.scale


def _run(backbone: Backbone, roles: str, scale: float, name: str) -> tuple[dict[str, Spy], list[tuple[Tensor, Tensor]]]:
    """The spies by site, and what went into and came out of each layer."""
    edit, layers = Edit(backbone), list[tuple[Tensor, Tensor]]()
    edit.swap(roles, lambda old: Spy(old, scale))

    def note(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        layers.append((x.clone(), (out[0] if isinstance(out, tuple) else out).clone()))

    stack = backbone.net.get_submodule(LAYER.get(name, "model.layers"))
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in stack.children()]
    try:
        logits(backbone.net.eval(), batch((6, 6)))
        return {s.path: backbone.net.get_submodule(s.path) for s in backbone.sites.of(roles)}, layers
    finally:
        edit.undo()
        for hook in hooks:
            hook.remove()


def _of(spies: dict[str, Spy], role: str) -> list[Spy]:
    return [spy for path, spy in spies.items() if path.endswith(f"{role}_site")]


@pytest.mark.parametrize("name", [name for name in ALL if name not in T5])  # theirs: test_t5.py
def test_input_output_and_residual_compose_to_the_layers_own_output(zoo: Zoo, name: str) -> None:
    """From a layer's input to its output: y = norm(f + r) or y = f + r, and the second r is the first y."""
    backbone = zoo[name].backbone
    spies, layers = _run(backbone, "attn ffn", 1.0, name)
    assert all(len(spy.calls) == 1 for spy in spies.values())
    assert len(layers) == LAYERS
    pairs = zip(_of(spies, "attn"), _of(spies, "ffn"), layers, strict=True)
    for attn, ffn, (before, after) in pairs:
        (_, f1, r1), (_, f2, r2) = attn.calls[0], ffn.calls[0]
        with torch.no_grad():
            y1, y2 = attn.base.norm(f1 + r1), ffn.base.norm(f2 + r2)
        same = {"rtol": 0, "atol": 1e-5}
        torch.testing.assert_close(r1, before, **same)
        if name in PARALLEL:  # both sublayers start from the layer's input
            torch.testing.assert_close(r2, before, **same)
            torch.testing.assert_close(f1 + f2 + before, after, **same)
        else:
            torch.testing.assert_close(r2.view_as(before), y1, **same)
            torch.testing.assert_close(y2.view_as(after), after, **same)


@pytest.mark.parametrize("name", ALL)
def test_the_norm_is_the_identity_exactly_in_a_pre_norm_network(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    h = torch.randn(2, 3, backbone.sites.width)
    for site in backbone.sites.of("attn ffn"):
        y = backbone.net.get_submodule(site.path).norm(h)
        assert torch.equal(y, h) == (name not in POST_NORM)


@pytest.mark.parametrize("name", ALL)
def test_the_input_is_what_the_sublayers_first_linear_layer_gets(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    seen: dict[str, Tensor] = {}

    def note(role: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.setdefault(role, args[0].clone())

        return hook

    firsts = {"attn": backbone.sites.of("q")[0].path}
    if name not in EXPERTS:  # whose layers get the tokens of an expert
        firsts["ffn"] = backbone.sites.of("up")[0].path
    hooks = [backbone.net.get_submodule(p).register_forward_pre_hook(note(r)) for r, p in firsts.items()]
    try:
        spies, _ = _run(backbone, "attn ffn", 1.0, name)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen.keys() == firsts.keys()
    for role, x in seen.items():
        assert torch.equal(_of(spies, role)[0].calls[0][0], x)


@pytest.mark.parametrize("role", ["attn", "ffn"])
@pytest.mark.parametrize("name", ALL)
def test_a_stand_in_that_returns_zero_removes_the_sublayer(zoo: Zoo, name: str, role: str) -> None:
    """As in a network whose sublayer ends in a linear layer of zeros."""
    backbone = zoo[name].backbone
    inputs = batch()
    edit = Edit(backbone)
    edit.swap(role, lambda old: Spy(old, 0.0))
    without = logits(backbone.net.eval(), inputs)
    edit.undo()
    if role == "ffn" and name in EXPERTS:
        last = [m for path, m in backbone.net.named_modules() if path.endswith(".experts")]
    else:
        last = [backbone.net.get_submodule(s.path) for s in backbone.sites.of("o" if role == "attn" else "down")]
    kept = [[p.clone() for p in layer.parameters()] for layer in last]
    with torch.no_grad():
        for layer in last:
            for p in layer.parameters():
                p.zero_()
        zeroed = logits(backbone.net, inputs)
        for layer, values in zip(last, kept, strict=True):
            for p, value in zip(layer.parameters(), values, strict=True):
                p.copy_(value)
    assert not torch.equal(logits(backbone.net, inputs), without)
    torch.testing.assert_close(without, zeroed, rtol=0, atol=1e-5)


def test_a_second_adapter_at_the_same_sublayer_is_refused() -> None:
    backbone = load("tiny-encoder", "classification", 2)
    edit = Edit(backbone)
    try:
        make(discover()["adapter"], {"bottleneck": 2}).attach(edit)
        with pytest.raises(UserError, match="ffn_site is taken"):
            make(discover()["adapter"], {"bottleneck": 2, "placement": "parallel"}).attach(edit)
    finally:
        edit.undo()
