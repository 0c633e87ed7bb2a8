"""Every control of the page, by pointer and by keyboard."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import pytest
from browsing import LABELS, NOW, PHONE, ROWS, TASK

from peftbench.report import site

pytestmark = pytest.mark.browser

Files = Callable[[str], Path]


@pytest.fixture
def page(opened: Any, files: Files) -> Any:
    return opened(files("embedded_small"), TASK)


def labels(page: Any) -> list[str]:
    found: list[str] = page.locator(ROWS).evaluate_all(LABELS)
    return found


def test_a_column_sorts_by_keyboard_and_says_how(page: Any) -> None:
    page.click(f"{NOW} button:has-text('Group by family')")
    head = page.locator(f"{NOW} th[data-key=memory]")
    head.locator("button").focus()
    before, values = labels(page), []
    for state in ("descending", "ascending"):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == state
        cells = page.locator(f"{ROWS} td:nth-child({1 + head.evaluate('th => th.cellIndex')})")
        values.append(cells.evaluate_all("cells => cells.map(c => Number(c.dataset.v))"))
    assert values[0] == sorted(values[0], reverse=True)
    assert values[1] == sorted(values[1])
    page.keyboard.press("Enter")
    assert (head.get_attribute("aria-sort"), labels(page)) == ("none", before)


def test_a_sort_ranks_all_rows_and_grouping_again_ends_it(page: Any) -> None:
    assert page.locator(f"{NOW} tr.family:visible").count() == 7
    page.click(f"{NOW} th[data-key=score] button")
    cells = page.locator(
        f"{ROWS} td:nth-child({1 + page.locator(f'{NOW} th[data-key=score]').evaluate('th => th.cellIndex')})"
    )
    scores = cells.evaluate_all("cells => cells.map(c => Number(c.dataset.v))")
    assert scores == sorted(scores, reverse=True)
    assert page.locator(f"{NOW} tr.family:visible").count() == 0
    page.click(f"{NOW} button:has-text('Group by family')")
    assert page.locator(f"{NOW} tr.family:visible").count() == 7
    assert page.locator(f"{NOW} th[data-key=score]").get_attribute("aria-sort") == "none"


def test_the_search_keeps_methods_and_families_that_match(page: Any) -> None:
    page.fill(f"{NOW} input[type=search]", "quant")
    assert labels(page) == ["qlora", "qdora"]
    page.fill(f"{NOW} input[type=search]", "LoRA")
    assert {"lora", "qlora", "adalora"} <= set(labels(page))
    assert "full" not in labels(page)


def test_a_search_without_a_match_says_so_and_is_cleared(page: Any) -> None:
    said = page.locator(f"{NOW} .nothing")
    assert said.inner_text() == ""
    page.fill(f"{NOW} input[type=search]", "xyz<b>")
    assert labels(page) == []
    assert said.inner_text().startswith("No method matches “xyz<b>”.")
    said.locator("button").click()
    assert said.inner_text() == ""
    assert len(labels(page)) == 19
    assert page.evaluate("document.activeElement.type") == "search"


@pytest.mark.parametrize("way", ["elsewhere", "escape", "tab"])
def test_the_choice_of_columns_closes(page: Any, way: str) -> None:
    panel = page.locator(f"{NOW} .tools details")
    page.click(f"{NOW} .tools summary")
    page.get_by_label("stored, KiB").check()
    assert panel.get_attribute("open") is not None, "a choice within it leaves it open"
    if way == "elsewhere":
        page.click(f"{NOW} h3:has-text('Scores and costs')")
    elif way == "escape":
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    else:
        page.focus(f"{NOW} [data-copy=CSV]")
    assert panel.get_attribute("open") is None
    assert page.locator(f"{NOW} th[data-key=stored]").is_visible()


def test_columns_are_chosen(page: Any) -> None:
    head = page.locator(f"{NOW} th[data-key=stored]")
    assert not head.is_visible()
    page.click(f"{NOW} .tools summary")
    page.get_by_label("stored, KiB").check()
    assert head.is_visible()
    page.get_by_label("trainable", exact=True).uncheck()
    assert not page.locator(f"{NOW} th[data-key=trainable]").is_visible()


@pytest.mark.parametrize(
    ("kind", "start"), [("Markdown", "| method | accuracy"), ("LaTeX", "\\begin{tabular}{lr"), ("CSV", "method,")]
)
def test_the_table_as_it_is_shown_is_copied(page: Any, kind: str, start: str) -> None:
    page.fill(f"{NOW} input[type=search]", "lora")
    page.click(f"{NOW} [data-copy={kind}]")
    page.locator(f"{NOW} .tools [role=status]", has_text="cop").wait_for()  # the clipboard answers when it can
    text = page.evaluate("document.body.dataset.copied")
    assert text.startswith(start)
    assert "galore" not in text
    assert "stored" not in text
    if kind == "CSV":
        rows = list(csv.DictReader(io.StringIO(text)))
        lora = next(row for row in rows if row["method"] == "lora")
        assert lora["accuracy ↑, mean [95 %] (n)"] == "0.8726666666666666", "numbers are unrounded"
        low, high = (float(lora[f"accuracy ↑, mean [95 %] (n), {end}"]) for end in ("low", "high"))
        assert (round(low, 3), round(high, 3)) == (0.844, 0.901)
        assert float(lora["peak memory, MiB"]) == pytest.approx(145.6, abs=0.05)
        assert float(lora["step, ms"]) == pytest.approx(62.1, abs=0.05)


def test_a_cell_names_its_records_by_keyboard_and_by_pointer(page: Any) -> None:
    cell = page.locator(f"{NOW} table.scores td[tabindex='0']")
    assert cell.count() == 1, "one stop of the tab key for all cells"
    cell.focus()
    tip = page.locator("#tip")
    assert "full, accuracy" in tip.inner_text()
    assert tip.locator("a").count() == 3
    assert "/runs/full--embedded_question_type--s0" in str(tip.locator("a").first.get_attribute("href"))
    page.keyboard.press("ArrowDown")
    assert "galore, accuracy" in tip.inner_text()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert "step, ms" in tip.inner_text()
    assert "profile" in str(tip.locator("a").first.get_attribute("href"))
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.locator(f"{NOW} tr[data-label=lora] td").first.hover()
    assert "lora, accuracy" in tip.inner_text()


def test_a_pair_says_how_far_apart_it_is(page: Any) -> None:
    grid = page.locator(f"{NOW} table.pairs")
    grid.locator("td[tabindex='0']").focus()
    said = page.locator(f"{NOW} [data-pair]")
    assert "full is not told apart from lora: ahead by" in said.inner_text()
    page.keyboard.press("ArrowRight")
    assert "full is not told apart from qlora" in said.inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert said.inner_text().startswith("adapter is")


def test_a_pair_without_a_spread_says_why_it_is_not_decided(opened: Any, tmp_path: Path) -> None:
    scores = {"full": (0.81, 0.82, 0.80), "lora": (0.71, 0.72, 0.70)}
    factories.write_all(tmp_path, [factories.run(m, s, v) for m, vs in scores.items() for s, v in enumerate(vs)])
    page = opened(site.write_page(tmp_path, tmp_path / "page.html").path)
    page.locator(f"{NOW} table.pairs td[tabindex='0']").focus()
    assert page.inner_text(f"{NOW} [data-pair]") == (
        "full is not told apart from lora: ahead by +10.0 points in every seed: without a spread there is no interval, "
        "so nothing is decided."
    )
    assert "full and lora: a difference that is the same in every seed" in page.inner_text(f"{NOW} .verdict")


def test_results_are_chosen_and_addresses_lead_to_them(page: Any) -> None:
    page.click("#choose button:has-text('sms_spam')")
    assert page.inner_text(f"{NOW} h2") == "embedded/sms_spam"
    assert "embedded_sms_spam" in page.url
    page.evaluate("location.hash = 'task=embedded/movie_sentiment&margin=3'")
    page.wait_for_function(
        "document.querySelector('.result:not([hidden]) h2').textContent === 'embedded/movie_sentiment'"
    )
    assert "within 3 points" in page.inner_text(f"{NOW} .verdict")


def test_an_address_without_limits_takes_those_of_the_one_before_away(page: Any) -> None:
    page.fill(f"{NOW} input[data-limit=memory]", "200")
    page.evaluate("location.hash = 'task=embedded/movie_sentiment'")
    page.wait_for_function(
        "document.querySelector('.result:not([hidden]) h2').textContent === 'embedded/movie_sentiment'"
    )
    assert page.input_value(f"{NOW} input[data-limit=memory]") == ""
    assert page.inner_text(f"{NOW} .limits output") == ""


@pytest.mark.parametrize("section", ["pairs", "curves", "memory", "latency", "repeat"])
def test_an_address_leads_to_a_section(opened: Any, files: Files, section: str) -> None:
    page = opened(files("embedded_small"), f"{TASK}&section={section}")
    page.wait_for_timeout(300)
    top = page.locator(f"{NOW} section[data-section={section}]").evaluate("e => e.getBoundingClientRect().top")
    assert -5 <= top < 900
    assert page.evaluate("scrollY") > 0


def test_a_section_that_the_first_result_lacks_is_found_in_the_next(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), "#pairs")
    page.wait_for_timeout(300)
    assert page.inner_text(f"{NOW} h2") == "embedded/movie_intensity"
    assert page.locator(f"{NOW} table.pairs").is_visible()
    assert page.evaluate("scrollY") > 500


@pytest.mark.parametrize(
    "address", ["#task=nothing", "#margin=x&memory=-&by=price", "#%3Cb%3E", "#nothing", "#margin=-4", "#%"]
)
def test_an_address_that_means_nothing_changes_nothing(opened: Any, files: Files, address: str) -> None:
    page = opened(files("embedded_small"), address)
    assert page.inner_text(f"{NOW} h2") == "All 4 tasks"
    assert page.input_value(f"{NOW} input[data-limit=margin]") == "2"


def test_every_chart_is_drawn_and_saved(page: Any) -> None:
    charts = page.locator(f"{NOW} figure.chart:not([hidden])")
    assert charts.count() == 5
    for i in range(5):
        chart = charts.nth(i)
        chart.scroll_into_view_if_needed()
        chart.locator(".drawn svg").wait_for()
        with page.expect_download() as saved:
            chart.locator("[data-svg]").click()
        text = Path(str(saved.value.path())).read_text()
        assert saved.value.suggested_filename.endswith(".svg")
        assert text.startswith("<svg")
        assert text.count("<path") > 5


@pytest.mark.parametrize("cost", ["memory", "parameters", "time", "latency"])
def test_a_point_stands_where_its_value_is(page: Any, cost: str) -> None:
    page.select_option(f"{NOW} [data-axis]", cost)
    page.wait_for_timeout(600)
    off = page.evaluate(
        """() => {
          const view = document.querySelector('.result:not([hidden]) figure[data-chart=scores]').view.view, found = [];
          const [x, y] = [view.scale('x'), view.scale('y')];
          const visit = (item) => {
            const off = (i) => Math.hypot(i.x - x(i.datum.x), i.y - y(i.datum.y));
            if (item.marktype === 'symbol') found.push(...item.items.map(off));
            for (const inner of item.items || []) if (inner.items) visit(inner);
          };
          visit(view.scenegraph().root);
          return found;
        }"""
    )
    assert len(off) == 19
    assert max(off) < 1e-6


def test_a_figure_without_those_behind_shows_the_others_larger(page: Any) -> None:
    names = f"{NOW} figure[data-chart=scores] svg text"
    assert "linear_probe" in page.locator(names).all_text_contents()
    page.click(f"{NOW} button:has-text('Without those surely behind')")
    page.wait_for_timeout(600)
    shown = page.locator(names).all_text_contents()
    assert "linear_probe" not in shown
    assert {"lora", "full"} <= set(shown)


def test_the_other_figure_shows_methods_in_the_order_of_the_report(page: Any) -> None:
    page.click(f"{NOW} [data-figure=forest]")
    page.wait_for_timeout(600)
    texts = page.locator(f"{NOW} figure[data-chart=scores] svg text").all_text_contents()
    names = [t for t in texts if t in ("full", "lora", "qlora", "adapter")]
    assert names == ["full", "lora", "qlora", "adapter"]


def test_where_lower_is_better_the_figure_does_not_call_up_better(opened: Any, tmp_path: Path) -> None:
    factories.write_all(tmp_path, factories.perplexities())
    page = opened(site.write_page(tmp_path, tmp_path / "page.html").path)
    said = page.inner_text(f"{NOW} figure[data-chart=scores] figcaption")
    assert said.startswith("Down and to the left is better.")
    assert "margin above the best" in said


def test_a_table_without_families_has_the_order_of_the_report(page: Any) -> None:
    page.click(f"{NOW} button:has-text('Group by family')")
    assert labels(page)[:4] == ["full", "lora", "qlora", "adapter"]


def test_a_line_of_the_learning_curves_and_a_shape_of_the_latency_are_chosen(page: Any) -> None:
    for kind, value in (("loss", "dora"), ("latency", None)):
        chart = page.locator(f"{NOW} figure[data-chart={kind}]")
        chart.scroll_into_view_if_needed()
        chart.locator("svg").wait_for()
        before = chart.locator("svg").inner_html()
        options = chart.locator("select option").evaluate_all("all => all.map(o => o.value)")
        chart.locator("select").select_option(value or options[-1])
        page.wait_for_timeout(400)
        assert chart.locator("svg").inner_html() != before


def test_a_method_whose_cost_was_not_measured_is_not_said_to_fit(opened: Any, files: Files) -> None:
    page = opened(files("decided_small"))
    rows = page.locator(f"{NOW} table.scores tbody tr[data-label]").count()
    page.evaluate("location.hash += '&time=1000'")
    page.wait_for_function(f"document.querySelectorAll('.result:not([hidden]) table.scores tr.out').length === {rows}")


def test_limits_turn_points_and_rows_grey(page: Any) -> None:
    page.fill(f"{NOW} input[data-limit=memory]", "150")
    out = page.locator(f"{NOW} table.scores tr.out").evaluate_all(LABELS)
    assert {"full", "galore"} <= set(out)
    assert "lora" not in out
    page.wait_for_timeout(500)
    faint = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--faint').trim()")
    fills = page.locator(f"{NOW} figure[data-chart=scores] svg path[fill='{faint}']")
    assert fills.count() >= len(out)
    slider = page.locator(f"{NOW} input[data-slider=memory]")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(f"{NOW} table.scores tr.out").count() == 0


def test_hostile_names_run_nothing(opened: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    evil = "</script><img src=x onerror=alert(1)><script>alert(2)</script>\"'{chosen}"
    methods = [factories.method_spec("full"), replace(factories.method_spec("lora"), label=evil)]
    bodies = [
        factories.run(m.label, seed, 0.6 + seed / 50, method=m, task=evil, experiment=evil)
        for m in methods
        for seed in (0, 1, 2)
    ]
    factories.write_all(tmp_path / "r", bodies)
    page = opened(site.write_page(tmp_path / "r", tmp_path / "page.html").path)
    page.click("[data-figure=forest]")
    for figure in page.locator("figure.chart:not([hidden])").all():
        figure.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.locator("table.scores td").first.hover()
    assert page.locator("img").count() == 0
    assert evil in page.inner_text("table.scores")


def test_a_phone_starts_with_the_figure_that_has_room(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), TASK, PHONE)
    assert page.locator(f"{NOW} [data-figure=forest]").get_attribute("aria-pressed") == "true"


def test_a_site_sets_its_experiments_side_by_side(opened: Any, tmp_path: Path) -> None:
    factories.write_all(tmp_path / "one", factories.grid(["full", "lora", "ia3"]))
    factories.write_all(tmp_path / "two", factories.grid(["full", "prefix"], experiment="other"))
    page = opened(site.write([tmp_path / "one", tmp_path / "two"], tmp_path / "site").path, "")
    shown = "#beside .scroll:not([hidden])"
    rows = f"{shown} tbody tr:not([hidden]) th"
    assert page.locator(f"{shown} caption").all_inner_texts() == ["score"]
    assert page.locator(rows).all_inner_texts() == ["full", "lora", "prefix", "ia3"]
    page.get_by_label("one").uncheck()
    assert page.locator(rows).all_inner_texts() == ["full", "prefix"]
    page.select_option("#measure", "memory")
    assert page.locator(f"{shown} caption").all_inner_texts() == ["peak memory"]
    page.get_by_label("one").check()
    page.fill("#find", "lor")
    assert page.locator(rows).all_inner_texts() == ["lora"]
    page.fill("#find", "xyz")
    assert page.inner_text("#beside .nothing").startswith("No method matches “xyz”.")
    page.click("#beside .nothing button")
    assert page.inner_text("#beside .nothing") == ""
    assert "lora" in page.locator(rows).all_inner_texts()
