"""The product of base and low-rank update in one, held to autograd on the formula it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from peftbench.backbones.modules import SiteLinear
from peftbench.measure.memory import LiveTensors
from peftbench.method.layers import lowrank
from peftbench.method.layers.nf4 import NF4Linear
from peftbench.methods.dora import DoRALinear
from peftbench.methods.lora import LoRALinear

IN, OUT, RANK, SCALE = 128, 192, 4, 2.0
LAYERS = [LoRALinear, DoRALinear]


def _layer(kind: type[LoRALinear], *, bias: bool = True, quantised: bool = False, dtype: Any = torch.float64) -> Any:
    """A layer some way into training: B is not zero, and a magnitude is not the norm."""
    torch.manual_seed(0)
    base: Any = SiteLinear.of(0.1 * torch.randn(OUT, IN), torch.randn(OUT) if bias else None).to(dtype)
    layer = kind(NF4Linear.from_dense(base) if quantised else base, RANK, SCALE * RANK).to(dtype)
    with torch.no_grad():
        layer.B.normal_(std=0.1)
        if isinstance(layer, DoRALinear):
            layer.m.mul_(torch.rand(OUT, dtype=dtype) + 0.5)
    return layer


def _both(layer: Any, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients, in one product and by the formula."""
    torch.manual_seed(1)
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert layer.can_fuse()
    found = []
    for plain in (False, True):
        if plain:
            layer.can_fuse = lambda: False
        y = layer(x)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        wanted = [x, *trained] if x.requires_grad else trained
        found.append([y.detach(), *torch.autograd.grad(y, wanted, dy)])
    return found[0], found[1]


