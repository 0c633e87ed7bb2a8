"""Prefix slots behind the attention interface: masks, caches, causality, and an independent reference."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import DECODERS as ALL_DECODERS
from architectures import WITH_PREFIX, Zoo, batch, complete, logits
from torch import Tensor, nn

from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.methods.prefix import PrefixTuning

DECODERS = [name for name in ALL_DECODERS if name in WITH_PREFIX]


@pytest.fixture
def prefixed(attached: Any) -> Any:
    """A function that attaches a prefix far from zero, and undoes it after the test."""
    return lambda name: attached(name, PrefixTuning(length=4, std=1.0))


@pytest.mark.parametrize("name", WITH_PREFIX)
def test_a_prefix_is_used_and_undone(zoo: Zoo, name: str) -> None:
    backbone, inputs = zoo[name].backbone, batch()
    before = logits(backbone.net.eval(), inputs)
    edit = Edit(backbone)
    PrefixTuning(length=4, std=1.0).attach(edit)
    with pytest.raises(UserError, match="never used"):  # nothing ran yet
        edit.check_used()
    changed = logits(backbone.net, inputs)
    edit.check_used()
    edit.undo()
    assert (changed - before).abs().max() > 1e-2
    assert torch.equal(logits(backbone.net, inputs), before)


@pytest.mark.parametrize("name", WITH_PREFIX)
def test_a_padded_row_equals_the_row_alone(prefixed: Any, name: str) -> None:
    backbone = prefixed(name)
    inputs = complete(backbone.net, batch((9, 5)))
    alone = {k: v[1:, :5] for k, v in inputs.items()}
    together = backbone.net(**inputs).logits[1:]
    expected = backbone.net(**alone).logits
    together = together[:, :5] if together.ndim == 3 else together
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_a_row_padded_on_the_left_equals_the_row_alone(prefixed: Any, name: str) -> None:
    backbone = prefixed(name)
    inputs = batch((9, 5), left=True)
    alone = {k: v[1:, 4:] for k, v in inputs.items()}
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)  # as generation numbers them
    together = backbone.net(**inputs, position_ids=places).logits[1:, 4:]
    torch.testing.assert_close(together, backbone.net(**alone).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("left", [False, True], ids=["one length", "padded on the left"])
@pytest.mark.parametrize("name", DECODERS)
def test_cached_generation_equals_uncached(prefixed: Any, name: str, left: bool) -> None:
    backbone = prefixed(name)
    inputs = batch((9, 5) if left else (7, 7), left=True)
    same = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, "eos_token_id": 4}
    found = [
        backbone.net.generate(**inputs, use_cache=cached, **same, output_logits=True, return_dict_in_generate=True)
        for cached in (True, False)
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    torch.testing.assert_close(torch.stack(found[0].logits), torch.stack(found[1].logits), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_a_future_token_changes_nothing(prefixed: Any, name: str) -> None:
    backbone = prefixed(name)
    inputs = batch((9, 9))
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, 6] += 1
    a, b = backbone.net(**inputs).logits, backbone.net(**other).logits
    torch.testing.assert_close(a[:, :6], b[:, :6], rtol=0, atol=1e-5)
    assert (a[:, 6:] - b[:, 6:]).abs().max() > 1e-3
    none = {"input_ids": inputs["input_ids"]}  # no padding mask at all
    torch.testing.assert_close(backbone.net(**none).logits, a, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama", "qwen3", "mistral", "gpt-neox", "opt-350m"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_prefix_attention_equals_softmax_over_concatenated_keys(
    prefixed: Any, name: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against attention written out in float64 with its own mask, from the queries, keys and values of every layer."""
    from peftbench.backbones import attention

    backbone = prefixed(name)
    inputs = batch((9, 5) if padded else (9, 9))
    calls: list[tuple[nn.Module, Tensor, Tensor, Tensor, float, Tensor]] = []

    def spy(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, scaling: float, **kwargs: Any) -> Any:
        out = attention.prefix_attention(module, q, k, v, *args, scaling=scaling, **kwargs)
        calls.append((module, q, k, v, scaling, out[0]))
        return out

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, spy)
    logits(backbone.net, inputs)
    assert len(calls) == len(backbone.sites.of("prefix"))
    for module, q, k, v, scaling, out in calls:
        slot = module.prefix_slot
        window = getattr(backbone.net.config, "sliding_window", None)
        expected = _reference(q, k, v, slot.K, slot.V, scaling, inputs["attention_mask"], name != "bert", window)
        kept = inputs["attention_mask"].bool()
        torch.testing.assert_close(out[kept].double(), expected.transpose(1, 2)[kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shown", ["all", "mask", "bias"])
@pytest.mark.parametrize("heads", [4, 2], ids=["each head its own", "grouped"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_prefix_attention_equals_torchs_own_with_the_same_draws(shown: str, heads: int, dropout: float) -> None:
    """Output and gradients in float64, with and without dropout: torch's, over the keys and values put together."""
    from peftbench.backbones.attention import prefix_attention

    torch.manual_seed(0)
    q, k, v, K, V = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in [(2, 4, 7, 6), (2, heads, 7, 6), (2, heads, 7, 6), (heads, 3, 6), (heads, 3, 6)]
    )
    mask = {"all": None, "mask": torch.ones(2, 1, 7, 7).tril().bool(), "bias": torch.randn(2, 1, 7, 7).double()}[shown]
    module = SimpleNamespace(prefix_slot=_Given((K, V)), is_causal=False)
    torch.manual_seed(1)
    mine, _ = prefix_attention(module, q, k, v, mask, dropout)
    keys, values = (
        torch.cat([P.expand(2, -1, -1, -1), t], dim=2).repeat_interleave(4 // heads, dim=1) for P, t in ((K, k), (V, v))
    )
    longer = None if mask is None else nn.functional.pad(mask, (3, 0), value=float(mask.dtype == torch.bool))
    torch.manual_seed(1)
    other = nn.functional.scaled_dot_product_attention(q, keys, values, longer, dropout).transpose(1, 2)
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(other)
    found, wanted = (torch.autograd.grad(t, (q, k, v, K, V), probe, retain_graph=True) for t in (mine, other))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


class _Given(nn.Module):
    """A slot with these very tensors."""

    def __init__(self, prefix: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.prefix


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    K: Tensor,
    V: Tensor,
    scaling: float,
    mask: Tensor,
    causal: bool,
    window: int | None,
) -> Tensor:
    """softmax(q [K; k]^T) [V; v], one row and head at a time."""
    q, k, v, K, V = (t.detach().double() for t in (q, k, v, K, V))
    out = torch.zeros_like(q)
    groups = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            kv = h // groups
            for i in range(q.shape[2]):
                seen = [
                    j
                    for j in range(k.shape[2])
                    if mask[b, j] and not (causal and j > i) and not (window is not None and i - j >= window)
                ]
                keys, values = torch.cat([K[kv], k[b, kv, seen]]), torch.cat([V[kv], v[b, kv, seen]])
                weights = [math.exp(float(keys[j] @ q[b, h, i]) * scaling) for j in range(len(keys))]
                out[b, h, i] = torch.tensor(weights, dtype=torch.float64) @ values / sum(weights)
    return out


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_an_empty_slot_computes_what_the_usual_attention_computes(zoo: Zoo, name: str) -> None:
    """A prefix of length zero, through the same function and mask."""
    backbone, inputs = zoo[name].backbone, batch()
    before = logits(backbone.net.eval(), inputs)
    edit = Edit(backbone)
    edit.swap("prefix", lambda slot: _Empty(slot))
    without = logits(backbone.net, inputs)
    edit.undo()
    torch.testing.assert_close(without, before, rtol=0, atol=1e-5)


class _Empty(nn.Module):
    def __init__(self, slot: Any) -> None:
        super().__init__()
        self.shape = (slot.heads, 0, slot.head_width)

    def forward(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.shape), torch.zeros(self.shape)


@pytest.mark.parametrize("name", ["deberta-v2", "deberta-v3"])
def test_a_prefix_on_deberta_is_refused_with_the_reason(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    edit = Edit(backbone)
    with pytest.raises(UserError, match=r"deberta-v2 network has no 'prefix' site: DeBERTa computes its disentangled"):
        PrefixTuning().attach(edit)
    with pytest.raises(UserError, match="another method or another backbone"):
        PrefixTuning().parameters(backbone.sites)
    edit.undo()
