"""The address of the page: it keeps what the reader chose, a link restores it, and nothing but a choice changes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import LABELS, NOW, PHONE, ROWS, TASK

pytestmark = pytest.mark.browser

Files = Callable[[str], Path]


def labels(page: Any) -> list[str]:
    found: list[str] = page.locator(ROWS).evaluate_all(LABELS)
    return found


def heads(page: Any) -> list[str]:
    found: list[str] = page.locator(f"{NOW} table.scores thead th:not([hidden])").evaluate_all(
        "all => all.map(th => th.dataset.key)"
    )
    return found


def address(page: Any) -> str:
    return str(page.evaluate("location.hash"))


def test_a_link_restores_figure_axis_sort_columns_and_search(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), TASK)
    assert address(page) == TASK, "what nobody chose is not in it"
    page.select_option(f"{NOW} [data-axis]", "parameters")
    page.click(f"{NOW} button:has-text('Without those surely behind')")
    page.click(f"{NOW} [data-figure=forest]")
    page.click(f"{NOW} th[data-key=memory] button")
    page.click(f"{NOW} th[data-key=memory] button")
    page.fill(f"{NOW} input[type=search]", "lora")
    page.click(f"{NOW} .tools summary")
    page.get_by_label("stored, KiB").check()
    page.get_by_label("trainable", exact=True).uncheck()
    kept, shown = address(page), (labels(page), heads(page))

    page = opened(files("embedded_small"), kept)
    assert (labels(page), heads(page)) == shown
    assert "stored" in heads(page)
    assert page.locator(f"{NOW} th[data-key=memory]").get_attribute("aria-sort") == "ascending"
    assert page.input_value(f"{NOW} input[type=search]") == "lora"
    assert page.locator(f"{NOW} [data-figure=forest]").get_attribute("aria-pressed") == "true"
    assert page.locator(f"{NOW} button:has-text('surely behind')").get_attribute("aria-pressed") == "true"
    page.click(f"{NOW} [data-figure=front]")
    assert page.input_value(f"{NOW} [data-axis]") == "parameters"
    page.click(f"{NOW} .tools summary")
    assert page.get_by_label("stored, KiB").is_checked()
    assert not page.get_by_label("trainable", exact=True).is_checked()


def test_a_table_without_families_stays_so(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), TASK)
    page.click(f"{NOW} button:has-text('Group by family')")
    page = opened(files("embedded_small"), address(page))
    assert labels(page)[:4] == ["full", "lora", "qlora", "adapter"]
    page.click(f"{NOW} button:has-text('Group by family')")
    assert address(page) == TASK


def test_a_whole_address_takes_the_view_of_the_one_before_away(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), f"{TASK}&axis=time&figure=forest&sort=memory&find=lora&columns=score,stored")
    assert heads(page) == ["method", "score", "stored"]
    page.evaluate(f"location.hash = '{TASK}'")
    page.wait_for_function(f"document.querySelector('{NOW} input[type=search]').value === ''")
    assert len(labels(page)) == 19
    assert "trainable" in heads(page)
    assert page.locator(f"{NOW} th[data-key=memory]").get_attribute("aria-sort") == "none"
    assert page.locator(f"{NOW} [data-figure=front]").get_attribute("aria-pressed") == "true"
    assert page.input_value(f"{NOW} [data-axis]") == "memory"


def test_the_address_is_that_of_the_result_that_is_shown(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), f"{TASK}&sort=memory&figure=forest")
    page.click("#choose button:has-text('sms_spam')")
    assert "sort" not in address(page)
    assert "figure=forest" in address(page)
    page.click("#choose button:has-text('question_type')")
    assert "sort=memory" in address(page)


@pytest.mark.parametrize(
    "odd", ["figure=pie", "axis=price", "sort=nothing", "columns=nothing", "order=up", "group=yes"]
)
def test_an_odd_choice_in_an_address_is_as_none(opened: Any, files: Files, odd: str) -> None:
    page, plain = opened(files("embedded_small"), f"{TASK}&{odd}"), opened(files("embedded_small"), TASK)
    for seen in (labels, heads):
        assert seen(page) == seen(plain)
    for value in ("front", "forest"):
        button = f"{NOW} [data-figure={value}]"
        assert page.locator(button).get_attribute("aria-pressed") == plain.locator(button).get_attribute("aria-pressed")


def test_a_phone_follows_the_figure_of_a_link(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), f"{TASK}&figure=front", PHONE)
    assert page.locator(f"{NOW} [data-figure=front]").get_attribute("aria-pressed") == "true"


def test_the_skip_link_leads_to_the_verdict_and_leaves_the_address(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), f"{TASK}&margin=5")
    before = address(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert address(page) == before
    assert page.evaluate("document.activeElement.id") == "main"
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.input_value(f"{NOW} input[data-limit=margin]") == "5"
