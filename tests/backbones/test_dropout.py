"""Dropout's masks on a CPU: rate, mean, independence, and that equal seeds give equal masks."""

from __future__ import annotations

import pytest
import torch
from architectures import Zoo, batch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from peftbench.backbones import attention, dropout, load
from peftbench.backbones.attention import OWN_DROPOUT, PREFIX_OWN_DROPOUT, sdpa_with_own_dropout
from peftbench.method import registry
from peftbench.method.edit import Edit

DRAWS = 10_000_000
SIGMAS = 5.0  # one false alarm in two million checks; the seeds are fixed


def kept(p: float, size: int = DRAWS, seed: int = 0) -> Tensor:
    """Return which of `size` elements stay, as 0 and 1."""
    torch.manual_seed(seed)
    return (dropout.dropout(torch.ones(size), p) != 0).double()


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.5, 0.9])
def test_ten_million_draws_have_the_probability_and_leave_the_mean(p: float) -> None:
    torch.manual_seed(1)
    y = dropout.dropout(torch.ones(DRAWS), p).double()
    error = (p * (1 - p) / DRAWS) ** 0.5
    assert float((y == 0).double().mean()) == pytest.approx(p, abs=SIGMAS * error + 1 / 2**17)
    assert float(y.mean()) == pytest.approx(1, abs=SIGMAS * error / (1 - p))
    assert set(y.unique().tolist()) <= {0.0, float(torch.tensor(2**16 / (2**16 - round(p * 2**16))))}


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 16, 64, 384, 4096])
def test_elements_are_independent_of_those_near_them_and_a_row_below(lag: int) -> None:
    mask = kept(0.1)
    assert abs(correlation(mask[:-lag], mask[lag:])) < SIGMAS / DRAWS**0.5


def test_the_four_elements_of_a_word_fall_into_their_sixteen_patterns_as_often_as_chance_says() -> None:
    mask = kept(0.1).view(-1, 4)
    seen = torch.bincount((mask @ torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)).long(), minlength=16)
    p = round(0.1 * 2**16) / 2**16
    ones = torch.tensor([bin(k).count("1") for k in range(16)])
    wanted = len(mask) * (1 - p) ** ones * p ** (4 - ones)
    assert float(((seen - wanted) ** 2 / wanted).sum()) < 15 + SIGMAS * 30**0.5  # chi-squared, 15 degrees of freedom


def test_calls_after_each_other_and_near_seeds_are_independent() -> None:
    torch.manual_seed(0)
    first, second = ((dropout.dropout(torch.ones(DRAWS), 0.1) != 0).double() for _ in range(2))
    for a, b in ((first, second), (first, kept(0.1, seed=1))):
        assert abs(correlation(a, b)) < SIGMAS / DRAWS**0.5


def test_the_gradient_has_the_mask_of_the_output() -> None:
    x = torch.randn(7, 33, dtype=torch.float64, requires_grad=True)
    y = dropout.dropout(x, 0.3)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    assert torch.equal(x.grad == 0, y == 0)
    torch.testing.assert_close(y, x.detach() * x.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 3, 4, 5)])
