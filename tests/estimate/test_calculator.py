"""The calculator's numbers are those of `count` and `estimate`, and its page needs nothing but itself."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from peftbench.estimate import step_estimate
from peftbench.estimate.calculator import facts, page, payload, settings
from peftbench.estimate.card import cards, fits
from peftbench.estimate.count import ModelQuery, count, network

ROOT = Path(__file__).resolve().parents[2]
NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="the page's script runs in node")
CHOICE = {
    "model": "llama-3.2-1b",
    "method": "lora",
    "roles": "q k v o gate up down",
    "size": 16,
    "batch": 1,
    "seq": 512,
    "dtype": "bfloat16",
    "optimizer": "adamw",
    "checkpointing": True,
    "program": "hf-trainer",
    "gpu": "l40s",
    "gpus": 1,
    "examples": 10_000,
    "epochs": 3,
    "price": 1.5,
}
WHOLE = {"method": "full", "roles": "", "size": 0}
NEEDS_CHECK = pytest.mark.skipif(
    not page.CHECKED.exists(), reason="python scripts/calculator_check.py --settings 300 --write has not run"
)
COUNTED = ("llama-3.1-8b", "llama-2-7b", "qwen2.5-0.5b")


@cache
def checking() -> Any:
    spec = importlib.util.spec_from_file_location("calculator_check", ROOT / "scripts" / "calculator_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def sites(model: str) -> Any:
    return network(ModelQuery(model)).sites


@NEEDS_NODE
def test_every_method_trains_as_many_parameters_as_its_formula_says() -> None:
    known = {model["name"] for model in payload.payload()["models"]}
    asked = [
        {**CHOICE, "model": model, "method": method["name"], "roles": roles, "size": size if method["knob"] else 0}
        for model in COUNTED
        if model in known
        for method in facts.read()["methods"]
        for roles in (settings.ROLES if method["roles"] else ("",))
        for size in (1, 7, 64)
        if method["name"] != "bitfit" or sites(model).biases
    ]
    for choice, answer in zip(asked, page.answers(asked), strict=True):
        made = settings.made(choice["method"], choice["roles"], choice["size"] or None)
        assert answer["trainable"] == made.parameters(sites(choice["model"])), choice


@NEEDS_NODE
@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.full), "dora", "vera", "prefix"])
def test_the_file_is_as_large_as_count_says_to_a_thousandth(method: str) -> None:
    roles = "q v" if method in settings.CHOOSE_ROLES else ""
    choice = {**CHOICE, "method": method, "roles": roles}
    told = count(ModelQuery("llama-3.2-1b"), method, settings.hyper_of(method, roles, 16))
    (answer,) = page.answers([choice])
    assert answer["trainable"] == told.trainable
    assert answer["file"] == pytest.approx(told.stored_bytes, rel=1e-3 if method != "vera" else 1e-2)


@NEEDS_NODE
@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="lora"),
        pytest.param({**WHOLE, "model": "tinyllama-1.1b", "optimizer": "adamw8bit"}, id="full-8bit"),
        pytest.param(
            {
                "method": "qlora",
                "shards": 2,
                "gpus": 2,
                "optimizer": "paged_adamw8bit",
                "model": "tinyllama-1.1b",
                "size": 4,
            },
            id="4-bit-shards",
        ),
        *(
            pytest.param(changed, id=name, marks=pytest.mark.full)
            for name, changed in {
                "batch": {"batch": 3, "checkpointing": False, "size": 64},
                "qlora-paged": {"method": "qlora", "optimizer": "paged_adamw8bit", "batch": 2},
                "odd-weights": {"method": "qdora", "model": "smollm2-135m", "seq": 128, "checkpointing": False},
                "many-pieces": {"method": "qlora", "model": "llama-3.1-70b", "seq": 2048, "roles": "q v"},
                "two-kinds-of-layers": {"model": "gemma-2-2b", "batch": 2},
                "rank-one": {"program": "peftbench", "size": 1},
                "one-matrix-for-three": {"model": "phi-3-medium"},
                "all-layers": {
                    **WHOLE,
                    "method": "adapter",
                    "size": 64,
                    "model": "qwen2.5-0.5b",
                    "batch": 4,
                    "optimizer": "adamw8bit",
                },
                "float32": {"dtype": "float32", "batch": 2},
                "shards": {**WHOLE, "model": "tinyllama-1.1b", "batch": 2, "shards": 4, "gpus": 8},
                "large-shards": {**WHOLE, "model": "llama-3.1-70b", "shards": 16, "gpus": 16},
            }.items()
        ),
    ],
)
def test_a_step_needs_what_estimate_says(changed: dict[str, Any]) -> None:
    choice = {**CHOICE, **changed}
    how = (choice["program"], choice["dtype"], choice["checkpointing"], choice["batch"], choice["seq"])
    hyper = settings.hyper_of(choice["method"], choice["roles"], choice["size"] or None)
    setting = replace(settings.setting_of(*how, choice["optimizer"]), shards=choice.get("shards", 1))
    told = step_estimate.estimate(ModelQuery(choice["model"]), choice["method"], hyper, setting)
    step = fits.seconds(told, fits.Question(cards.card(choice["gpu"]), choice["gpus"]))
    (answer,) = page.answers([choice])
    assert answer["peak"] == pytest.approx(told.peak_bytes, rel=1e-3)
    assert answer["needed"] == pytest.approx(fits.needed_bytes(told), rel=0.01)
    assert step is not None
    assert answer["seconds"] == pytest.approx(step.seconds, rel=0.01)


@NEEDS_NODE
def test_training_costs_what_its_hours_cost() -> None:
    one, four = page.answers([CHOICE, {**CHOICE, "gpus": 4}])
    assert one["steps"] == 30_000
    assert one["hours"] == pytest.approx(30_000 * one["seconds"] / 3600)
    assert one["money"] == pytest.approx(1.5 * one["hours"])
    assert four["steps"] == 7_500
    assert four["money"] == pytest.approx(1.5 * 4 * four["hours"])
    assert four["seconds"] > one["seconds"]  # gradients are summed


@NEEDS_NODE
def test_a_card_in_shards_holds_its_part_of_the_model_and_gathers_the_blocks() -> None:
    full = {**CHOICE, "model": "llama-3.1-8b", "method": "full", "roles": "", "size": 0, "gpus": 8}
    whole, four, eight = page.answers([{**full, "shards": n} for n in (1, 4, 8)])
    for part in ("weights", "optimizer"):
        assert four["parts"][part] == pytest.approx(whole["parts"][part] / 4, rel=0.01)
        assert eight["parts"][part] == pytest.approx(whole["parts"][part] / 8, rel=0.01)
    assert eight["needed"] < four["needed"] < whole["needed"]
    assert eight["parts"]["temporaries"] > 0
    gathered = 3 * 2 * eight["base"] / cards.card("l40s").link  # bfloat16: two passes gather, one scatters gradients
    assert eight["transfers"] == pytest.approx(gathered, rel=0.4)


@NEEDS_NODE
def test_an_adapter_is_whole_on_each_of_the_cards_that_share_a_model() -> None:
    whole, shared = page.answers([{**CHOICE, "model": "llama-3.1-8b", "gpus": 4, "shards": n} for n in (1, 4)])
    assert shared["parts"]["adapter"] == whole["parts"]["adapter"]
    assert shared["parts"]["optimizer"] == whole["parts"]["optimizer"]
    assert shared["parts"]["weights"] == pytest.approx(whole["parts"]["weights"] / 4, rel=0.01)


@NEEDS_NODE
def test_float32_weights_take_twice_the_bytes() -> None:
    half, full = page.answers([{**CHOICE, "dtype": dtype} for dtype in settings.DTYPES])
    assert full["parts"]["weights"] == pytest.approx(2 * half["parts"]["weights"], rel=1e-3)
    assert full["parts"]["adapter"] == half["parts"]["adapter"]


@NEEDS_NODE
def test_shards_that_are_not_recorded_or_cannot_divide_the_cards_are_refused_with_a_reason() -> None:
    odd, unrecorded = page.answers(
        [
            {**CHOICE, "model": "llama-3.1-8b", "gpus": 6, "shards": 4},
            {**CHOICE, "model": "llama-3.1-8b", "gpus": 4, "shards": 4, "method": "prefix", "roles": ""},
        ]
    )
    assert "multiple of the shards" in odd["refused"]
    assert "none of prefix on llama-3.1-8b in shards" in unrecorded["refused"]


@NEEDS_NODE
def test_memory_grows_with_the_rank_and_fits_by_the_card() -> None:
    small, large = page.answers([{**CHOICE, "size": 1}, {**CHOICE, "size": 512}])
    assert small["needed"] < large["needed"]
    tiny, huge = page.answers([{**CHOICE, "gpu": "rtx-3060"}, {**CHOICE, "gpu": "rtx-3060", "model": "llama-3.1-70b"}])
    assert tiny["fits"]
    assert not huge["fits"]


@NEEDS_NODE
def test_a_step_that_the_page_does_not_know_is_refused_with_a_reason() -> None:
    long, paged, windowed, unrecorded = page.answers(
        [
            {**CHOICE, "model": "llama-2-70b", "seq": 8192},
            {**CHOICE, "program": "peftbench", "optimizer": "paged_adamw"},
            {**CHOICE, "model": "mistral-7b", "seq": 4096},
            {**CHOICE, "program": "peftbench", "method": "dora"},
        ]
    )
    assert "at most 4096 tokens" in long["refused"]
    assert "no paged optimiser" in paged["refused"]
    assert "do not see the whole text" in windowed["refused"]
    assert "no recording" in unrecorded["refused"]
    assert unrecorded["trainable"] > 0


@NEEDS_CHECK
def test_no_setting_of_the_committed_check_is_off_by_more_than_a_hundredth() -> None:
    rows = json.loads(page.CHECKED.read_text(encoding="utf-8"))["settings"]
    assert len(rows) >= 300
    for row in rows:
        assert all(abs(error) <= 0.01 for error in row["errors"].values()), row["choice"]


@NEEDS_CHECK
@NEEDS_NODE
@pytest.mark.slow
def test_the_committed_errors_are_those_of_this_page_and_these_cards() -> None:
    rows = json.loads(page.CHECKED.read_text(encoding="utf-8"))["settings"]
    for row, answer in zip(rows, page.answers([row["choice"] for row in rows]), strict=True):
        for name, error in row["errors"].items():
            assert answer[name] / row["estimate"][name] - 1 == pytest.approx(error, abs=1e-5), (row["choice"], name)


@NEEDS_CHECK
def test_the_committed_check_is_of_the_settings_that_its_seed_draws() -> None:
    checked = json.loads(page.CHECKED.read_text(encoding="utf-8"))
    settled = [row["choice"] for row in checked["settings"]]
    drawn = checking().choices(payload.unpacked(), 5 * len(settled), checked["seed"])
    assert all(choice in drawn for choice in settled)
    assert all(settled.count(choice) == 1 for choice in settled)


@NEEDS_CHECK
def test_the_committed_check_has_shards_and_float32() -> None:
    settled = [row["choice"] for row in json.loads(page.CHECKED.read_text(encoding="utf-8"))["settings"]]
    assert sum(choice.get("shards", 1) > 1 for choice in settled) >= 12
    assert sum(choice["dtype"] == "float32" for choice in settled) >= 12


def test_the_page_refers_to_no_other_file_and_no_network() -> None:
    text = page.html()
    text = re.sub(r'<script type="(application/json|text/plain)".*?</script>', "", text, flags=re.S)
    assert not re.search(r"\b(src|href)=[\"'](?!#)", text)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(|https?://", text)


def test_the_page_is_small_and_knows_many_models_and_all_methods() -> None:
    text = page.html()
    assert len(text.encode()) <= 3 * 2**20
    data = payload.payload()
    assert len(data["models"]) >= 20
    assert {m["name"] for m in data["methods"]} == {*facts.ORDER}


def test_every_registered_method_is_on_the_page_but_the_one_without_a_causal_network() -> None:
    from peftbench.method.catalogue import Catalogue

    assert set(Catalogue(()).methods()) - {"linear_probe"} == set(facts.ORDER)


@NEEDS_NODE
def test_a_pasted_configuration_is_the_model_that_has_it() -> None:
    from peftbench.backbones import architectures

    known = [model for model in payload.payload()["models"] if model["family"] in payload.families()]
    asked = [
        {**CHOICE, "model": "own", "config": dict(architectures.known()[model["name"]]["config"]), "seq": 256}
        for model in known
    ]
    named = [{**CHOICE, "model": model["name"], "seq": 256} for model in known]
    for model, own, same in zip(known, page.answers(asked), page.answers(named), strict=True):
        assert own["base"] == model["base"], model["name"]
        assert own.get("needed") == same.get("needed"), model["name"]
        assert own["trainable"] == same["trainable"], model["name"]
