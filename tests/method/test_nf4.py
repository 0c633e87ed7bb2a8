"""NF4 against bitsandbytes on the CPU, bit for bit, and the 4-bit linear layer against the dense one."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from peftbench.errors import UserError
from peftbench.method.layers import nf4, nf4_quantization


@pytest.fixture
def oracle() -> Iterator[Any]:
    """bitsandbytes without a compiler, which it would run anew for most shapes, a second each."""
    functional = pytest.importorskip("bitsandbytes").functional
    with torch.compiler.set_stance("force_eager"):
        yield functional


def _values(oracle: Any, packed: Tensor, state: Any, shape: torch.Size) -> Tensor:
    """bitsandbytes' dequantised values; as one row, since its AVX512 kernel is wrong where blocks straddle rows."""
    state.shape = torch.Size([shape.numel()])
    return oracle.dequantize_4bit(packed, state).reshape(shape)


def _one_outlier() -> Tensor:
    values = torch.randn(96, 64, generator=torch.Generator().manual_seed(3)) * 0.02
    values[5, 7] = 1e4
    return values


def _ties() -> Tensor:
    """Every midpoint of the table, in blocks whose absmax is 1: each value is halfway between two codes."""
    table = nf4.code_table()
    return torch.cat([(table[:-1] + table[1:]) / 2, table, torch.ones(33)]).repeat(4)


def _near_ties(scale: float, count: int) -> Tensor:
    """Midpoints times a scale that they do not survive: the last bit of the division decides the code."""
    table = nf4.code_table()
    row = torch.cat([(table[:-1] + table[1:]) / 2 * scale, torch.tensor([scale])])
    return row.repeat(count)


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.05


CASES = {
    "a matrix": _randn(384, 384),
    "more than one statistics block": _randn(64, 64 * 257),
    "a short last block": _randn(64, 65),
    "an odd count": _randn(33, 33),
    "less than a block": _randn(7),
    "one value": torch.tensor([[-0.3]]),
    "zeros": torch.zeros(3, 100),
    "a zero block among others": torch.cat([_randn(64), torch.zeros(64), _randn(64)]),
    "constants": torch.full((5, 77), 0.7),
    "negative constants": torch.full((64,), -2.5),
    "one outlier": _one_outlier(),
    "ties": _ties(),
    "near ties in full blocks": torch.cat([_near_ties(scale, 4) for scale in (0.3, 0.7, 1.1, 1.9, 2.3)]),
    **{f"near ties in a short block of scale {scale}": _near_ties(scale, 3) for scale in (0.3, 0.7, 1.1, 1.9, 2.3)},
    "values below the floor": _randn(128) * 1e-38,
    "huge values": _randn(65) * 1e38,
    "three dimensions": _randn(3, 5, 64),
    "a transposed view": _randn(48, 80).t(),
}


def test_the_code_table_is_the_published_one_to_the_last_bit(oracle: Any) -> None:
    assert torch.equal(nf4.code_table(), oracle.get_4bit_type("nf4", device="cpu"))
    assert nf4.code_table()[7] == 0
    assert (nf4.code_table() < 0).sum() == 7


