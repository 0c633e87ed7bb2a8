"""The fast forms of methods that train vectors, against their formulas written plainly, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from peftbench.backbones.modules import SiteLinear
from peftbench.method.layers import lowrank, vectors
from peftbench.method.layers.nf4 import NF4Linear
from peftbench.methods import adalora, ia3, vera

IN, OUT, RANK = 24, 16, 12


def base(dtype: torch.dtype = torch.float64, bias: bool = True) -> SiteLinear:
    layer = SiteLinear(IN, OUT, bias=bias).to(dtype)
    return layer.requires_grad_(False)


def drawn(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        torch.nn.init.normal_(p)
    return trained


def plain(module: torch.nn.Module, x: Tensor) -> Tensor:
    """The formulas in autograd's own operations."""
    W, b = module.base.weight, module.base.bias
    zero = torch.zeros(OUT, dtype=W.dtype) if b is None else b
    if isinstance(module, ia3.ScaledOutput):
        return module.l * (x @ W.T + zero)
    if isinstance(module, ia3.ScaledInput):
        return (module.l * x) @ W.T + zero
    if isinstance(module, vera.VeRALinear):
        return x @ W.T + zero + module.b * ((module.d * (x @ module.A.T)) @ module.B.T)
    assert isinstance(module, adalora.SVDLinear)
    return x @ W.T + zero + module.scale * (module.Lambda * (x @ module.Q.T)) @ module.P.T


def scaled_output(layer: SiteLinear) -> torch.nn.Module:
    return ia3.ScaledOutput(layer)


def scaled_input(layer: SiteLinear) -> torch.nn.Module:
    return ia3.ScaledInput(layer)


def vera_layer(layer: SiteLinear) -> torch.nn.Module:  # the shared pair is larger than this layer's part of it
    pair = vera.Projection(RANK, IN + 3, OUT + 5, 0, torch.device("cpu"))
    return vera.VeRALinear(layer, pair, 0.1)


def svd_layer(layer: SiteLinear) -> torch.nn.Module:
    return adalora.SVDLinear(layer, 3, 6.0)


KINDS = [scaled_output, scaled_input, vera_layer, svd_layer]
MANY, FEW = (4, 150), (3, 5)  # rows: with more than the weight has, and with fewer


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("rows", [MANY, FEW])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("input_trains", [True, False])
def test_output_and_gradients_are_those_of_the_plain_formula(
    make: Callable[[SiteLinear], torch.nn.Module], rows: tuple[int, int], bias: bool, input_trains: bool
) -> None:
    torch.manual_seed(0)
    module = make(base(bias=bias)).double()
    wanted = drawn(module)
    x = torch.randn(*rows, IN, dtype=torch.float64, requires_grad=input_trains)
    wanted = [*wanted, x] if input_trains else wanted
    probe = torch.randn(*rows, OUT, dtype=torch.float64)
    mine, other = module(x), plain(module, x)
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(mine, wanted, probe), torch.autograd.grad(other, wanted, probe), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("make", [scaled_output, scaled_input])
def test_a_vector_may_have_zeros(make: Callable[[SiteLinear], torch.nn.Module]) -> None:
    module = make(base()).double()
    module.l.data[::2] = 0
    x = torch.randn(*MANY, IN, dtype=torch.float64)
    (mine,) = torch.autograd.grad(module(x).sum(), [module.l])
    (other,) = torch.autograd.grad(plain(module, x).sum(), [module.l])
    torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_bfloat16_and_gradients_keep_their_dtypes(
    make: Callable[[SiteLinear], torch.nn.Module], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    module = make(base(torch.float32))
    trained = drawn(module)
    x = torch.randn(*MANY, IN, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    other = plain(module, x.float())
    torch.testing.assert_close(y.float(), other, rtol=0.05, atol=0.05 * float(other.detach().abs().max()))
    grads = torch.autograd.grad(y.float().square().sum(), [*trained, x])
    wanted = torch.autograd.grad(other.square().sum(), [*trained, x])
    for p, g, w in zip([*trained, x], grads, wanted, strict=True):
        assert g.dtype == p.dtype
        torch.testing.assert_close(g.float(), w.float(), rtol=0.1, atol=0.05 * float(w.abs().max()))


@pytest.mark.parametrize("make", KINDS)
def test_a_quantised_base_is_computed_with_as_it_is_stored(make: Callable[[SiteLinear], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    stored = NF4Linear.from_dense(base(torch.float32))
    dense = SiteLinear.of(stored.dense_weight(), stored.bias)
    ours, other = make(stored), make(dense)
    other.load_state_dict({n: p for n, p in ours.state_dict().items() if "base" not in n}, strict=False)
    x = torch.randn(*MANY, IN)
    torch.testing.assert_close(ours(x), other(x), rtol=0, atol=0)


def test_vera_goes_through_the_weight_only_where_that_is_shorter_and_exact() -> None:
    A, B = torch.empty(RANK, IN), torch.empty(OUT, RANK)
    assert vectors.pays(torch.empty(*MANY, IN), A, B)
    assert not vectors.pays(torch.empty(*FEW, IN), A, B)
    assert not vectors.pays(torch.empty(*MANY, IN), A[:2], B[:, :2])
    assert not vectors.pays(torch.empty(*MANY, IN, dtype=torch.bfloat16), A, B)


@pytest.mark.parametrize("rows", [1, lowrank.ROWS, 2 * lowrank.ROWS + 7])
def test_the_sum_over_rows_takes_every_row_once(rows: int) -> None:
    a, b = torch.randn(2, rows, 5, dtype=torch.float64).unbind(0)
    torch.testing.assert_close(lowrank.dot_rows(a, b, torch.float64), (a * b).sum(0), rtol=1e-12, atol=1e-12)


def test_the_orthogonality_of_all_layers_is_the_sum_of_each_ones() -> None:
    layers = [svd_layer(base()).double() for _ in range(3)]
    for layer in layers:
        drawn(layer)
    eye = torch.eye(3, dtype=torch.float64)
    wanted = sum((m.P.T @ m.P - eye).norm() ** 2 + (m.Q @ m.Q.T - eye).norm() ** 2 for m in layers)
    torch.testing.assert_close(adalora.orthogonality(layers), wanted)
