"""Prefix slots on attention of every kind: soft-capping, sinks, windows, few or differing heads, and what is refused.

An empty slot must leave a network as it was. The formula with a prefix is written out here, one score at a time.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from peftbench.backbones.attention import prefix_attention
from peftbench.backbones.in_memory import wrap
from peftbench.errors import UserError
from peftbench.method.edit import Adapter, Edit
from peftbench.methods.prefix import PrefixTuning
from peftbench.verify.contract.case import Case, batch, evaluated_logits, network
from peftbench.verify.contract.networks import NETWORKS


class _Empty(Adapter):
    """A prefix of length zero, or none at all."""

    def __init__(self, slot: Any, length_zero: bool) -> None:
        super().__init__(slot)
        self.none = torch.zeros(slot.heads, 0, slot.head_width) if length_zero else None

    def forward(self) -> Any:
        return None if self.none is None else (self.none, self.none)


@pytest.mark.slow
@pytest.mark.parametrize("length_zero", [True, False], ids=["length 0", "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_empty_slots_computes_what_it_computes_alone(name: str, length_zero: bool) -> None:
    case = Case(PrefixTuning, {}, name)
    backbone = network(case)
    expected = evaluated_logits(backbone.net, batch(case))
    edit = Edit(backbone)
    edit.swap("prefix", lambda slot: _Empty(slot, length_zero))
    found = evaluated_logits(backbone.net, batch(case))
    edit.check_used()
    edit.undo()
    kept = batch(case)["attention_mask"].bool() if found.ndim == 3 else slice(None)
    torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(evaluated_logits(backbone.net, batch(case)), expected)


@pytest.mark.parametrize("name", ["soft-capping", "sinks", "sliding-window"])
def test_what_a_network_has_beside_plain_attention_matters_in_these_tests(name: str) -> None:
    """Without it the logits differ by far more than the tests allow."""
    case = Case(PrefixTuning, {}, name)
    net = network(case).net
    expected = evaluated_logits(net, batch(case))
    for module in net.modules():
        if hasattr(module, "attn_logit_softcapping"):
            module.attn_logit_softcapping = None
        if hasattr(module, "sinks"):
            module.sinks.data.fill_(-1e4)
    if name == "sliding-window":
        net.config.sliding_window = None
    changed = evaluated_logits(net, batch(case))
    assert (changed - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("shown", ["all", "mask", "bias", "causal"])
def test_prefix_attention_is_the_formula_written_out(
    shown: str, sinks: bool, softcap: float | None, heads: int
) -> None:
    torch.manual_seed(0)
    shapes = [(2, 4, 5, 6), (2, heads, 5, 6), (2, heads, 5, 6), (heads, 3, 6), (heads, 3, 6)]
    q, k, v, K, V = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    s = torch.randn(4, dtype=torch.float64) if sinks else None
    causal = torch.ones(2, 1, 5, 5).tril().bool()
    given: dict[str, Any] = {
        "all": {"attention_mask": None, "is_causal": False},
        "mask": {"attention_mask": causal},
        "bias": {"attention_mask": causal, "position_bias": torch.randn(1, 4, 5, 5, dtype=torch.float64)},
        "causal": {"attention_mask": None, "is_causal": True},
    }[shown]
    module = SimpleNamespace(prefix_slot=_Given((K, V)), is_causal=shown != "causal")  # the argument goes first
    found, _ = prefix_attention(module, q, k, v, scaling=0.7, softcap=softcap, s_aux=s, **given)
    bias = given.get("position_bias", torch.zeros(1, 4, 5, 5))
    for b in range(2):
        for h in range(4):
            kv = h * heads // 4
            for i in range(5):
                seen = range(5) if shown == "all" else range(i + 1)
                keys, values = torch.cat([K[kv], k[b, kv, seen]]), torch.cat([V[kv], v[b, kv, seen]])
                scores = [0.7 * float(key @ q[b, h, i]) for key in keys]
                scores = [x if softcap is None else softcap * math.tanh(x / softcap) for x in scores]
                added = [0.0] * 3 + [float(bias[0, h, i, j]) for j in seen]
                weights = [math.exp(x + y) for x, y in zip(scores, added, strict=True)]
                total = sum(weights) + (0.0 if s is None else math.exp(float(s[h])))
                expected = torch.tensor(weights, dtype=torch.float64) @ values / total
                precision = 1e-6 if softcap is not None else 1e-12  # as the network, which takes its softmax in float32
                torch.testing.assert_close(found[b, i, h], expected, rtol=0, atol=precision)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradients_reach_prefix_and_sinks(softcap: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 5, 6) for _ in range(3))
    K, V, s = torch.randn(4, 3, 6, requires_grad=True), torch.randn(4, 3, 6, requires_grad=True), torch.zeros(4)
    s.requires_grad_()
    out, _ = prefix_attention(SimpleNamespace(prefix_slot=_Given((K, V))), q, k, v, None, softcap=softcap, s_aux=s)
    grads = torch.autograd.grad(out.square().sum(), (K, V, s))
    assert all(bool(g.count_nonzero()) for g in grads)


def test_dropout_takes_weights_of_soft_capped_scores_away() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    module = SimpleNamespace()
    plain, dropped = (prefix_attention(module, q, k, v, None, p, softcap=2.0)[0] for p in (0.0, 0.5))
    assert not torch.allclose(plain, dropped)
    many = torch.stack([prefix_attention(module, q, k, v, None, 0.5, softcap=2.0)[0] for _ in range(4000)]).mean(0)
    torch.testing.assert_close(many, plain, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", ["indices", "block_indices", "sinks", "output_attentions", "head_mask", "anything"])
def test_what_attention_is_given_and_is_not_known_here_is_refused_by_name(name: str) -> None:
    q = torch.zeros(1, 1, 2, 4)
    value: Any = True if name == "output_attentions" else torch.ones(1)
    with pytest.raises(UserError, match=f"gives it '{name}', which is not known here.*another method or another"):
        prefix_attention(SimpleNamespace(), q, q, q, None, **{name: value})


def test_what_changes_nothing_is_taken() -> None:
    q = torch.zeros(1, 1, 2, 4)
    harmless: dict[str, Any] = {
        "sliding_window": 3,
        "position_ids": torch.zeros(1),
        "head_mask": None,
        "use_cache": True,
    }
    prefix_attention(SimpleNamespace(), q, q, q, None, **harmless, output_attentions=False)


@pytest.mark.parametrize("wrong", [(1, 6), (4, 3)], ids=["heads", "width"])
def test_a_slot_of_another_size_than_the_layers_keys_is_refused_with_both(wrong: tuple[int, int]) -> None:
    q = torch.zeros(1, 4, 2, 6)
    K = torch.zeros(wrong[0], 3, wrong[1])
    with pytest.raises(UserError, match=f"have 4 heads of 6, and the slot's have {wrong[0]} heads of {wrong[1]}"):
        prefix_attention(SimpleNamespace(prefix_slot=_Given((K, K))), q, q, q, None)


class _Given(nn.Module):
    def __init__(self, prefix: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.prefix


IDS = {"vocab_size": 261, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
}
COMPRESSED = {"o": "model.layers.*.self_attn.o_proj", "prefix": "model.layers.*.self_attn"}
BIGCODE = {"o": "transformer.h.*.attn.c_proj", "prefix": "transformer.h.*.attn"}


def _net(model_type: str, **facts: Any) -> Any:
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **IDS, **facts)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


@pytest.mark.parametrize(
    ("model_type", "facts", "roles", "size"),
    [
        ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "multi_query": True}, BIGCODE, (1, 8)),
        ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "multi_query": False}, BIGCODE, (4, 8)),
        ("deepseek_v3", {**SIZES, **DEEPSEEK, "v_head_dim": 8}, COMPRESSED, (4, 8)),
        ("llama", {**SIZES, "num_key_value_heads": 1, "head_dim": 12}, None, (1, 12)),
    ],
    ids=["multi-query without k and v roles", "multi-head", "compressed keys", "one key-value head"],
)
def test_a_slot_has_the_heads_of_its_layer(
    model_type: str, facts: dict[str, Any], roles: dict[str, Any] | None, size: tuple[int, int]
) -> None:
    net = _net(model_type, **facts)
    inputs = {"input_ids": torch.randint(5, 260, (2, 9))}
    expected = evaluated_logits(net, inputs)
    backbone = wrap(net, None, roles)
    assert [s.size for s in backbone.sites.of("prefix")] == [size, size]
    edit = Edit(backbone)
    edit.swap("prefix", lambda slot: _Empty(slot, True))
    torch.testing.assert_close(evaluated_logits(net, inputs), expected, rtol=0, atol=1e-4)
    edit.undo()
    PrefixTuning(length=3).attach(edit)
    assert not torch.allclose(evaluated_logits(net, inputs), expected, atol=1e-4)
    edit.check_used()


def test_layers_of_one_network_may_have_different_heads() -> None:
    """As in networks that were pruned or searched for: each layer says its own."""
    net = _net("llama", **SIZES, num_key_value_heads=2, head_dim=8)
    second = net.model.layers[1].self_attn
    second.k_proj, second.v_proj = nn.Linear(32, 8, bias=False), nn.Linear(32, 8, bias=False)
    second.num_key_value_groups = 4
    inputs = {"input_ids": torch.randint(5, 260, (2, 9))}
    expected = evaluated_logits(net, inputs)
    backbone = wrap(net, None)
    assert [s.size for s in backbone.sites.of("prefix")] == [(2, 8), (1, 8)]
    method, edit = PrefixTuning(length=3), Edit(backbone)
    edit.swap("prefix", lambda slot: _Empty(slot, True))
    torch.testing.assert_close(evaluated_logits(net, inputs), expected, rtol=0, atol=1e-4)
    edit.undo()
    method.attach(edit)
    evaluated_logits(net, inputs)
    assert edit.counts()["trainable"] == method.parameters(backbone.sites) == 2 * 3 * 8 * (2 + 1)


def test_heads_with_keys_and_values_of_different_widths_are_refused_in_the_plan_and_on_attaching() -> None:
    backbone = wrap(_net("deepseek_v3", **SIZES, **DEEPSEEK, v_head_dim=16), None, COMPRESSED)
    method = PrefixTuning()
    why = r"no 'prefix' site: the keys of model.layers.0.self_attn have heads of width 8 and its values of 16"
    with pytest.raises(UserError, match=why):
        method.parameters(backbone.sites)
    with pytest.raises(UserError, match=why):
        method.attach(Edit(backbone))


def test_a_layer_that_the_roles_leave_out_attends_as_before() -> None:
    roles = {"q": "model.layers.*.self_attn.q_proj", "prefix": "model.layers.1.self_attn"}
    net = _net("llama", **SIZES, num_key_value_heads=2)
    inputs = {"input_ids": torch.randint(5, 260, (2, 9))}
    expected = evaluated_logits(net, inputs)
    backbone = wrap(net, None, roles)
    edit = Edit(backbone)
    edit.swap("prefix", lambda slot: _Empty(slot, True))
    torch.testing.assert_close(evaluated_logits(net, inputs), expected, rtol=0, atol=1e-5)
    edit.check_used()
