"""The counter of floating-point operations: every figure against a count by hand, and nothing changed by it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from methods.lora import LoRALinear
from peftbench.backbones.modules import SiteLinear
from peftbench.measure.flops import FlopCounter
from peftbench.measure.memory import LiveTensors

ROWS, IN, OUT, RANK = 5, 7, 3, 2
LINEAR = 2 * ROWS * IN * OUT  # a product of the linear layer below, whichever of its three


def counted(run: Callable[[], Any]) -> int:
    with FlopCounter() as flops:
        run()
    return flops.total


def stepped(loss: Callable[[], Tensor]) -> tuple[int, int]:
    """Operations of forward and of backward."""
    with FlopCounter() as flops:
        value = loss()
        flops.phase("backward")
        value.backward()
    assert flops.by_phase["optimizer"] == 0
    return flops.by_phase["forward"], flops.by_phase["backward"]


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_takes_one_product_forward_and_one_for_each_gradient(bias: bool) -> None:
    layer, x = nn.Linear(IN, OUT, bias), torch.randn(ROWS, IN)
    assert stepped(lambda: layer(x).sum()) == (LINEAR, LINEAR), "the input needs no gradient"
    x.requires_grad_()
    assert stepped(lambda: layer(x).sum()) == (LINEAR, 2 * LINEAR)
    layer.requires_grad_(False)
    assert stepped(lambda: layer(x).sum()) == (LINEAR, LINEAR), "a frozen layer has no gradient of its weight"


def test_a_lora_layer_computes_no_gradient_of_its_frozen_base() -> None:
    layer = LoRALinear(SiteLinear.of(torch.randn(OUT, IN), None), RANK, 4.0)
    layer.base.requires_grad_(False)
    x = torch.randn(ROWS, IN, requires_grad=True)
    down, up = 2 * ROWS * IN * RANK, 2 * ROWS * RANK * OUT
    assert stepped(lambda: layer(x).sum()) == (LINEAR + down + up, LINEAR + 2 * down + 2 * up)


def _attention_inputs(length: int = 6, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    shape = (2, 3, length, width)
    return tuple(torch.randn(shape, requires_grad=True) for _ in range(3))  # type: ignore[return-value]


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_takes_two_products_forward_and_five_backward(causal: bool) -> None:
    q, k, v = _attention_inputs()
    product = 2 * 2 * 3 * 6 * 6 * 4
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        forward, backward = stepped(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal).sum())
    assert (forward, backward) == (2 * product, 5 * product)


def test_plain_attention_takes_two_products_forward_and_four_backward() -> None:
    q, k, v = _attention_inputs()
    product = 2 * 2 * 3 * 6 * 6 * 4
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert stepped(lambda: F.scaled_dot_product_attention(q, k, v).sum()) == (2 * product, 4 * product)


def test_grouped_keys_count_once_for_every_query_head() -> None:
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    assert counted(lambda: F.scaled_dot_product_attention(q, k, k, enable_gqa=True)) == 2 * (2 * 2 * 4 * 6 * 6 * 8)


A, B, C, V = torch.randn(4, 6), torch.randn(6, 5), torch.randn(4, 5), torch.randn(6)
A3, B3, C3 = torch.randn(2, 4, 6), torch.randn(2, 6, 5), torch.randn(2, 4, 5)
R, E, OFFSETS = torch.randn(32, 16), torch.randn(2, 16, 8), torch.tensor([16, 32], dtype=torch.int32)
PRODUCTS: dict[str, tuple[Callable[[], Any], int]] = {
    "mm": (lambda: A @ B, 2 * 4 * 6 * 5),
    "mm into": (lambda: torch.mm(A, B, out=torch.empty(4, 5)), 2 * 4 * 6 * 5),
    "addmm": (lambda: torch.addmm(C, A, B, beta=0.5), 2 * 4 * 6 * 5),
    "addmm in place": (lambda: C.clone().addmm_(A, B), 2 * 4 * 6 * 5),
    "addmm into": (lambda: torch.addmm(C, A, B, out=torch.empty(4, 5)), 2 * 4 * 6 * 5),
    "bmm": (lambda: A3 @ B3, 2 * 2 * 4 * 6 * 5),
    "bmm into": (lambda: torch.bmm(A3, B3, out=torch.empty(2, 4, 5)), 2 * 2 * 4 * 6 * 5),
    "baddbmm": (lambda: torch.baddbmm(C3, A3, B3), 2 * 2 * 4 * 6 * 5),
    "baddbmm in place": (lambda: C3.clone().baddbmm_(A3, B3), 2 * 2 * 4 * 6 * 5),
    "addbmm": (lambda: torch.addbmm(C, A3, B3), 2 * 2 * 4 * 6 * 5),
    "matrix and vector": (lambda: A @ V, 2 * 4 * 6),
    "addmv": (lambda: torch.addmv(torch.zeros(4), A, V), 2 * 4 * 6),
    "dot": (lambda: V @ V, 2 * 6),
    "experts of rows": (lambda: F.grouped_mm(R, E, offs=OFFSETS), 2 * 32 * 16 * 8),
    "experts of columns": (lambda: F.grouped_mm(E.mT, R.mT.contiguous(), offs=OFFSETS), 2 * 8 * 16 * 32),
    "einsum": (lambda: torch.einsum("bmk,bkn->bmn", A3, B3), 2 * 2 * 4 * 6 * 5),
    "elementwise": (lambda: (A * A + A).exp().sum(), 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_every_way_to_write_a_product_counts_the_same(name: str, inference: bool) -> None:
    run, expected = PRODUCTS[name]
    with torch.inference_mode(inference):
        assert counted(run) == expected


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_counts_in_inference_and_in_bfloat16_and_under_autocast(bias: bool) -> None:
    layer, x = nn.Linear(IN, OUT, bias), torch.randn(2, ROWS, IN)
    with torch.inference_mode():
        assert counted(lambda: layer(x)) == 2 * LINEAR
    with torch.autocast("cpu", torch.bfloat16):
        assert counted(lambda: layer(x)) == 2 * LINEAR
    assert counted(lambda: layer.bfloat16()(x.bfloat16())) == 2 * LINEAR


class _Squared(torch.autograd.Function):
    """x W with products of its own in forward and backward, one of them in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return torch.zeros(x.shape[0], w.shape[1]).addmm_(x, w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grads[0] @ w.t(), x.t() @ grads[0]


def test_it_sees_inside_a_custom_autograd_function() -> None:
    x, w = torch.randn(ROWS, IN, requires_grad=True), torch.randn(IN, OUT, requires_grad=True)
    assert stepped(lambda: _Squared.apply(x, w).sum()) == (LINEAR, 2 * LINEAR)


def test_what_checkpointing_computes_again_counts_again() -> None:
    from torch.utils.checkpoint import checkpoint

    layer, x = nn.Linear(IN, OUT), torch.randn(ROWS, IN, requires_grad=True)
    assert stepped(lambda: checkpoint(lambda y: layer(y).exp(), x, use_reentrant=False).sum())[1] == 3 * LINEAR


def test_phases_alternate_and_an_unknown_one_is_refused() -> None:
    with FlopCounter() as flops:
        for _ in range(2):
            for name in ("forward", "backward", "optimizer"):
                flops.phase(name)
                _ = A @ B
        with pytest.raises(ValueError, match="unknown phase 'later'; the phases are forward, backward, optimizer"):
            flops.phase("later")
    assert flops.by_phase == dict.fromkeys(("forward", "backward", "optimizer"), 2 * 2 * 4 * 6 * 5)
    assert flops.total == 6 * 2 * 4 * 6 * 5


BATCH, LENGTH, LAYERS, WIDTH, FFN, LABELS = 4, 16, 2, 32, 64, 3
BODY = 2 * LAYERS * (4 * WIDTH * WIDTH + 2 * WIDTH * FFN) * BATCH * LENGTH  # 2 N tokens
HEAD = 2 * BATCH * (WIDTH * WIDTH + WIDTH * LABELS)  # pooler and classifier see one token of each text
SCORES = LAYERS * 2 * BATCH * LENGTH * LENGTH * WIDTH  # one product of attention, all heads together


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=FFN,
        attention_probs_dropout_prob=0.0,  # the CPU's fused kernel has no dropout
    )
    config.num_labels = LABELS
    return BertForSequenceClassification(config).train()


