"""The calculator's page in a browser: it computes, follows the form, and needs no network, colour or wide screen."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peftbench.estimate.calculator import page as calculator
from peftbench.estimate.calculator.serve import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("calculator") / "calculator.html"
    path.write_text(calculator.html(), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, address: str) -> Iterator[Open]:
    """Open the page without a network; any error of its script, or request, fails the test."""
    contexts, errors = [], []

    def opened(choice: str = "", **context: Any) -> Any:
        contexts.append(chromium.new_context(offline=True, **context))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("file:") else errors.append(request.url))
        page.goto(address + choice)
        if context.get("java_script_enabled", True):
            page.wait_for_selector("body[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors


def needed(page: Any) -> str:
    return str(page.inner_text("#verdict"))


def test_the_first_look_has_an_answer_for_every_part(opened: Open) -> None:
    page = opened()
    assert "llama-3.1-8b" in page.input_value("#command")
    assert "GiB of the" in needed(page)
    assert page.locator("#parts tr").count() >= 6
    assert page.locator("#published tbody tr").count() == 5


def test_the_slider_moves_parameters_memory_and_command(opened: Open) -> None:
    page = opened()
    before = (needed(page), page.inner_text("#facts"), page.input_value("#command"))
    page.focus("#size")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.getElementById('size-value').textContent === '128'")
    after = (needed(page), page.inner_text("#facts"), page.input_value("#command"))
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert "rank=128" in after[2]


def test_money_has_a_currency_and_what_limits_a_step_is_said_in_plain_words(opened: Open) -> None:
    page = opened("#price=2")
    facts = page.inner_text("#facts")
    assert "USD, at 2 USD for an hour of a card" in facts
    assert page.get_by_label("Price of a card-hour, USD").input_value() == "2"
    assert "limited by arithmetic" in facts
    assert "products" not in facts


def choose(page: Any, method: str) -> str:
    """Choose a method, and return the word of the command that has its size."""
    page.select_option("select[name=method]", method)
    page.wait_for_function(f"document.getElementById('command').value.includes(' {method} ')")
    words = str(page.input_value("#command")).split()
    return words[4] if "=" in words[4] else ""


def test_each_method_starts_from_its_own_size(opened: Open) -> None:
    page = opened()
    sizes = {method: choose(page, method) for method in ("prefix", "lora", "vera", "dora", "adapter", "galore", "full")}
    assert sizes == {
        "prefix": "length=10",
        "lora": "rank=8",
        "vera": "rank=1024",
        "dora": "rank=8",
        "adapter": "bottleneck=64",
        "galore": "rank=4",
        "full": "",
    }
    assert "size" not in page.evaluate("location.hash")


def test_a_size_that_was_set_stays_where_it_means_the_same(opened: Open) -> None:
    page = opened()
    page.focus("#size")
    page.keyboard.press("ArrowRight")
    assert [choose(page, method) for method in ("dora", "qlora", "adalora")] == ["rank=16"] * 3
    assert choose(page, "vera") == "rank=1024"
    assert choose(page, "galore") == "rank=4"
    assert choose(page, "adapter") == "bottleneck=64"
    assert page.input_value("#size") == "6"
    assert choose(page, "lora") == "rank=16"
    assert "size=16" in page.evaluate("location.hash")


def test_a_size_of_a_link_is_one_that_was_set(opened: Open) -> None:
    page = opened("#method=qlora&size=64")
    assert choose(page, "dora") == "rank=64"
    assert choose(page, "prompt") == "length=20"
    page.evaluate("location.hash = 'method=lora'")
    page.wait_for_function("document.getElementById('command').value.includes(' lora rank=8 ')")


def test_a_link_restores_the_choice(opened: Open) -> None:
    page = opened("#model=llama-3.1-70b&method=qlora&size=64&batch=2&seq=512&gpu=rtx-a6000&checkpointing=true")
    command = page.input_value("#command")
    for word in ("llama-3.1-70b", "qlora", "rank=64", "--batch 2", "--seq 512", "--gpu rtx-a6000", "--checkpointing"):
        assert word in command
    page.fill("input[name=batch]", "1")
    assert "batch=1" in page.evaluate("location.hash")


def test_an_odd_link_falls_back_to_what_is_known(opened: Open) -> None:
    page = opened("#model=nosuch&batch=abc&size=<b>&evil=1")
    assert "llama-3.1-8b" in page.input_value("#command")
    assert "--batch 1 " in page.input_value("#command")


def test_an_impossible_number_is_named_and_has_no_answer(opened: Open) -> None:
    page = opened()
    page.fill("input[name=batch]", "0")
    assert "No answer here" in needed(page)
    assert "batch" in needed(page)
    assert page.locator("#bar").is_hidden()


@pytest.mark.parametrize("name", ["batch", "seq", "gpus", "examples"])
def test_a_part_of_a_text_or_a_card_has_no_answer(opened: Open, name: str) -> None:
    page = opened()
    page.fill(f"input[name={name}]", "100.5")
    assert f"{name}: give a whole number" in needed(page)


def test_a_pasted_configuration_gets_an_answer_and_broken_text_a_reason(opened: Open) -> None:
    page = opened()
    named = needed(page)
    page.select_option("select[name=model]", "own")
    assert "config.json" in needed(page)
    page.fill("#config", "{")
    assert "no JSON" in needed(page)
    page.fill(
        "#config",
        '{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,'
        ' "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}',
    )
    page.wait_for_function("document.getElementById('verdict').textContent.includes('GiB of')")
    assert needed(page) == named


def test_a_step_that_is_not_recorded_is_greyed_and_a_link_to_it_says_what_there_is(opened: Open) -> None:
    page = opened()
    greyed = "option[value='{}']:disabled"
    assert page.locator(greyed.format("peftbench")).count() == 0
    page.select_option("select[name=method]", "dora")
    page.wait_for_selector(greyed.format("peftbench"), state="attached")
    assert page.locator("#greyed").is_visible()
    linked = opened("#method=dora&program=peftbench")
    assert "No answer here" in needed(linked)
    assert "program hf-trainer" in needed(linked)
    assert "parameters" in linked.inner_text("#facts")


def test_shards_take_as_many_cards_and_hold_a_part_of_the_model(opened: Open) -> None:
    page = opened("#model=llama-3.1-70b&method=full&gpu=h100")
    assert "Does not fit" in needed(page)
    page.select_option("select[name=shards]", "32")
    page.wait_for_function("document.getElementById('command').value.includes('--shards 32 --gpus 32')")
    assert "✓ Fits" in needed(page)
    assert "1/32 of the model" in needed(page)
    assert "Over the link" in page.inner_text("#facts")
    assert "gathers a block" in page.inner_text("#sharing")
    assert "shards=32" in page.evaluate("location.hash")
    page.fill("input[name=gpus]", "33")
    assert "33 cards are no whole number of sets of 32 shards" in needed(page)


def test_a_link_restores_shards_and_float32_and_an_odd_number_of_them_is_one(opened: Open) -> None:
    page = opened("#model=llama-3.1-8b&method=full&shards=8&gpus=16")
    assert "--shards 8 --gpus 16" in page.input_value("#command")
    assert "2 sets of 8 cards" in page.inner_text("#sharing")
    page = opened("#model=llama-3.1-8b&method=full&shards=8&gpu=h100")  # one set, where no number of cards is given
    assert "--shards 8 --gpus 8" in page.input_value("#command")
    page = opened("#model=llama-3.1-8b&method=lora&dtype=float32&shards=3")
    assert "--dtype float32" in page.input_value("#command")
    assert "--shards" not in page.input_value("#command")
    assert "GiB of the" in needed(page)


def test_a_method_without_a_recording_in_shards_or_float32_has_them_greyed(opened: Open) -> None:
    page = opened("#model=llama-3.1-8b&method=prefix")
    for value in ("8", "float32"):
        page.wait_for_selector(
            f"option[value='{value}']:disabled, option:disabled:text-is('{value}')", state="attached"
        )
    page = opened("#model=llama-3.1-8b&method=full&shards=8&gpus=8")
    page.select_option("select[name=method]", "prefix")
    page.wait_for_function("document.getElementById('command').value.includes(' prefix ')")
    assert "GiB of" in needed(page)
    assert "--shards" not in page.input_value("#command")


def test_another_method_takes_layers_that_it_is_recorded_with(opened: Open) -> None:
    page = opened("#method=lora&roles=q+k+v+o")
    page.select_option("select[name=method]", "dora")
    page.wait_for_function("document.getElementById('command').value.includes(' dora ')")
    assert "GiB of the" in needed(page)


def test_published_measurements_have_a_prediction_and_its_error(opened: Open) -> None:
    rows = opened().locator("#published tbody tr")
    texts = [rows.nth(n).locator("td").all_inner_texts() for n in range(rows.count())]
    assert len(texts) == 5
    assert all(row[3].endswith("GiB") and row[4].endswith("%") for row in texts)


def test_each_claim_about_70_billion_has_what_is_simulated(opened: Open) -> None:
    page = opened()
    page.wait_for_function("document.querySelectorAll('.preset-answer').length === 4")
    page.wait_for_function("[...document.querySelectorAll('.preset-answer')].every((one) => one.textContent)")
    simulated = page.locator(".preset-answer").all_inner_texts()
    assert all("GiB" in text for text in simulated)
    page.locator("#presets a").nth(2).click()
    page.wait_for_function("document.getElementById('command').value.includes('llama-2-70b qlora')")


def test_the_served_page_shows_what_its_server_computes(chromium: Any) -> None:
    config = (
        '{"model_type": "gpt_neox", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,'
        ' "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 4096}'
    )
    with Server(0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = chromium.new_context()
        page, errors = context.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            page.goto(server.address + "#model=own&roles=q+v")
            page.wait_for_selector("body[data-ready]")
            page.fill("#config", config)
            page.locator("#verdict", has_text="gpt_neox").wait_for()
            page.click("#exact")
            page.locator("#exact-status", has_text="Simulated by").wait_for(timeout=120_000)
            assert "✓ Fits" in needed(page)
            page.fill("#config", "{")
            page.click("#exact")
            page.locator("#exact-status", has_text="no JSON").wait_for()
        finally:
            context.close()
            server.shutdown()
    assert not errors


def test_every_control_has_a_label(opened: Open) -> None:
    page = opened()
    assert page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].every((one) => one.labels && one.labels.length > 0)"
    )


def test_a_telephone_shows_the_page_without_scrolling_sideways_and_the_verdict_all_the_time(opened: Open) -> None:
    page = opened(viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.getElementById('verdict').getBoundingClientRect().bottom") <= 844


def test_the_parts_and_the_line_differ_without_colour(opened: Open) -> None:
    page = opened()
    shown = page.evaluate(
        "[...document.querySelectorAll('#bar .part')].map((one) => getComputedStyle(one).backgroundImage)"
    )
    patterned = [image for image in shown if image != "none"]
    assert len(set(patterned)) == len(patterned)
    assert page.get_attribute("#bar", "aria-label").count("GiB") > 3


def test_dark_mode_keeps_contrast_of_text(opened: Open) -> None:
    page = opened(color_scheme="dark")
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light, dark = (sum(map(int, c[4:-1].split(","))) for c in (ink, paper))
    assert light - dark > 450


def test_without_script_there_is_a_table_of_common_settings(opened: Open) -> None:
    page = opened(java_script_enabled=False)
    assert "The controls need JavaScript" in page.inner_text("body")
    assert page.locator("#common tbody tr").count() >= 6
