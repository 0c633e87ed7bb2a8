"""The arithmetic of a step's seconds, and that the fit's file says what its points give."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml

from peftbench.estimate.card import step_seconds
from peftbench.estimate.card.cards import Card, card
from peftbench.estimate.card.step_seconds import Constants
from peftbench.estimate.card.traffic import Moves, Product, Traffic
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.step_estimate import Setting, estimate

ROOT = Path(__file__).resolve().parents[2]
POINTS = ROOT / "peftbench" / "estimate" / "published" / "times" / "hf_metamath.yaml"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("fit_step_time", ROOT / "scripts" / "fit_step_time.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fit_step_time = script()
CARD = Card("test", 10.0, 1e9, 1.0, 100e9, 10e9, None, 100.0, 1e8, "0.0", "a card for arithmetic")
FIT = Constants(products={"test": 0.5}, memory=0.8, cached=1.6, launch={"test": 1e-3})


def _traffic(*products: Product, others: int = 0, moved: int = 0, sent: int = 0) -> Traffic:
    return Traffic(products, (Moves("forward", moved, others),) if others else (), {"forward": 1}, {"forward": sent})


def test_a_product_takes_what_its_operations_or_its_bytes_need() -> None:
    many = Product("forward", "bfloat16", 10**9, 10**6, 1)  # 20 ms of operations, 1.25 ms of bytes
    wide = Product("forward", "bfloat16", 10**6, 10**8, 2)  # 0.02 ms and 125 ms, twice
    found = step_seconds.step_seconds(_traffic(many, wide), CARD, FIT)
    assert found.products == pytest.approx(0.02 + 2 * 0.125)
    assert found.seconds == found.device == pytest.approx(found.products)


def test_float32_products_run_at_their_own_rate() -> None:
    at = {
        dtype: step_seconds.step_seconds(_traffic(Product("forward", dtype, 10**9, 1, 1)), CARD, FIT).device
        for dtype in ("bfloat16", "float32")
    }
    assert at["float32"] == pytest.approx(10 * at["bfloat16"])


def test_a_step_is_never_faster_than_its_launches() -> None:
    found = step_seconds.step_seconds(_traffic(others=100, moved=16 * 10**6), CARD, FIT)
    assert found.device == pytest.approx(0.01)  # each fits into the cache
    assert found.seconds == found.host == pytest.approx(0.1)
    assert found.bound == "launches"


def test_what_the_cache_holds_moves_faster() -> None:
    at = {n: step_seconds.step_seconds(_traffic(others=n, moved=16 * 10**6), CARD, FIT).others for n in (1, 100)}
    assert at[1] == pytest.approx(0.02)
    assert at[100] == pytest.approx(0.01)


def test_transfers_add_to_the_step() -> None:
    found = step_seconds.step_seconds(_traffic(others=1, moved=8 * 10**6, sent=10**7), CARD, FIT)
    assert found.transfers == pytest.approx(0.1)
    assert found.seconds == pytest.approx(0.11)
    assert found.bound == "transfers"
    moved = step_seconds.step_seconds(_traffic(others=1), CARD, FIT, offloaded=10**7)
    assert moved.transfers == pytest.approx(0.2)


def test_the_phases_add_up_to_the_device() -> None:
    products = (Product("forward", "bfloat16", 10**9, 1, 3), Product("backward", "bfloat16", 10**9, 1, 6))
    found = step_seconds.step_seconds(_traffic(*products, others=2, moved=10**7), CARD, FIT)
    assert sum(found.phases.values()) == pytest.approx(found.device)
    assert found.device == pytest.approx(found.products + found.others)


def _per_method(program: str, key: str) -> list[float]:
    published = yaml.safe_load(POINTS.read_text())
    errors: dict[str, list[float]] = {}
    for run, found in step_seconds.fitted()[program]["runs"].items():
        errors.setdefault(fit_step_time.method_of(run, published), []).append(abs(found[key]))
    return [median(some) for some in errors.values()]


@pytest.mark.parametrize("program", ["peft", "ours"])
@pytest.mark.parametrize(("key", "median_within"), [("error", 0.10), ("ratio_error", 0.10)])
def test_methods_that_the_fit_has_not_seen_are_predicted(program: str, key: str, median_within: float) -> None:
    fit = step_seconds.fitted()[program]
    errors = _per_method(program, key)
    assert fit["what"] == f"{len(errors)} methods"
    assert median(errors) <= median_within
    assert median(errors) == pytest.approx(fit[f"{key}_median"], abs=1e-3)
    assert max(errors) == pytest.approx(fit[f"{key}_largest"], abs=1e-3)


def test_lengths_and_models_that_the_fit_has_not_seen_are_predicted() -> None:
    fit = step_seconds.fitted()["qwen"]
    errors = [abs(found["error"]) for found in fit["runs"].values()]
    assert len(errors) == 18
    assert median(errors) == pytest.approx(fit["error_median"], abs=1e-3)
    assert median(errors) <= 0.12


def test_a_card_without_published_steps_has_the_mean_share() -> None:
    assert step_seconds.value_of({"a": 0.4, "b": 0.9}, CARD) == pytest.approx(0.6)
    assert step_seconds.value_of({"a": 0.4, "test": 0.9}, CARD) == 0.9
    assert "not verified on this card" in step_seconds.known_error(CARD)
    assert "the fit had not seen" in step_seconds.known_error(card("l40s"))


def test_the_errors_are_those_of_the_published_seconds() -> None:
    published = yaml.safe_load(POINTS.read_text())["runs"]
    for program in ("peft", "ours"):
        for run, found in step_seconds.fitted()[program]["runs"].items():
            assert found["measured"] == published[run]["seconds"]
            assert found["error"] == pytest.approx(found["predicted"] / found["measured"] - 1, abs=1e-3)


def test_the_page_shows_every_run_with_its_error() -> None:
    text = (ROOT / "docs" / "estimate-time.md").read_text()
    for program in ("peft", "ours", "qwen"):
        for run, found in step_seconds.fitted()[program]["runs"].items():
            assert any(run in line and f"{found['error']:+.1%}" in line for line in text.splitlines()), run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "hyper", "run"),
    [("lora", {"rank": 32}, "lora-rank32"), pytest.param("ia3", {}, "ia3-default", marks=pytest.mark.full)],
)
def test_a_published_step_is_still_predicted(method: str, hyper: dict[str, Any], run: str) -> None:
    found = estimate(ModelQuery("llama-3.2-3b"), method, hyper, Setting(4, 237, "bfloat16"))
    assert found.traffic is not None
    predicted = step_seconds.step_seconds(found.traffic, card("l40s")).seconds
    assert predicted == pytest.approx(step_seconds.fitted()["ours"]["runs"][run]["measured"], rel=0.1)