def _loss(net: nn.Module, device: str = "cpu") -> Tensor:
    ids = torch.ones(BATCH, LENGTH, dtype=torch.long)
    return net(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids[:, 0]).loss


def test_bert_takes_6_n_tokens_and_the_products_of_attention() -> None:
    assert stepped(lambda: _loss(_bert())) == (BODY + HEAD + 2 * SCORES, 2 * (BODY + HEAD) + 5 * SCORES)


def test_a_step_of_fake_tensors_counts_as_the_real_one_does() -> None:
    with FakeTensorMode():
        assert stepped(lambda: _loss(_bert())) == (BODY + HEAD + 2 * SCORES, 2 * (BODY + HEAD) + 5 * SCORES)


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, *phased: Any) -> Tensor:
    def phase(name: str) -> None:
        for one in phased:
            one.phase(name)

    loss = _loss(net)
    phase("backward")
    loss.backward()
    phase("optimizer")
    optimizer.step()
    return loss.detach()


def _tracked(order: str) -> tuple[dict[str, Any] | None, dict[str, int] | None, float]:
    net = _bert()
    optimizer = torch.optim.AdamW(net.parameters())
    live = LiveTensors({"weights": [*net.parameters(), *net.buffers()], "adapter": [], "head": []}, optimizer)
    flops = FlopCounter()
    named: dict[str, Any] = {"l": live, "f": flops}
    modes = [named[letter] for letter in order]
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        loss = _step(net, optimizer, *modes)
    record = {k: live.record()[k] for k in ("peak_bytes", "at_peak", "peak_phase")} if "l" in order else None
    return record, flops.by_phase if "f" in order else None, float(loss)


@pytest.mark.parametrize("order", ["lf", "fl"])
def test_beside_the_memory_tracker_both_tell_what_they_tell_alone(order: str) -> None:
    memory, flops, loss = _tracked(order)
    assert memory == _tracked("l")[0]
    assert flops == _tracked("f")[1]
    assert loss == _tracked("")[2]
