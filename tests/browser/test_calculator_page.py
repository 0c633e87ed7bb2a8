"""The calculator's page in a browser: it computes, follows the form, and needs no network, colour or wide screen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peftbench.estimate.calculator import page as calculator

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
    page.wait_for_function("document.getElementById('size-value').textContent === '256'")
    after = (needed(page), page.inner_text("#facts"), page.input_value("#command"))
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert "rank=256" in after[2]


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