def test_any_shape_and_dtype_passes_and_keeps_them(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y = dropout.dropout(torch.ones(shape, dtype=dtype), 0.5)
    assert (y.shape, y.dtype) == (shape, dtype)


def test_strided_elements_are_dropped_like_others() -> None:
    torch.manual_seed(0)
    whole = dropout.dropout(torch.ones(40, 30), 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout.dropout(torch.ones(30, 40).t(), 0.5), whole)


@pytest.mark.parametrize(("p", "share"), [(0.0, 1.0), (1.0, 0.0), (1 - 1e-9, 2**-16)])
def test_the_ends_drop_nothing_and_nearly_everything_without_a_number_that_is_not_finite(
    p: float, share: float
) -> None:
    y = dropout.dropout(torch.ones(10**6), p)
    assert bool(y.isfinite().all())
    assert float((y != 0).double().mean()) == pytest.approx(share, abs=1e-4)


def test_a_call_takes_one_number_whatever_its_size_so_that_later_masks_stay() -> None:
    after = []
    for size in (10, 10_000):
        torch.manual_seed(3)
        dropout.dropout(torch.ones(size), 0.1)
        after.append(torch.rand(4))
    assert torch.equal(*after)


def test_a_module_drops_in_training_only_and_draws_nothing_in_evaluation() -> None:
    module = dropout.Dropout(0.5)
    before = torch.get_rng_state()
    x = torch.ones(100)
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(module.train()(x), x)


def test_gradient_checkpointing_repeats_the_masks() -> None:
    block = nn.Sequential(nn.Linear(16, 16), dropout.Dropout(0.3), nn.Linear(16, 16), dropout.Dropout(0.3))
    grads = []
    for run in (block, lambda x: checkpoint(block, x, use_reentrant=False)):
        torch.manual_seed(5)
        x = torch.ones(8, 16, requires_grad=True)
        run(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_backward_keeps_two_bytes_an_element() -> None:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dropout.dropout(torch.ones(100, 10, requires_grad=True), 0.1)
    assert [t.nbytes for t in saved] == [2 * 1000]


MASKS = {
    "no mask": None,
    "hidden": torch.rand(3, 1, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.8,
    "added": torch.randn(3, 1, 5, 6, generator=torch.Generator().manual_seed(0)),
}

# Without wide vectors the fused kernel is exact to some 1e-7 only, in float64 too.
FUSED = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("heads", [4, 2])
def test_attention_equals_torchs_where_the_masks_are_the_same(
    heads: int, mask: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients in float64 with every weight halved, which halves what torch's attention gives."""
    monkeypatch.setattr(dropout, "dropout", lambda x, p: 0.5 * x)
    draws = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5, 8), (3, heads, 6, 8), (3, heads, 6, 8))
    q, k, v = (torch.randn(s, generator=draws, dtype=torch.float64, requires_grad=True) for s in shapes)
    if mask is not None and mask.dtype == torch.bool:
        mask = mask | (torch.arange(6) == 0)  # each query sees a key
    given = mask if mask is None or mask.dtype == torch.bool else mask.double()
    mine, _ = sdpa_with_own_dropout(nn.Module(), q, k, v, given, dropout=0.5, is_causal=False)
    theirs = 0.5 * F.scaled_dot_product_attention(q, k, v, given, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(mine, theirs, **FUSED)
    weights = torch.randn(mine.shape, generator=draws, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((mine * weights).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **FUSED)


def test_a_query_that_sees_no_later_key_still_does_not_with_dropout() -> None:
    layer = nn.Module()
    q = torch.randn(1, 2, 4, 8)
    later = q.clone()
    later[:, :, 3] += 1
    torch.manual_seed(0)
    first, _ = sdpa_with_own_dropout(layer, q, q, q, None, dropout=0.2)  # transformers takes a layer as causal
    torch.manual_seed(0)
    second, _ = sdpa_with_own_dropout(layer, later, later, later, None, dropout=0.2)
    assert torch.equal(first[:, :3], second[:, :3])


def network(version: int, **more: object) -> load.Backbone:
    torch.manual_seed(0)
    return load.load("tiny-encoder", "classification", 2, dropout=0.1, dropout_version=version, **more)  # type: ignore[arg-type]


def gradient(backbone: load.Backbone, seed: int = 0) -> Tensor:
    """Return the gradient of the input embeddings after a step with the masks of `seed`."""
    weight = backbone.net.get_input_embeddings().weight.requires_grad_(True)
    weight.grad = None
    backbone.net.train()
    torch.manual_seed(seed)
    ids = torch.arange(5, 29).view(2, 12)
    backbone.net(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
    assert weight.grad is not None
    return weight.grad.clone()


def test_every_dropout_of_a_network_has_these_masks_and_its_attention_too() -> None:
    backbone = network(2)
    kinds = {type(m) for m in backbone.net.modules() if isinstance(m, nn.Dropout)}
    assert kinds == {dropout.Dropout}
    assert {c._attn_implementation for c in attention.configurations(backbone.net)} == {OWN_DROPOUT}
    first = network(1)
    assert not {type(m) for m in first.net.modules()} & {dropout.Dropout}
    assert {c._attn_implementation for c in attention.configurations(first.net)} == {"sdpa"}


def test_a_module_that_stands_in_two_places_is_replaced_in_both() -> None:
    shared = nn.Dropout(0.2)
    net = nn.ModuleDict({"first": shared, "second": nn.Sequential(shared)})
    dropout.replace(net)
    assert [type(m) for m in (net["first"], net["second"][0])] == [dropout.Dropout] * 2  # type: ignore[index]


def test_equal_seeds_give_equal_steps_and_other_seeds_other_ones() -> None:
    one, two = network(2), network(2)
    assert torch.equal(gradient(one), gradient(two))
    assert not torch.equal(gradient(one), gradient(two, seed=1))


def test_a_network_that_recomputes_its_activations_draws_the_same_masks() -> None:
    assert torch.equal(gradient(network(2)), gradient(network(2, gradient_checkpointing=True)))


def test_evaluation_is_the_same_with_every_version() -> None:
    ids = torch.arange(5, 29).view(2, 12)
    outputs = []
    for version in (1, 2):
        backbone = network(version)
        torch.manual_seed(0)
        backbone.reset_head()
        outputs.append(backbone.net.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
    assert torch.equal(*outputs)


def test_a_prefix_keeps_the_masks_of_the_network_and_gives_its_attention_back() -> None:
    backbone = network(2)
    edit = Edit(backbone)
    registry.make(registry.find("prefix"), {"length": 2}).attach(edit)
    assert backbone.net.config._attn_implementation == PREFIX_OWN_DROPOUT
    assert bool(gradient(backbone).isfinite().all())
    edit.undo()
    assert backbone.net.config._attn_implementation == OWN_DROPOUT


def test_attention_that_does_not_call_the_interface_keeps_torchs_masks(zoo: Zoo) -> None:
    """Falcon's own attention knows `sdpa` by name, and would compute without a mask under another."""
    backbone = zoo["falcon"].load(dropout=0.1, dropout_version=2)
    assert backbone.net.config._attn_implementation == "sdpa"
    backbone.net.train()
    assert bool(backbone.net(**batch()).logits.isfinite().all())