@pytest.mark.parametrize("quantised", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("rows", [5, IN], ids=["few rows", "many rows"])  # fewer, or more, than the weight has columns
@pytest.mark.parametrize("kind", LAYERS)
def test_output_and_gradients_are_the_formulas_in_float64(
    kind: type[LoRALinear], rows: int, bias: bool, quantised: bool
) -> None:
    x = torch.randn(3, rows, IN, dtype=torch.float64, requires_grad=True)
    fused, plain = _both(_layer(kind, bias=bias, quantised=quantised), x)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_an_input_that_needs_no_gradient_and_one_that_is_a_view_are_served(kind: type[LoRALinear]) -> None:
    x = torch.randn(5, 3, IN, dtype=torch.float64).transpose(0, 1)
    fused, plain = _both(_layer(kind), x)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rows", [5, 2 * IN], ids=["few rows", "many rows"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_under_autocast_types_are_the_formulas_and_numbers_as_near_as_bfloat16_allows(
    kind: type[LoRALinear], weights: torch.dtype, rows: int
) -> None:
    layer = _layer(kind, dtype=torch.float32)
    layer.base.to(weights)
    x = torch.randn(rows, IN, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        fused, plain = _both(layer, x)
    assert fused[0].dtype == torch.bfloat16
    for a, b in zip(fused, plain, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("kind", LAYERS)
def test_backward_keeps_the_input_and_what_is_of_rank_r_and_no_weight(kind: type[LoRALinear]) -> None:
    layer, kept = _layer(kind), list[Tensor]()
    x = torch.randn(6, IN, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    own = {p.untyped_storage()._cdata for p in layer.parameters()}
    sizes = sorted(t.numel() for t in kept if t.untyped_storage()._cdata not in own)
    more = [OUT, 6 * OUT] if kind is DoRALinear else []  # the gain and the output itself
    assert sizes == sorted([6 * IN, 6 * RANK, *more])
    assert kind is LoRALinear or y.untyped_storage()._cdata in {t.untyped_storage()._cdata for t in kept}


def test_no_tensor_of_the_weights_size_is_made_for_the_norm() -> None:
    layer = _layer(DoRALinear, dtype=torch.float32)
    x = torch.randn(2, IN)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    with LiveTensors({"weights": [*layer.parameters(), *layer.buffers()]}, optimizer) as live:
        layer(x)
    at_peak = live.record()["at_peak"]
    assert at_peak["temporaries"] + at_peak["activations"] < layer.base.weight.nbytes / 2


def test_the_norm_of_a_bfloat16_weight_has_the_digits_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "CHUNK", 3 * IN)  # three rows at a time
    layer = _layer(DoRALinear, dtype=torch.float32)
    layer.base.to(torch.bfloat16)
    layer.to(torch.float32)
    layer.base.to(torch.bfloat16)
    norm = lowrank._norm(layer.base.weight, layer.A, layer.B, SCALE, layer.squares)
    torch.testing.assert_close(norm, layer.norm())


def test_a_row_of_zeros_and_a_magnitude_of_zero_give_numbers() -> None:
    """As in a pruned network; ||W|| is zero there, and so is the magnitude that starts as it."""
    base = _layer(LoRALinear).base
    with torch.no_grad():
        base.weight[0] = 0
    layer = DoRALinear(base, RANK, 1.0).double()
    x = torch.randn(4, IN, dtype=torch.float64)
    torch.testing.assert_close(layer(x), base(x), rtol=1e-5, atol=1e-5)  # m was made in float32
    with torch.no_grad():
        layer.B.normal_()
        layer.m[1] = 0
    grads = torch.autograd.grad(layer(torch.randn(4, IN, dtype=torch.float64)).sum(), [layer.A, layer.B, layer.m])
    assert all(g.isfinite().all() for g in grads)


def test_other_bases_other_updates_and_dropout_go_by_the_formula() -> None:
    class Doubled(LoRALinear):
        def update(self, x: Tensor) -> Tensor:
            return 2 * super().update(x)

    plain = _layer(LoRALinear)
    x = torch.randn(4, IN, dtype=torch.float64)
    change = plain(x) - plain.base(x)
    doubled = Doubled(plain.base, RANK, SCALE * RANK).double()
    doubled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(doubled(x) - doubled.base(x), 2 * change)
    assert not lowrank.fits(plain)  # an adapter on an adapter
    trained = _layer(LoRALinear)
    trained.base.weight.requires_grad_(True)
    trained(x).sum().backward()
    assert trained.base.weight.grad is not None
    dropping = _layer(LoRALinear)
    dropping.dropout = 0.5
    assert not dropping.can_fuse()
    assert dropping.eval().can_fuse()
    assert not lowrank.fits(NF4Linear.from_dense(plain.base, compute_dtype=torch.bfloat16))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    layer = _layer(LoRALinear)
    x = torch.randn(2, IN, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_the_base_layers_bias_is_added_once() -> None:
    layer = _layer(LoRALinear)
    x = torch.zeros(1, IN, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.base.weight, layer.base.bias))


@pytest.mark.parametrize("quantised", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("rows", [5, 4 * IN], ids=["few rows", "many rows"])
@pytest.mark.parametrize("fused", [True, False], ids=["one product", "the formula"])
@pytest.mark.parametrize("ratio", [0.0, 75.0])
def test_a_large_bias_leaves_the_magnitudes_gradient_in_bfloat16_what_it_is(
    ratio: float, fused: bool, rows: int, quantised: bool
) -> None:
    """Qwen2's keys have biases far larger than their products: y - b would be what bfloat16 has rounded y to."""
    layer = _layer(DoRALinear, dtype=torch.float32, quantised=quantised)
    x, dy = torch.randn(rows, IN), torch.randn(rows, OUT)
    W = layer.base.dense_weight().double()
    V = W + SCALE * (layer.B @ layer.A).double()
    deviation = float((x.double() @ W.T).std())
    with torch.no_grad():
        layer.base.bias.copy_(ratio * deviation * (1 + torch.rand(OUT)))
    if not fused:
        layer.can_fuse = lambda: False
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.backward(dy.to(y.dtype))
    product = x.double() @ V.T / V.norm(dim=1)
    exact = (dy.bfloat16().double() * product).sum(0)
    torch.testing.assert_close(y.double(), layer.m.double() * product + layer.base.bias.double(), rtol=2e-2, atol=0.1)
    found = layer.m.grad.double()
    assert float((found - exact.detach()).norm() / exact.detach().norm()) < 6e-3
