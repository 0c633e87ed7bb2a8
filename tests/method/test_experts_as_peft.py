"""Adapters of experts equal those of Hugging Face peft on the parameters of all experts: numbers, gradients, files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import EXPERTS, Model, Zoo, batch, logits, loss
from test_interop import _own_cache, moved, plain
from torch import Tensor, nn

from peftbench.backbones.load import Backbone
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.method.interop import from_peft, to_peft, to_transformers
from peftbench.method.interop.trained_adapter import open_trained
from peftbench.method.registry import find, make

peft = pytest.importorskip("peft")
__all__ = ["_own_cache"]  # the fixture, which is used without being asked for
RANK = 2


def eager(model: Model) -> nn.Module:
    """The plain model with transformers' own loop over experts, which computes in float64 too."""
    net: Any = plain(model)
    net.set_experts_implementation("eager")
    return net  # type: ignore[no-any-return]


def theirs(model: Model, parameters: list[str], **settings: Any) -> nn.Module:
    """The plain model with peft's LoRA on parameters of the experts, its numbers moved off their start."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=6, target_modules=[], target_parameters=parameters, task_type="CAUSAL_LM", **settings
    )
    twin: nn.Module = peft.get_peft_model(eager(model), config).double().eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if "lora_" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return twin


def agree(ours: nn.Module, theirs: nn.Module) -> None:
    a, b = (logits(net.double().eval(), batch()) for net in (ours, theirs))
    torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6 * float(a.abs().max()))


def attached(model: Model, roles: str) -> tuple[Backbone, Edit]:
    backbone = model.load()
    edit = Edit(backbone)
    make(find("lora"), {"rank": RANK, "alpha": 6.0, "roles": roles}).attach(edit)
    backbone.net.double().eval()
    return backbone, edit


def of_expert(twin: nn.Module, path: str, number: int, gradient: bool = False) -> dict[str, Tensor]:
    """peft's A (r, in) and B (out, r) of one expert, or their gradients, from those of all experts of the layer.

    lora_A is (experts * r, in), one expert after another; lora_B is (out, r * experts), the experts beside each other.
    """
    layer, expert = map(int, re.findall(r"\d+", path))
    whole = {n: p for n, p in twin.named_parameters() if f"layers.{layer}." in n}
    A, B = (next(p for n, p in whole.items() if f"lora_{end}" in n) for end in "AB")
    a, b = (A.grad, B.grad) if gradient else (A, B)
    assert a is not None
    assert b is not None
    return {"A": a[expert * RANK : (expert + 1) * RANK], "B": b[:, expert::number]}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERTS)
def test_outputs_and_gradients_are_pefts_from_equal_factors(zoo: Zoo, name: str) -> None:
    backbone, edit = attached(zoo[name], "down")
    twin = theirs(zoo[name], ["mlp.experts.down_proj"])
    number = len(edit.placed()) // backbone.net.config.num_hidden_layers
    with torch.no_grad():
        for site, module in edit.placed():
            module.load_state_dict(of_expert(twin, site.path, number), strict=False)
    agree(backbone.net, twin)
    assert edit.counts()["trainable"] == sum(p.numel() for p in twin.parameters() if p.requires_grad)
    for net in (backbone.net, twin):
        loss(net, batch()).backward()
    reached = [module for _, module in edit.placed() if module.A.grad is not None]
    for site, module in edit.placed():
        for end, part in of_expert(twin, site.path, number, gradient=True).items():
            grad = getattr(module, end).grad
            if grad is None:  # no token was sent to this expert
                assert not part.any()
            else:
                torch.testing.assert_close(grad, part, rtol=1e-6, atol=1e-9)
    assert reached


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "hyper"),
    [
        ("lora", {"rank": 3, "alpha": 7.0, "roles": "down"}),
        ("lora", {"rank": 3, "alpha": 7.0, "roles": "up"}),
        ("lora", {"rank": 3, "alpha": 7.0, "roles": "q v gate up down"}),
        ("rslora", {"rank": 3, "alpha": 7.0, "roles": "gate down"}),
        ("pissa", {"rank": 3, "roles": "o gate up down"}),
    ],
)
@pytest.mark.parametrize("name", EXPERTS)
def test_peft_computes_the_same_from_what_is_exported_and_so_does_what_is_read_back(
    zoo: Zoo, tmp_path: Path, name: str, method: str, hyper: dict[str, Any]
) -> None:
    backbone, _ = moved(zoo[name], method, hyper, tmp_path / "a.safetensors")
    to_peft.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    untouched = eager(zoo[name])
    before = logits(untouched, batch())
    twin = peft.PeftModel.from_pretrained(untouched, tmp_path / "out")
    assert not torch.allclose(before, logits(backbone.net, batch()), rtol=1e-3)
    agree(backbone.net, twin)
    from_peft.read(tmp_path / "out", str(zoo[name].folder), tmp_path / "back.safetensors")
    back = open_trained(tmp_path / "back.safetensors")
    assert back.hyper["roles"] == hyper["roles"]
    agree(backbone.net, back.backbone.net)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERTS)
def test_what_peft_made_of_down_is_read_and_what_mixes_gate_and_up_is_refused(
    zoo: Zoo, tmp_path: Path, name: str
) -> None:
    twin = theirs(zoo[name], ["mlp.experts.down_proj"])
    twin.float().save_pretrained(tmp_path / "down")  # type: ignore[operator]
    from_peft.read(tmp_path / "down", str(zoo[name].folder), tmp_path / "a.safetensors")
    agree(open_trained(tmp_path / "a.safetensors").backbone.net, twin)
    theirs(zoo[name], ["experts.gate_up_proj"]).float().save_pretrained(tmp_path / "both")  # type: ignore[operator]
    with pytest.raises(UserError, match=r"each\.0 is a fused layer whose update mixes gate and up"):
        from_peft.read(tmp_path / "both", str(zoo[name].folder), tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("method", "says"), [("dora", "peft's DoRA"), ("ia3", r"peft's \(IA\)\^3"), ("vera", "peft's VeRA")]
)
def test_what_peft_does_not_have_for_experts_is_refused(zoo: Zoo, tmp_path: Path, method: str, says: str) -> None:
    hyper = {} if method == "ia3" else {"roles": "q down"}
    moved(zoo["mixtral"], method, hyper, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"{says} does not adapt experts.*--to merged"):
        to_peft.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")


def test_an_adapter_over_quantised_experts_does_not_travel_to_a_base_that_leaves_them_dense(
    zoo: Zoo, tmp_path: Path
) -> None:
    moved(zoo["mixtral"], "qlora", {"roles": "q"}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"BitsAndBytesConfig leaves experts as they are.*--to merged"):
        to_peft.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "ia3", "vera", "pissa", "adalora"])
@pytest.mark.parametrize("name", EXPERTS)
def test_the_merged_model_computes_the_same_in_transformers(zoo: Zoo, tmp_path: Path, name: str, method: str) -> None:
    hyper = {} if method == "ia3" else {"roles": "q gate up down"}
    moved(zoo[name], method, hyper, tmp_path / "a.safetensors")
    trained = open_trained(tmp_path / "a.safetensors")
    expected = logits(trained.backbone.net.eval(), batch())
    to_transformers.write(trained, tmp_path / "merged")
    merged: Any = type(trained.backbone.net).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged, batch()), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
