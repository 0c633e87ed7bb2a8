"""The page for every reader: on a phone, in the dark, without scripts, without sight, in a hurry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import pytest
from browsing import PHONE, REFERENCE, WIDE

from peftbench.report import site
from peftbench.report.web import bundle

pytestmark = pytest.mark.browser

Files = Callable[[str], Path]
AXE = Path(__file__).parent / "axe/axe.min.js"
SETS = ("embedded_small", "quickstart", "data_size", "nlg_small", "sweep_quickstart", "lora_table1_encoder")
SHAPES = {"wide": (WIDE, "light"), "phone": (PHONE, "light"), "dark": (WIDE, "dark")}
RUN = """axe.run(document, {resultTypes: ['violations']}).then(
  r => r.violations.map(v => [v.id, v.nodes.length, v.nodes[0].html]))"""


def results(page: Any) -> list[str]:
    found: list[str] = page.evaluate("[...document.querySelectorAll('section.result')].map(s => s.id)")
    return found


def show(page: Any, slug: str) -> None:
    page.evaluate("slug => { location.hash = 'task=' + slug }", slug)
    page.wait_for_function("slug => !document.getElementById(slug).hidden", arg=slug)
    for figure in page.locator(".result:not([hidden]) figure.chart:not([hidden])").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".drawn svg").wait_for()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["embedded_small", "data_size", "nlg_small", "lora_table1_encoder"])
def test_axe_finds_nothing(opened: Any, files: Files, name: str, shape: str) -> None:
    viewport, scheme = SHAPES[shape]
    page = opened(files(name), "", viewport, color_scheme=scheme)
    page.add_script_tag(content=AXE.read_text())
    for slug in results(page)[:2]:
        show(page, slug)
        for fold in page.locator(".result:not([hidden]) details.fold").all():
            fold.evaluate("d => { d.open = true }")
        assert page.evaluate(RUN) == []


@pytest.mark.parametrize("name", SETS)
def test_a_phone_scrolls_within_tables_and_never_the_page(opened: Any, files: Files, name: str) -> None:
    page = opened(files(name), "", PHONE)
    for slug in results(page):
        show(page, slug)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wide = page.evaluate(
            """[...document.querySelectorAll('.result:not([hidden]) *')].filter(e => {
                 const box = e.getBoundingClientRect();
                 return box.width && box.right > 391 && !e.closest('.scroll, .drawn, .off, pre');
               }).map(e => e.outerHTML.slice(0, 90))"""
        )
        assert wide == []


def test_a_long_label_without_spaces_does_not_widen_the_page(opened: Any, tmp_path: Path) -> None:
    long = "a_very_long_label_" * 8
    method = factories.method_spec(long, hyper={"rank": 4})
    bodies = [factories.run("full", seed) for seed in range(3)]
    factories.write_all(tmp_path, [*bodies, *(factories.run(long, seed, method=method) for seed in range(3))])
    page = opened(site.write_page(tmp_path, tmp_path / "page.html").path, "", PHONE)
    assert long in page.inner_text(".result:not([hidden]) .verdict")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_dark_is_dark_and_charts_follow(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), color_scheme="dark")
    rgb = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(v) for v in rgb[4:-1].split(",")) < 60
    page.locator("figure[data-chart=scores] svg").first.wait_for()
    ink = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()")
    assert page.locator(f"figure[data-chart=scores] svg [fill='{ink}']").count() > 5
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(500)
    assert page.locator(f"figure[data-chart=scores] svg [fill='{ink}']").count() == 0


def test_without_scripts_every_table_and_verdict_and_a_figure_each_are_there(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), java_script_enabled=False)
    assert page.locator("section.result:visible").count() == 5
    assert page.locator(".verdict .lead:visible").count() == 5
    assert page.locator("table.scores:visible").count() == 5
    assert page.locator("table.pairs:visible").count() == 4
    assert page.locator("noscript svg, .picture svg").count() == 5
    assert page.locator("button:visible, select:visible, input:visible").count() == 0


def test_the_first_view_comes_within_a_second(opened: Any, files: Files) -> None:
    path = files("embedded_small")
    assert path.stat().st_size < 3 * 2**20
    first = []
    for _ in range(3):
        page = opened(path)
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        first.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    assert min(first) < 1000, "milliseconds"


def test_the_focus_is_seen(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"))
    for _ in range(4):
        page.keyboard.press("Tab")
    style = page.evaluate(
        "(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))"
    )
    assert style[0] != "none"
    assert style[1] >= 2


def test_a_site_leads_to_its_pages(opened: Any, tmp_path: Path) -> None:
    made = site.write([REFERENCE / "quickstart", REFERENCE / "lora_table1_encoder"], tmp_path / "site")
    page = opened(made.path, "", PHONE, java_script_enabled=False)
    addresses = [str(a.get_attribute("href")) for a in page.locator("a").all()]
    links = [Path(address.partition("#")[0]) for address in addresses if not address.startswith("#")]
    assert len(links) > 3
    assert all((made.path.parent / link).is_file() for link in links)
    assert page.locator("main").bounding_box()["width"] <= 390


def test_without_the_scripts_of_charts_the_rest_works(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "scripts", lambda: "")
    page = opened(site.write_page(REFERENCE / "decided_small", tmp_path / "page.html").path)
    assert page.locator(".picture svg").first.is_visible()
    assert page.locator("figure.chart:visible").count() == 0
    page.fill(".result:not([hidden]) input[data-limit=memory]", "200")
    assert page.locator(".result:not([hidden]) table.scores tr.out").count() == 1
