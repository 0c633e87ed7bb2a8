"""The experts of a network as linear sites: views of tensors that all experts share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from architectures import EXPERTS, Zoo, batch, logits, loss
from torch import nn

from peftbench.backbones import tiny
from peftbench.backbones.denormalise import plain_state
from peftbench.backbones.experts import NAME, ExpertLinear
from peftbench.backbones.in_memory import wrap
from peftbench.backbones.load import Backbone
from peftbench.backbones.networks import random_network
from peftbench.errors import UserError
from peftbench.measure.probes.weight_changes import weight_changes
from peftbench.method.edit import Adapter, Edit
from peftbench.method.registry import find, make

ROLES = "gate up down"
ROUTERS = {"mixtral": "mlp.gate", "qwen3-moe": "mlp.gate", "gpt-oss": "mlp.router"}


def attach(backbone: Backbone, method: str = "lora", spread: float = 0.1, **hyper: Any) -> Edit:
    edit = Edit(backbone)
    torch.manual_seed(5)
    make(find(method), {"roles": ROLES, **hyper}).attach(edit)
    with torch.no_grad():
        for p in edit.trained():
            p.add_(spread * torch.randn_like(p))
    return edit


class Spy(Adapter):
    """The layer itself, which counts the tokens that it gets."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.tokens = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.tokens += len(x)
        return self.base(x)


