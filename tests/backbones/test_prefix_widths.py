"""The width of a prefix is that of the layers' keys and values, not what a configuration says of all layers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig

from peftbench.backbones.networks import random_network
from peftbench.backbones.normalise import normalise
from peftbench.backbones.sites import Sites

LAYER = "model.layers.*.self_attn"
ROLES = {**{role: f"{LAYER}.{role}_proj" for role in "qkvo"}, "prefix": LAYER}
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def sites(model_type: str, roles: dict[str, Any], change: Any = lambda net: None, **facts: Any) -> Sites:
    config = AutoConfig.for_model(model_type, **{**SMALL, **facts})
    with torch.device("meta"):
        net = random_network("generation", config)
        change(net)
    return normalise(net, [], roles)


def test_a_head_width_of_its_own_is_read_from_the_layer() -> None:
    found = sites("llama", ROLES, num_key_value_heads=2, head_dim=16)
    assert {s.size for s in found.of("prefix")} == {(2, 16)}


def test_layers_with_heads_of_other_widths_have_slots_of_their_own() -> None:
    def widen(net: Any) -> None:
        attention = net.model.layers[1].self_attn
        attention.head_dim = 16
        attention.k_proj, attention.v_proj = (torch.nn.Linear(32, 32) for _ in "kv")

    found = sites("llama", ROLES, widen, num_key_value_heads=2, head_dim=8)
    assert [s.size for s in found.of("prefix")] == [(2, 8), (2, 16)]


def test_a_number_of_heads_for_each_layer_is_read_from_the_list() -> None:
    def fewer(net: Any) -> None:
        vars(net.config)["num_key_value_heads"] = [2, 1]  # as remote code has it; this class takes a number only
        for i, heads in enumerate((2, 1)):
            attention = net.model.layers[i].self_attn
            attention.k_proj, attention.v_proj = (torch.nn.Linear(32, 8 * heads) for _ in "kv")

    found = sites("llama", ROLES, fewer, num_key_value_heads=2)
    assert [s.size for s in found.of("prefix")] == [(2, 8), (1, 8)]


def test_keys_and_values_of_two_widths_take_no_prefix_and_the_other_roles_stay() -> None:
    def narrow(net: Any) -> None:
        for layer in net.model.layers:
            layer.self_attn.v_proj = torch.nn.Linear(32, 24)

    found = sites("llama", ROLES, narrow, num_key_value_heads=4)
    assert "have heads of width 8 and its values of 6" in found.absent["prefix"]
    assert "prefix" not in found.roles
    assert len(found.of("v")) == 2


def test_latent_attention_takes_no_prefix() -> None:
    facts = {
        "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "num_experts_per_tok": 2, "first_k_dense_replace": 2, "kv_lora_rank": 8, "q_lora_rank": 8,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    }  # fmt: skip
    roles = {"k": f"{LAYER}.kv_a_proj_with_mqa", "v": f"{LAYER}.kv_b_proj", "prefix": LAYER}
    assert "have heads of width 12 and its values of 8" in sites("deepseek_v3", roles, **facts).absent["prefix"]