def test_the_dynamic_table_is_that_of_bitsandbytes_to_the_last_bit_but_one(oracle: Any) -> None:
    """Its own last bit depends on the processor's vector width; a difference of two would be another formula."""
    ours, theirs = nf4.dynamic_table().view(torch.int32), oracle.create_dynamic_map().view(torch.int32)
    assert (ours - theirs).abs().max() <= 1
    assert len(nf4.dynamic_table().unique()) == 256


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_codes_absmax_and_values_equal_bitsandbytes(oracle: Any, case: str, dtype: torch.dtype) -> None:
    weight = CASES[case].to(dtype)
    if not weight.isfinite().all():
        pytest.skip("beyond this type's range")
    packed, state = oracle.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
    ours = nf4.quantize(weight, double=False)
    assert torch.equal(ours.codes, packed.view(-1))
    # A short last block of zeros: bitsandbytes keeps 1e-38 as its absmax; ours is 0, as in a full block of zeros.
    theirs = torch.where(state.absmax == 1e-38, 0.0, state.absmax)
    assert torch.equal(ours.absmax, theirs)
    reference = _values(oracle, packed, state, weight.shape)
    values = nf4.dequantize(ours)
    assert values.dtype == dtype
    if dtype == torch.bfloat16:  # its bfloat16 conversion gives zero for subnormal numbers
        values, reference = (v.where(v.abs() >= torch.finfo(dtype).tiny, 0) for v in (values, reference))
    assert torch.equal(values, reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_tensors_of_any_size_scale_and_tail_equal_bitsandbytes(oracle: Any, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    rows, columns = (int(n) for n in torch.randint(1, 200, (2,), generator=draws))
    weight = torch.randn(rows, columns, generator=draws) * 10.0 ** float(torch.randint(-6, 5, (1,), generator=draws))
    if seed % 3 == 1:  # heavy tails: most values share the codes around zero
        weight = weight * torch.randn(rows, columns, generator=draws).abs() ** 4
    if seed % 3 == 2:  # few distinct values: many ties
        weight = (weight / weight.abs().max() * 8).round()
    weight = weight.to((torch.float32, torch.bfloat16)[seed % 2])
    packed, state = oracle.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    ours = nf4.quantize(weight, double=False)
    assert torch.equal(ours.codes, packed.view(-1))
    assert torch.equal(ours.absmax, torch.where(state.absmax == 1e-38, 0.0, state.absmax))
    assert torch.equal(nf4.dequantize(ours), _values(oracle, packed, state, weight.shape))


@pytest.mark.parametrize("block", [32, 128, 4096])
def test_other_block_sizes_equal_bitsandbytes(oracle: Any, block: int) -> None:
    weight = _randn(100, 67)
    packed, state = oracle.quantize_4bit(weight, blocksize=block, quant_type="nf4")
    ours = nf4.quantize(weight, block=block, double=False)
    assert torch.equal(ours.codes, packed.view(-1))
    assert torch.equal(ours.absmax, state.absmax)


@pytest.mark.parametrize("case", CASES)
def test_double_quantisation_equals_bitsandbytes_but_where_its_grid_misses_the_nearest_byte(
    oracle: Any, case: str
) -> None:
    """On the CPU bitsandbytes rounds absmax to a grid of 65,536 steps first: closer than half a step to a midpoint it
    may take the next byte. Elsewhere the bytes are equal, and with equal bytes the dequantised values are too."""
    weight = CASES[case].contiguous()
    single, ours = nf4.quantize(weight, double=False), nf4.quantize(weight)
    table = nf4.dynamic_table()
    theirs, second = oracle.quantize_blockwise(single.absmax - single.absmax.mean(), code=table, blocksize=256)
    assert torch.equal(ours.scales, second.absmax)
    assert torch.equal(ours.offset, single.absmax.mean())
    spread = ours.scales.repeat_interleave(256)[: len(theirs)]
    scaled = torch.where(spread > 0, (single.absmax - ours.offset) / spread.clamp(min=1e-38), 0.0)
    nearest = (scaled[:, None] - table).abs().argmin(1).to(torch.uint8)
    middle = (table[:-1] + table[1:]) / 2
    near_a_midpoint = (scaled[:, None] - middle).abs().amin(1) <= 1.01 / 65535
    assert torch.equal(ours.absmax[~near_a_midpoint], nearest[~near_a_midpoint])
    decided = ~near_a_midpoint & (spread >= 1e-38)  # below, ours keeps absmax / 1e-38, theirs overflows
    assert torch.equal(theirs[decided], ours.absmax[decided])
    same = nf4.Quantized(ours.codes, theirs, ours.scales, ours.offset, ours.shape, ours.dtype)
    packed, state = oracle.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    state.absmax, state.offset, state.state2, state.nested = theirs, ours.offset, second, True
    assert torch.equal(nf4.dequantize(same), _values(oracle, packed, state, weight.shape))


def test_large_tensors_are_worked_on_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = _randn(37, 531)
    whole = nf4.quantize(weight)
    expected = nf4.dequantize(whole, torch.bfloat16)
    monkeypatch.setattr(nf4_quantization, "_CHUNK", 1000)
    parts = nf4.quantize(weight)
    assert torch.equal(parts.codes, whole.codes)
    assert torch.equal(parts.absmax, whole.absmax)
    assert torch.equal(nf4.dequantize(parts, torch.bfloat16), expected)


@pytest.mark.parametrize(("count", "double", "expected"), [(4096, True, 2048 + 64 + 4 + 4), (4096, False, 2048 + 256),
                                                           (65, True, 33 + 2 + 4 + 4), (1, False, 1 + 4)])  # fmt: skip
def test_stored_bytes_are_as_counted_by_hand(count: int, double: bool, expected: int) -> None:
    assert nf4.stored_bytes(count, double=double) == expected
    assert nf4.quantize(torch.ones(count), double=double).nbytes == expected


def test_a_large_layer_takes_the_papers_4_127_bits_a_weight() -> None:
    assert nf4.stored_bytes(4096 * 4096) * 8 / 4096**2 == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-5)


@pytest.mark.parametrize("place", ["meta", "fake"])
def test_shapes_are_counted_without_memory(place: str) -> None:
    if place == "meta":
        layer = nf4.NF4Linear.from_dense(nn.Linear(100, 65, device="meta"))
        out = layer(torch.empty(2, 100, device="meta"))
    else:
        with FakeTensorMode():
            layer = nf4.NF4Linear.from_dense(nn.Linear(100, 65))
            x = torch.empty(2, 100, requires_grad=True)
            out = layer(x)
            out.sum().backward()
            assert x.grad is not None
            assert x.grad.shape == x.shape
    assert out.shape == (2, 65)
    assert layer.quantized.nbytes == nf4.stored_bytes(6500)
    assert layer.dense_weight().shape == (65, 100)


@pytest.mark.parametrize(
    ("weight", "block", "message"),
    [
        (torch.ones(4, dtype=torch.int32), 64, "floating-point"),
        (torch.ones(0), 64, "at least one value"),
        (torch.ones(4), 63, "positive even"),
        (torch.tensor([1.0, float("nan")]), 64, "not a number"),
    ],
)
def test_a_weight_that_cannot_be_quantised_is_refused(weight: Tensor, block: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        nf4.quantize(weight, block)


# The layer


def _pair(bias: bool = True, **options: Any) -> tuple[nf4.NF4Linear, nn.Linear]:
    """A 4-bit layer, and the dense layer on its dequantised weight."""
    torch.manual_seed(0)
    dense = nn.Linear(128, 50, bias=bias).requires_grad_(False)
    layer = nf4.NF4Linear.from_dense(dense, **options)
    exact = nn.Linear(128, 50, bias=bias).requires_grad_(False)
    exact.weight.copy_(layer.dense_weight())
    if bias:
        exact.bias.copy_(dense.bias)
    return layer, exact


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_equals_a_dense_layer_on_the_dequantised_weight_in_float64(bias: bool) -> None:
    layer, exact = _pair(bias)
    exact.double()
    layer.double().requires_grad_(True)
    x = torch.randn(4, 7, 128, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    assert torch.equal(out, exact(x))
    upstream = torch.randn_like(out)
    ours = torch.autograd.grad(out, [x, *layer.parameters()], upstream)
    exact.requires_grad_(True)
    theirs = torch.autograd.grad(exact(x), [x] + ([exact.bias] if bias else []), upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_gradient_passes_the_numerical_check_twice() -> None:
    layer = nf4.NF4Linear.from_dense(nn.Linear(6, 5)).requires_grad_(False)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_no_dense_weight_is_kept_for_backward() -> None:
    layer, _ = _pair()
    saved: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(torch.randn(2, 128, requires_grad=True))
    held = {t.untyped_storage().data_ptr() for t in layer.buffers()}
    assert saved
    assert all(t.untyped_storage().data_ptr() in held for t in saved)


@pytest.mark.parametrize("backend", nf4.BACKENDS)
@pytest.mark.parametrize("double", [True, False])
def test_both_backends_compute_the_same(oracle: Any, backend: str, double: bool) -> None:
    layer, exact = _pair(backend=backend, double=double)
    assert layer.stored_bytes == nf4.stored_bytes(128 * 50, double=double) + 50 * 4
    x = torch.randn(8, 128, requires_grad=True)
    (ours,) = torch.autograd.grad(layer(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(exact(x).square().sum(), x)
    torch.testing.assert_close(layer(x), exact(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), exact(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", nf4.BACKENDS)
def test_under_autocast_results_have_the_autocast_dtype_like_a_dense_layer(oracle: Any, backend: str) -> None:
    layer, exact = _pair(backend=backend, compute_dtype=torch.float32)
    x = torch.randn(8, 128, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = layer(x), exact(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)
    a, b = (torch.autograd.grad(out.float().sum(), x)[0] for out in (ours, theirs))
    assert a.dtype == b.dtype == torch.float32
    torch.testing.assert_close(a, b, rtol=0, atol=0.02)


def test_a_compute_dtype_is_used_inside_and_the_result_keeps_the_inputs() -> None:
    layer, exact = _pair(compute_dtype=torch.bfloat16)
    x = torch.randn(8, 128)
    assert layer(x).dtype == torch.float32
    assert torch.equal(layer(x), exact.bfloat16()(x.bfloat16()).float())


def test_gradient_checkpointing_changes_no_bit() -> None:
    layer, _ = _pair()
    x = torch.randn(8, 128, requires_grad=True)
    (plain,) = torch.autograd.grad(layer(x).square().sum(), x)
    (again,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(plain, again)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_layer_gives_the_same_gradient() -> None:
    layer, _ = _pair()
    x = torch.randn(8, 128, requires_grad=True)
    net = nn.Sequential(layer, nn.GELU())  # the graph breaks at the layer and goes on behind it
    compiled = torch.compile(net, backend="aot_eager")
    (plain,) = torch.autograd.grad(net(x).square().sum(), x)
    (again,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(again, plain)


def test_a_cast_moves_the_dtype_and_never_the_statistics() -> None:
    layer, _ = _pair()
    weight = layer.dense_weight()
    layer.to(torch.bfloat16)
    assert layer.dense_weight().dtype == torch.bfloat16
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.dense_weight(torch.float32), weight)
    assert layer(torch.randn(2, 128, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_copy_and_a_loaded_state_compute_the_same_and_share_nothing() -> None:
    layer, _ = _pair()
    x = torch.randn(2, 128)
    twin = copy.deepcopy(layer)
    fresh = nf4.NF4Linear.from_dense(nn.Linear(128, 50))
    fresh.load_state_dict(layer.state_dict())
    assert set(layer.state_dict()) == {"codes", "absmax", "scales", "offset", "bias"}
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(fresh(x), layer(x))
    twin.codes.zero_()
    assert not torch.equal(twin(x), layer(x))
    assert torch.equal(fresh(x), layer(x))


def test_requantising_a_4_bit_layer_reads_its_dense_weight_and_shares_the_bias() -> None:
    layer, _ = _pair(double=False)
    again = nf4.NF4Linear.from_dense(layer, double=False)
    assert again.bias is layer.bias
    assert torch.equal(again.codes, layer.codes)


def test_a_missing_bitsandbytes_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="install it or use backend 'torch'"):
        nf4.NF4Linear.from_dense(nn.Linear(4, 4), backend="bitsandbytes")


def test_an_unknown_backend_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'bitsandbytes'"):
        nf4.NF4Linear.from_dense(nn.Linear(4, 4), backend="bitsandbyte")


def test_bitsandbytes_refuses_what_it_cannot_do(oracle: Any) -> None:
    with pytest.raises(UserError, match="meta"):
        nf4.NF4Linear.from_dense(nn.Linear(4, 4, device="meta"), backend="bitsandbytes")
    with pytest.raises(UserError, match="block"):
        nf4.NF4Linear.from_dense(nn.Linear(4, 4), backend="bitsandbytes", block=6)
    with pytest.raises(UserError, match="rows of 96 weights, not a multiple"):
        nf4.NF4Linear.from_dense(nn.Linear(96, 4), backend="bitsandbytes")
    layer = nf4.NF4Linear.from_dense(nn.Linear(64, 4), backend="bitsandbytes")
    with pytest.raises(UserError, match="float64"):
        layer(torch.ones(1, 64, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(96, 64), (256, 300), (7, 33)])
@pytest.mark.parametrize("double", [True, False])
def test_a_weight_without_data_takes_the_tensors_of_one_with_data(shape: tuple[int, int], double: bool) -> None:
    real = nf4_quantization.quantize(torch.randn(shape), double=double)
    empty = nf4_quantization.quantize(torch.randn(shape, device="meta"), double=double)
    for name in ("codes", "absmax", "scales", "offset"):
        a, b = getattr(real, name), getattr(empty, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
            assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes()
    with nf4_quantization.by_shape_alone():
        assert nf4_quantization.dequantize(empty).shape == shape
        inside = nf4_quantization.dequantize(real)
    assert torch.equal(inside, nf4_quantization.dequantize(real))  # with data nothing is left out