@pytest.mark.parametrize("name", EXPERTS)
def test_computing_each_expert_at_its_sites_is_transformers_own_kernel(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    expected = logits(backbone.net.eval(), batch())
    edit = Edit(backbone)
    edit.swap(ROLES, Spy)
    found = logits(backbone.net, batch())
    spies = {site.path: spy for site, spy in edit.placed()}
    edit.undo()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    config = backbone.net.config
    tokens = batch()["input_ids"].numel() * config.num_experts_per_tok * config.num_hidden_layers
    assert sum(spy.tokens for path, spy in spies.items() if path.endswith(".down")) == tokens


@pytest.mark.parametrize("name", EXPERTS)
def test_the_weights_at_the_sites_make_up_the_tensors_of_the_experts(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    kept = {n: t.clone() for n, t in plain_state(backbone.net).items() if ".experts." in n}
    edit = Edit(backbone)
    edit.swap(ROLES, lambda view: view.as_linear())
    made = {n: t.clone() for n, t in plain_state(backbone.net).items() if ".experts." in n}
    edit.undo()
    assert made.keys() == kept.keys()
    assert all(torch.equal(made[n], t) and made[n].is_contiguous() for n, t in kept.items())


@pytest.mark.parametrize("name", EXPERTS)
def test_the_router_and_the_experts_own_tensors_stay_frozen_beside_adapters(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    edit = attach(backbone)
    loss(backbone.net.train(), batch()).backward()
    frozen = {n: p for n, p in backbone.parameters.items() if ROUTERS[name] in n or ".experts." in n}
    assert any(ROUTERS[name] in n for n in frozen)
    assert not any(p.requires_grad or p.grad is not None for p in frozen.values())
    edit.undo()


@pytest.mark.parametrize("name", EXPERTS)
def test_the_library_chooses_the_kernel_again_after_undo(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    before = backbone.net.config._experts_implementation
    edit = attach(backbone, roles="q v")
    assert backbone.net.config._experts_implementation == before
    edit.undo()
    edit = attach(backbone)
    assert backbone.net.config._experts_implementation == NAME
    edit.undo()
    assert backbone.net.config._experts_implementation == before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "qlora"])
@pytest.mark.parametrize("name", EXPERTS)
def test_checkpointing_keeps_the_gradients_of_experts(zoo: Zoo, name: str, method: str) -> None:
    found = []
    for checkpointing in (False, True):
        backbone = zoo[name].load(gradient_checkpointing=checkpointing, dropout=0.0)
        hyper = {} if method == "ia3" else {"roles": ROLES}
        edit = Edit(backbone)
        torch.manual_seed(5)
        make(find(method), hyper).attach(edit)
        loss(backbone.net.train(), batch()).backward()
        found.append([p.grad for p in edit.trained()])
    plain, again = found
    assert any(g is not None for g in plain)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(plain, again, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_quantised_experts_free_their_dense_tensors_until_undo(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].load()
    dense = {n: p.nbytes for n, p in backbone.parameters.items() if n.endswith(("gate_up_proj", "down_proj"))}
    edit = Edit(backbone)
    edit.swap("gate up", lambda view: view.as_linear())
    freed = {n for n in dense if backbone.parameters[n].numel() == 0}
    assert freed == {n for n in dense if n.endswith("gate_up_proj")}
    edit.undo()
    assert {n: backbone.parameters[n].nbytes for n in dense} == dense


def test_weights_of_experts_are_not_thawed_by_role(zoo: Zoo) -> None:
    with pytest.raises(UserError, match=r"experts\.each\.0\.down are a part of one tensor of all experts"):
        Edit(zoo["mixtral"].load()).thaw("q down")


def test_a_copied_network_shows_its_own_tensors_and_a_copied_view_the_same(zoo: Zoo) -> None:
    net = zoo["mixtral"].backbone.net
    path = "model.layers.0.mlp.experts"
    view = net.get_submodule(f"{path}.each.1.up")
    assert isinstance(view, ExpertLinear)
    assert copy.deepcopy(view).source is net.get_submodule(path).gate_up_proj
    twin = copy.deepcopy(net)
    assert twin.get_submodule(f"{path}.each.1.up").source is twin.get_submodule(path).gate_up_proj


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_probes_see_the_weights_of_experts_before_and_after(zoo: Zoo, name: str, method: str) -> None:
    backbone = zoo[name].load()
    edit = Edit(backbone)
    backbone.save_snapshot()
    make(find(method), {} if method == "full" else {"roles": "gate down"}).attach(edit)
    with torch.no_grad():
        for p in edit.trained():
            p.add_(0.1)
    changes = {change.path: change for change in weight_changes(edit)}
    view = zoo[name].backbone.net.get_submodule("model.layers.1.mlp.experts.each.2.gate")
    change = changes["model.layers.1.mlp.experts.each.2.gate"]
    assert torch.equal(change.before, view.dense_weight().double())
    if method == "full":
        torch.testing.assert_close(change.after, change.before + 0.1, rtol=0, atol=1e-6)
    else:
        scaled = change.adapter.scale * change.adapter.B.double() @ change.adapter.A.double()
        base = view.dense_weight() if method == "lora" else change.adapter.base.dense_weight()
        torch.testing.assert_close(change.after, base.double() + scaled, rtol=1e-9, atol=1e-9)


def test_layers_without_experts_have_linear_layers_at_the_same_roles() -> None:
    facts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}
    config = tiny.config("tiny-decoder", model_type="qwen3_moe", **facts)
    backbone = wrap(random_network("generation", config), tiny.tokenizer("tiny-decoder"))
    paths = [site.path for site in backbone.sites.of("down")]
    assert paths[:2] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.experts.each.0.down"]
    assert len(paths) == 1 + 4 * (config.num_hidden_layers - 1)


def test_a_table_of_roles_names_the_experts_of_an_unknown_architecture(zoo: Zoo) -> None:
    place = "model.layers.*.mlp.experts"
    table = {"q": "model.layers.*.self_attn.q_proj", **dict.fromkeys(ROLES.split(), place)}
    assert len(zoo["mixtral"].load(roles=table).sites.of("down")) == 8
    assert len(zoo["mixtral"].load(roles={"up": place}).sites.of("up")) == 8
    wrong = {"q": place, "k": place}
    with pytest.raises(UserError, match="gate, up and down a module of experts"):
        zoo["mixtral"].load(roles=wrong)
    with pytest.raises(UserError, match=r"q = .* is a MixtralExperts, whose experts have no q"):
        zoo["mixtral"].load(roles={"q": place})
    with pytest.raises(UserError, match="is a LlamaMLP, not a linear layer"):
        zoo["llama"].load(roles=dict.fromkeys(ROLES.split(), "model.layers.*.mlp"))
