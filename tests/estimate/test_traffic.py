"""The kernels of a step and the bytes that they move, against small networks counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peftbench.estimate.card.traffic import KernelCounter, Moves, Product, Traffic, at_full_depth, touched_bytes
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.step_estimate import Setting, estimate


def _counted(run: Callable[[], Any]) -> Traffic:
    with KernelCounter() as kernels:
        run()
    return kernels.traffic


def test_a_product_reads_its_operands_and_writes_its_result() -> None:
    a, b = torch.zeros(3, 4), torch.zeros(4, 5)
    counted = _counted(lambda: a @ b)
    assert counted.products == (Product("forward", "float32", 2 * 3 * 4 * 5, 4 * (12 + 20 + 15), 1),)
    assert counted.kernels == 1
    assert counted.others == ()


def test_a_linear_layers_step_by_hand() -> None:
    layer = nn.Linear(4, 5, bias=False, dtype=torch.bfloat16)
    x = torch.zeros(3, 4, dtype=torch.bfloat16)
    with KernelCounter() as kernels:
        y = layer(x)
        kernels.phase("backward")
        y.backward(torch.zeros_like(y))
    forward, backward = kernels.traffic.products
    assert forward == Product("forward", "bfloat16", 120, 2 * (12 + 20 + 15), 1)
    assert backward == Product("backward", "bfloat16", 120, 2 * (12 + 20 + 15), 1)  # x needs no gradient
    assert kernels.traffic.others == (Moves("backward", 2 * 15, 1),)  # zeros_like


@pytest.mark.parametrize(
    ("run", "kernels", "moved"),
    [
        (lambda x: x.view(6).t().unsqueeze(0).expand(7, 6), 0, 0),
        (lambda x: x + x, 1, 4 * 18),
        (lambda x: x.add_(1.0), 1, 4 * 12),
        (lambda x: x + torch.empty(3), 1, 4 * (6 + 3 + 6)),
        (lambda x: x.to(torch.bfloat16), 1, 4 * 6 + 2 * 6),
        (lambda x: x.zero_(), 1, 4 * 6),
        (lambda x: x.copy_(torch.empty(2, 3)), 1, 4 * 12),
        (lambda x: x * torch.empty(1, 3).expand(2, 3), 1, 4 * (6 + 3 + 6)),
        (lambda x: x.sum(), 1, 4 * 7),
        (lambda x: torch.add(x, x, out=torch.empty(2, 3)), 1, 4 * 18),
        (lambda x: torch._foreach_mul_([x, x.clone()], 2.0), 2, 4 * 12 + 4 * 24),
    ],
)
def test_other_kernels_by_hand(run: Callable[[torch.Tensor], Any], kernels: int, moved: int) -> None:
    x = torch.zeros(2, 3)
    counted = _counted(lambda: run(x))
    assert (counted.kernels, counted.bytes) == (kernels, moved)


def test_a_lookup_reads_what_it_returns() -> None:
    table, ids = torch.zeros(1000, 8), torch.tensor([1, 2])
    assert _counted(lambda: F.embedding(ids, table)).bytes == 2 * (2 * 8 * 4) + 2 * 8


def test_a_repeated_dimension_counts_once() -> None:
    assert touched_bytes(torch.zeros(3, 1).expand(3, 100)) == 12
    assert touched_bytes(torch.zeros(4, 4)[::2]) == 32


def test_a_fused_optimiser_is_one_kernel_for_each_group() -> None:
    p = [nn.Parameter(torch.zeros(10)) for _ in range(3)]
    optimizer = torch.optim.AdamW(p, lr=1e-3, fused=True)
    for one in p:
        one.grad = torch.zeros(10)
    optimizer.step()
    with KernelCounter() as kernels:
        kernels.phase("optimizer")
        optimizer.step()
    steps = 3 * 4
    assert [k.count for k in kernels.traffic.others] == [1, 1]  # the numbers of steps, and all weights
    # weights and moments are read and written, gradients read
    assert kernels.traffic.moved("optimizer") == 2 * steps + (steps + 3 * 10 * 4 * 7)


def test_fused_attention_is_one_kernel() -> None:
    q = torch.zeros(1, 2, 8, 4)
    counted = _counted(lambda: F.scaled_dot_product_attention(q, q, q))
    assert counted.kernels == 1
    assert counted.flops == 2 * 2 * 2 * 8 * 8 * 4


def test_causal_attention_computes_half() -> None:
    q = torch.zeros(1, 2, 8, 4)
    whole, half = (_counted(lambda c=c: F.scaled_dot_product_attention(q, q, q, is_causal=c)) for c in (False, True))
    assert 2 * half.flops == whole.flops
    assert half.bytes == whole.bytes


def test_kernels_inside_a_checkpointed_layer_count_twice() -> None:
    plain, again = (
        estimate(ModelQuery("tiny-decoder"), "lora", {}, Setting(2, 16, checkpointing=how)).traffic
        for how in (False, True)
    )
    assert plain is not None
    assert again is not None
    assert again.flops > plain.flops
    assert again.kernels > plain.kernels


def test_the_operations_of_the_products_are_those_of_the_estimate() -> None:
    for method in ("full", "lora", "prefix"):
        found = estimate(ModelQuery("tiny-decoder"), method, {}, Setting(2, 16))
        assert found.traffic is not None
        assert found.traffic.flops == found.flops


def test_a_deep_networks_kernels_are_told_from_shallow_ones() -> None:
    query, setting = ModelQuery("smollm2-135m"), Setting(2, 8)
    told = estimate(query, "lora", {}, setting).traffic
    every = estimate(query, "lora", {}, Setting(2, 8, every_layer=True)).traffic
    assert told is not None
    assert every is not None
    assert (told.flops, told.bytes, told.kernels) == (every.flops, every.bytes, every.kernels)
    assert set(told.products) == set(every.products)
    assert {(k.phase, k.bytes, k.count) for k in told.others} == {(k.phase, k.bytes, k.count) for k in every.others}


def test_a_product_as_wide_as_the_network_is_deep_is_extrapolated_as_a_sum() -> None:
    def of(layers: int) -> Traffic:
        wide = Product("forward", "float32", 10 * layers, 4 * layers, 1)
        return Traffic((Product("forward", "float32", 6, 2, 2 * layers), wide), (Moves("forward", layers, 1),), {}, {})

    whole = at_full_depth([of(3), of(4), of(5)], 7)
    assert whole is not None
    assert whole.flops == of(10).flops
    assert whole.bytes == of(10).bytes
    assert whole.others == (Moves("forward", 10, 1),)


def test_kernels_that_are_not_affine_in_the_depth_are_unknown() -> None:
    of = [Traffic((), (Moves("forward", n * n * n, n * n),), {}, {}) for n in (3, 4, 5)]
    assert at_full_depth(of, 7) is None


def test_shards_are_transferred() -> None:
    alone = estimate(ModelQuery("tiny-decoder"), "lora", {}, Setting(2, 16)).traffic
    shared = estimate(ModelQuery("tiny-decoder"), "lora", {}, Setting(2, 16, shards=2)).traffic
    assert alone is not None
    assert shared is not None
    assert sum(alone.sent.values()) == 0
    assert shared.sent["forward"] > 0
    assert shared.sent["backward"] > 0


def test_the_eight_bit_optimiser_moves_its_moments() -> None:
    moved = {
        name: estimate(ModelQuery("tiny-decoder"), "full", {}, Setting(1, 8, optimizer=name)).traffic
        for name in ("adamw", "adamw8bit")
    }
    at = {name: found.moved("optimizer") for name, found in moved.items() if found is not None}
    assert 0 < at["adamw8bit"] < at["adamw"]
