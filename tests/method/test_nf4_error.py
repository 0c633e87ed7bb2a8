"""4-bit types: the tables against bitsandbytes, the error against other ways to compute it, the committed figures."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from peftbench.method.layers import nf4, nf4_tables

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def oracle() -> Any:
    return pytest.importorskip("bitsandbytes").functional


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nf4_error", ROOT / "scripts" / "nf4_error.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def committed(script: ModuleType) -> dict[str, Any]:
    return json.loads((script.RESULTS / "nf4_error.json").read_text(encoding="utf-8"))


def _randn(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count)) * 0.05


# The tables


@pytest.mark.parametrize(
    ("kind", "ours"),
    [("nf4", nf4_tables.code_table()), ("fp4", nf4_tables.float_table(2, 1, 1 / 16))],
)
def test_a_table_is_that_of_bitsandbytes_to_the_last_bit(oracle: Any, kind: str, ours: Tensor) -> None:
    assert torch.equal(ours, oracle.get_4bit_type(kind, device="cpu").unique())  # sorted, zero once


def test_e3m0_is_bitsandbytes_float_of_that_layout_and_e2m1_but_for_its_subnormal(oracle: Any) -> None:
    e3m0 = oracle.create_fp8_map(exponent_bits=3, precision_bits=0, total_bits=4)
    assert torch.equal(nf4_tables.float_table(3, 0), e3m0.unique())
    ours, theirs = nf4_tables.float_table(2, 1), oracle.create_fp8_map(True, 2, 1, 4).unique()
    assert (ours != theirs).nonzero().flatten().tolist() == [6, 8]


def test_the_standard_e2m1_is_the_one_written_out_by_hand() -> None:
    above = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # OCP Microscaling Formats 1.0
    expected = torch.tensor([-v for v in above[:0:-1]] + above) / 6
    torch.testing.assert_close(nf4_tables.float_table(2, 1), expected, rtol=1e-7, atol=0)


# The error


@pytest.mark.parametrize(("kind", "name"), [("nf4", "nf4"), ("fp4", "fp4-bitsandbytes")])
def test_values_and_error_are_those_of_bitsandbytes(script: ModuleType, oracle: Any, kind: str, name: str) -> None:
    weight = _randn(64 * 300)
    table = script.TYPES[name].table
    blocks, values, absmax = script.rounded(weight, table)
    packed, state = oracle.quantize_4bit(weight, blocksize=64, quant_type=kind)
    theirs = oracle.dequantize_4bit(packed, state).flatten()
    assert torch.equal((values * absmax).flatten(), theirs)
    assert torch.equal(blocks.flatten(), weight)
    expected = float((theirs.double() - weight.double()).square().sum())
    assert script.errors(weight, table)[0] == pytest.approx(expected, rel=1e-6)


def test_double_quantisation_is_the_one_that_qlora_trains_with(script: ModuleType) -> None:
    weight = _randn(64 * 700)  # 700 blocks: three scales, the last one of a short block of statistics
    _, values, absmax = script.rounded(weight, script.TYPES["nf4"].table)
    ours = (values * script.doubly_quantised(absmax)).flatten()
    assert torch.equal(ours, nf4.dequantize(nf4.quantize(weight)))
    plain, double = script.errors(weight, script.TYPES["nf4"].table)
    assert plain != double


def test_int4_is_rounding_to_sevenths_of_the_absmax(script: ModuleType) -> None:
    weight = _randn(64 * 100)
    blocks, values, absmax = script.rounded(weight, script.TYPES["int4"].table)
    torch.testing.assert_close(values * absmax, torch.round(7 * blocks / absmax) / 7 * absmax, rtol=1e-5, atol=0)


def test_the_nearest_value_is_taken_and_a_block_of_zeros_stays_zero(script: ModuleType) -> None:
    for kind in script.TYPES.values():
        blocks, values, absmax = script.rounded(torch.cat([_randn(640), torch.zeros(64)]), kind.table)
        gaps = (blocks / absmax.clamp(min=1e-30))[..., None] - kind.table
        taken = (blocks / absmax.clamp(min=1e-30) - values).abs()
        assert (taken <= gaps.abs().amin(-1) + 1e-6).all()
        assert not values[-1].any()


# What is committed


@pytest.mark.slow
def test_the_normal_weights_give_the_committed_figures_again(script: ModuleType, committed: dict[str, Any]) -> None:
    _compare(script.measure("normal", script.weights("normal")), committed["rows"][0])


@pytest.mark.embedded
def test_a_pretrained_encoder_gives_the_committed_figures_again(script: ModuleType, committed: dict[str, Any]) -> None:
    _compare(script.measure("minilm-l6", script.weights("minilm-l6")), committed["rows"][1])


def _compare(again: dict[str, Any], row: dict[str, Any]) -> None:
    assert again["source"] == row["source"]
    assert (again["weights"], again["tensors"]) == (row["weights"], row["tensors"])
    assert again["bits_per_weight"] == row["bits_per_weight"]
    assert again["smallest_in_tensors"] == row["smallest_in_tensors"]
    for name, both in row["error"].items():
        assert again["error"][name] == pytest.approx(both, rel=1e-6), name


def test_the_types_are_those_of_the_committed_figures(script: ModuleType, committed: dict[str, Any]) -> None:
    assert [row["source"] for row in committed["rows"]] == list(script.SOURCES)
    assert list(committed["types"]) == list(script.TYPES)
    for name, kind in script.TYPES.items():
        assert committed["types"][name]["table"] == kind.table.tolist()


def test_table_and_figure_are_drawn_from_the_json_alone(
    script: ModuleType, committed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "TYPES", {})
    monkeypatch.setattr(script, "SOURCES", {})
    script.write(committed, tmp_path)
    for name in ("nf4_error.md", "nf4_error.csv"):
        assert (tmp_path / name).read_text() == (script.RESULTS / name).read_text()
    first = {name: (tmp_path / name).read_bytes() for name in ("nf4_error.png", "nf4_error.svg")}
    assert dict(script.drawing(committed)) == first
    committed = json.loads(json.dumps(committed))
    committed["rows"][0]["error"]["nf4"]["float32"] = 0.3
    assert dict(script.drawing(committed))["nf4_error.svg"] != first["nf4_error.svg"]


def test_the_order_is_compared_pair_by_pair(script: ModuleType) -> None:
    row = {"error": {"a": {"float32": 1.0}, "b": {"float32": 2.0}, "c": {"float32": 0.5}}}
    assert script.against_the_paper(row, {"a": 10.0, "b": 20.0, "c": 20.0}) == [["a", "c"]]
    assert script.against_the_paper(row, {"a": 2.0, "b": 3.0, "c": 1.0}) == []


def test_normal_weights_in_blocks_of_64_have_the_error_that_an_integral_gives(
    script: ModuleType, committed: dict[str, Any]
) -> None:
    """The largest of 64 magnitudes has density 64 F^63 f; the other 63 are normal draws cut off at it."""
    table = [float(v) for v in script.TYPES["nf4"].table]
    assert committed["rows"][0]["error"]["nf4"]["float32"] == pytest.approx(_by_integration(table), rel=2e-3)


def _by_integration(table: list[float], block: int = 64) -> float:
    """||w - w'|| / ||w|| expected for N(0, 1): over the absmax a, and over the scaled weight in (-1, 1)."""
    code = torch.tensor(table, dtype=torch.float64)
    bounds = (code[:-1] + code[1:]) / 2
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 2000 - 1
    off = (code[torch.bucketize(u, bounds)] - u).square()
    total = weight = 0.0
    for k in range(1, 1200):
        a = k * 0.005
        inside = math.erf(a / math.sqrt(2))
        density = block * inside ** (block - 1) * 2 * math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        cut_off = torch.exp(-(a * u).square() / 2) / math.sqrt(2 * math.pi) / inside
        error = float((a * a * off * cut_off).sum()) * a / 2000
        total += density * (block - 1) * error * 0.005
        weight += density * 0.005
    return math.sqrt(total / weight / block)
