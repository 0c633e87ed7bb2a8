"""`roles:` of an experiment for an architecture that the tables do not know, and every mistake in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import HEADS, INNER, LAYERS, WIDTH, Model, Zoo, batch, logits, loss, save

from peftbench.backbones.load import load_sites
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.method.registry import discover, make

PHI = {
    **{role: f"model.layers.*.self_attn.{role}_proj" for role in "qkv"},
    "o": "model.layers.*.self_attn.dense",
    "up": "model.layers.*.mlp.fc1",
    "down": "model.layers.*.mlp.fc2",
    "attn": {
        "output": "model.layers.*.self_attn",
        "input": "model.layers.*.self_attn:0",
        "residual": "model.layers.*.input_layernorm:0",
    },
    "prefix": "model.layers.*.self_attn",
    "embed": "model.embed_tokens",
    "norm": ["model.layers.*.input_layernorm", "model.final_layernorm"],
}
BLOOM = {
    **dict.fromkeys("qkv", "transformer.h.*.self_attention.query_key_value"),
    "fused": "by_head",
    "o": "transformer.h.*.self_attention.dense",
    "up": "transformer.h.*.mlp.dense_h_to_4h",
    "down": "transformer.h.*.mlp.dense_4h_to_h",
    "prefix": "transformer.h.*.self_attention",
}
FACTS = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = save(tmp_path_factory.mktemp("unknown") / "phi", "phi", "generation", {**FACTS, "num_key_value_heads": 2})
    return Model(folder, "generation")


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Model:
    facts = {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    return Model(save(tmp_path_factory.mktemp("unknown") / "bloom", "bloom", "generation", facts), "generation")


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Model:
    facts = {**FACTS, "num_key_value_heads": 2}
    return Model(save(tmp_path_factory.mktemp("unknown") / "phi3", "phi3", "generation", facts), "generation")


def test_an_unknown_architecture_without_roles_is_refused_with_an_example(bloom: Model) -> None:
    with pytest.raises(
        UserError, match=r"no roles are known for the architecture 'bloom' \(known: bert, .*roles: \{q:"
    ):
        bloom.load()
    with pytest.raises(UserError, match="no roles are known"):
        load_sites(str(bloom.folder), "generation")


@pytest.mark.parametrize("name", ["lora", "ia3", "prefix", "qlora", "dora"])
def test_given_roles_work_end_to_end(phi: Model, name: str) -> None:
    backbone = phi.load(roles=PHI, dropout=0.0)
    before = logits(backbone.net.eval(), batch())
    torch.testing.assert_close(before, logits(phi.untouched, batch()), rtol=0, atol=1e-5)
    assert backbone.sites == load_sites(str(phi.folder), "generation", roles=PHI)
    edit, method = Edit(backbone), make(discover()[name], {})
    method.attach(edit)
    optimizer = method.optimizer(backbone.net.train(), 1e-2, 0.0)
    losses = []
    for _ in range(4):
        value = loss(backbone.net, batch())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value.detach()))
    edit.check_used()
    assert losses[-1] < losses[0]
    edit.undo()
    assert torch.equal(logits(backbone.net.eval(), batch()), before)


def test_a_fused_layer_of_an_unknown_architecture_is_split_by_the_given_layout(bloom: Model) -> None:
    backbone = bloom.load(roles=BLOOM)
    torch.testing.assert_close(
        logits(backbone.net.eval(), batch()), logits(bloom.untouched, batch()), rtol=0, atol=1e-5
    )
    layer = bloom.untouched.get_submodule("transformer.h.0.self_attention.query_key_value")
    head = WIDTH // HEADS
    own = backbone.net.get_submodule("transformer.h.0.self_attention.query_key_value.k").weight
    assert torch.equal(own[head : 2 * head], layer.weight[3 * head + head : 3 * head + 2 * head])  # of the second head


def test_a_prefix_on_an_attention_past_the_interface_is_refused_when_it_is_planned_and_attached(bloom: Model) -> None:
    backbone = bloom.load(roles=BLOOM)
    edit, prefix = Edit(backbone), make(discover()["prefix"], {})
    why = r"no 'prefix' site: transformer.h.0.self_attention is a BloomAttention, which does not call the attention"
    with pytest.raises(UserError, match=why):
        prefix.attach(edit)
    with pytest.raises(UserError, match=why):
        prefix.parameters(backbone.sites)
    edit.undo()


MISTAKES: dict[str, tuple[Any, str]] = {
    "matches nothing": ({**PHI, "q": "model.layers.*.attention.query"}, r"q = 'model.layers.\*.attention.query' match"),
    "not a linear layer": ({**PHI, "q": "model.layers.*.self_attn"}, r"q = 'model.layers.0.self_attn' is a PhiAttent"),
    "unknown key": ({**PHI, "querry": "model.layers.*.self_attn.q_proj"}, r"unknown role 'querry'"),
    "unknown layout": ({**PHI, "fused": "third"}, r"unknown layout 'third'; did you mean 'thirds'"),
    "block matches nothing": (
        {**PHI, "attn": {**PHI["attn"], "output": "model.layers.*.attention"}},
        r"attn.output = 'model.layers.\*.attention' matches no module",
    ),
    "block without output": ({**PHI, "attn": {"input": "model.layers.*.self_attn:0"}}, r"attn lacks output"),
    "block with an unknown key": ({**PHI, "attn": {**PHI["attn"], "ouput": "a"}}, r"unknown key 'ouput'; did you mean"),
    "block as a path": (
        {**PHI, "attn": "model.layers.*.self_attn"},
        r"attn = 'model.layers.\*.self_attn' must be a ma",
    ),
    "block argument is no number": (
        {**PHI, "attn": {**PHI["attn"], "input": "model.layers.*.self_attn:hidden_states"}},
        r"attn.input = 'model.layers.\*.self_attn:hidden_states' .* number",
    ),
    "block norm of one layer only": (
        {**PHI, "attn": {**PHI["attn"], "norm": "model.final_layernorm"}},
        r"attn.norm = 'model.final_layernorm' matches 1 module",
    ),
    "a number for a path": ({**PHI, "q": 3}, r"q = 3 must be a path"),
    "a number in a list": ({**PHI, "q": ["model.layers.*.self_attn.q_proj", 3]}, r"q = \['model.* must be a path or a"),
    "an empty list": ({**PHI, "q": []}, r"q = \[\] must be a path or a list"),
    "two roles at one layer, in a list": ({**PHI, "k": [PHI["k"], PHI["q"]]}, r"q and k name the same layer"),
    "a layer twice in a list": ({**PHI, "q": [PHI["q"], PHI["q"]]}, r"q and q name the same layer"),
    "one of two patterns matches nothing": ({**PHI, "q": [PHI["q"], "encoder.q"]}, r"q = 'encoder.q' matches no"),
    "a block in a list without output": ({**PHI, "attn": [PHI["attn"], {"input": "a:0"}]}, r"attn lacks output"),
    "two roles at one layer": ({**PHI, "k": PHI["q"]}, r"q and k name the same layer"),
    "no roles at all": ({}, r"names no linear layer"),
    "a list of roles": (["q"], r"must be a mapping"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_roles_is_named(phi: Model, mistake: str) -> None:
    roles, said = MISTAKES[mistake]
    with pytest.raises(UserError, match=said):
        phi.load(roles=roles)
    with pytest.raises(UserError, match=said):
        load_sites(str(phi.folder), "generation", roles=roles)


def test_a_fused_layer_without_its_layout_is_refused(bloom: Model) -> None:
    with pytest.raises(UserError, match=r"share one layer.*fused: thirds, stacked, by_head or by_group"):
        bloom.load(roles={k: v for k, v in BLOOM.items() if k != "fused"})


def test_a_fused_layer_with_fewer_key_heads_is_refused_rather_than_split_wrongly(phi3: Model) -> None:
    roles = {**dict.fromkeys("qkv", "model.layers.*.self_attn.qkv_proj"), "fused": "thirds"}
    with pytest.raises(UserError, match=r"qkv_proj.* 128 rows.*not three times"):
        phi3.load(roles=roles)


def test_a_role_of_the_head_is_refused(zoo: Zoo) -> None:
    """The head is trained alike for every method; a method must not adapt it."""
    with pytest.raises(UserError, match="up = 'classifier' belongs to the task head"):
        zoo["bert"].load(roles={"q": "bert.encoder.layer.*.attention.self.query", "up": "classifier"})


def test_a_role_that_the_network_lacks_lists_the_roles_there_are(zoo: Zoo) -> None:
    backbone = zoo["bert"].backbone
    with pytest.raises(
        UserError, match=r"unknown role 'gate'.*Valid: attn, down, embed, ffn, k, norm, o, prefix, prompt, q"
    ):
        make(discover()["lora"], {"roles": "q gate"}).attach(Edit(backbone))
