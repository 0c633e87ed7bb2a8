"""The pages of methods are what the classes and records give, and the built site needs nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from peftbench.method import registry

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
METHODS = ROOT / "docs" / "methods"
EXTERNAL = re.compile(
    r"<(?:script|img|iframe|link|source|video|object)\b[^>]*\b(?:src|href|data)=[\"']?(?:https?:)?//[^>]*>"
)


@pytest.fixture(scope="module")
def gallery() -> Any:
    spec = importlib.util.spec_from_file_location("method_gallery_script", ROOT / "scripts" / "method_gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def made(gallery: Any) -> dict[str, str]:
    files: dict[str, str] = gallery.files()
    return files


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    place = tmp_path_factory.mktemp("site")
    build.build(config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(place)))
    return place


def test_the_committed_gallery_is_the_one_that_classes_and_records_give(made: dict[str, str]) -> None:
    there = {p.relative_to(METHODS).as_posix(): p for p in METHODS.rglob("*") if p.suffix in (".md", ".svg")}
    assert set(there) == set(made)
    assert [name for name, path in there.items() if path.read_text(encoding="utf-8") != made[name]] == []


def test_each_method_of_the_project_has_a_card_and_a_figure(made: dict[str, str]) -> None:
    own = {n for n, cls in registry.discover().items() if registry.source(cls).parent == ROOT / "methods"}
    assert len(own) >= 18
    assert {f"{n}.md" for n in own} | {f"figures/{n}.svg" for n in own} <= set(made)
    assert [n for n in own if f"]({n}.md)" not in made["index.md"]] == []


def test_a_card_has_its_score_its_record_and_its_prediction(made: dict[str, str]) -> None:
    card = made["lora.md"]
    assert "| lora | 0.980 [0.948, 1.011] | 3.5 | 82,944 |" in card
    (record,) = re.findall(r"\]\(\.\./\.\./(results/reference/embedded_small/runs/lora--[^)]*\.json)\)", card)
    assert (ROOT / record).is_file()
    assert "3,407,872 numbers train" in card  # r 8 at q and v of 32 layers: 32 * 8 * (2 * 4096 + 4096 + 1024)
    assert "The model is refused: bitfit trains the biases" in made["bitfit.md"]


def test_an_estimate_on_a_card_is_what_the_program_predicts_now(gallery: Any) -> None:
    spec = importlib.util.spec_from_file_location("method_estimates_script", ROOT / "scripts" / "method_estimates.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert gallery.records.read().estimates["methods"]["ia3"] == script.estimated("ia3")


def test_figures_are_well_formed_and_load_nothing(made: dict[str, str]) -> None:
    figures = {name: text for name, text in made.items() if name.endswith(".svg")}
    for text in figures.values():
        root = ElementTree.fromstring(text)
        ids = [e.get("id") for e in root.iter() if e.get("id")]
        assert len(ids) == len(set(ids))
        assert set(re.findall(r"url\(#([\w-]+)\)", text)) <= set(ids)
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []


def test_a_figure_shows_where_the_method_acts(made: dict[str, str]) -> None:
    def description(name: str) -> str:
        return re.search(r"<desc[^>]*>(.*?)</desc>", made[f"figures/{name}.svg"], re.DOTALL)[1]  # type: ignore[index]

    assert description("lora") == "trained numbers at q and v."
    assert (
        description("qlora") == "4-bit weights at q, k, v, o, up and down; trained numbers at q, k, v, o, up and down."
    )
    assert description("full") == "every weight of the base trains."
    assert description("linear_probe") == "nothing but the task head trains."


def test_formulas_have_italic_letters_and_indices(gallery: Any) -> None:
    assert gallery.wording.formula("k -> l_k * k") == "<i>k</i> → <i>l</i><sub>k</sub> · <i>k</i>"
    assert gallery.wording.formula("(alpha/sqrt(r)) < 1") == "(<i>α</i>/√(<i>r</i>)) &lt; 1"
    assert gallery.wording.formula("lambda eta_A") == "<i>λ</i> <i>η</i><sub>A</sub>"


def test_the_first_page_gives_the_answer_of_the_readme() -> None:
    def answer(text: str) -> list[str]:
        return re.findall(r"^1\. .*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)

    readme, page = ((ROOT / p).read_text(encoding="utf-8") for p in ("README.md", "docs/index.md"))
    assert len(answer(page)) == 1
    assert answer(page) == answer(readme)


def test_the_built_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    assert {p.name: EXTERNAL.findall(text) for p in pages if EXTERNAL.search(text := p.read_text())} == {}
    styles = "\n".join(p.read_text() for p in site.rglob("*.css"))
    assert re.findall(r"@import|url\([\"']?(?:https?:)?//", styles) == []


def test_search_of_the_built_site_needs_no_server(site: Path) -> None:
    page = (site / "methods" / "lora.html").read_text()
    scripts = re.findall(r"<script src=\"([^\"]+)\"", page)
    assert scripts[0] == "../assets/iframe-worker.js"
    assert [s for s in scripts if not (site / "methods" / s).is_file()] == []
    index = (site / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = ")
    assert "methods/lora.html" in index


def test_links_between_pages_of_the_built_site_lead_to_files(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        markup = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"(?:href|src)=\"([^\"#?:]+)[\"#?]", markup):
            if page.name != "404.html" and not (page.parent / link).exists():
                broken.append((page.name, link))
    assert broken == []


def test_the_calculator_and_the_committed_sets_are_pages_of_the_site(site: Path) -> None:
    for name, place in (("calculator.html", "calculator-page.html"), ("results.html", "pages/index.html")):
        assert f'href="{place}"' in (site / name).read_text()
        assert (site / place).is_file()
    sets = {path.parent.name for path in (ROOT / "results" / "reference").glob("*/runs")}
    assert {path.stem for path in (site / "pages").glob("*.html")} >= {"embedded_small", "quickstart"} & sets


def test_every_card_stands_in_the_navigation(site: Path, made: dict[str, str]) -> None:
    page = (site / "methods" / "index.html").read_text()
    cards = [name.replace(".md", ".html") for name in made if name.endswith(".md") and name != "index.md"]
    assert [c for c in cards if f'<a href="{c}" class="md-nav__link">' not in page] == []


def test_links_to_files_that_are_no_pages_become_their_paths(site: Path) -> None:
    page = (site / "start.html").read_text()
    assert "these (<code>results/reference/quickstart/report/report.md</code>)" in page
    assert 'href="results.html"' in (site / "reviewer.html").read_text()  # results/README.md is a page of the site
    assert 'href="estimate-time.html"' in (site / "changelog.html").read_text()


def test_the_search_dialog_has_a_name(site: Path) -> None:
    dialogs = re.findall(r"<div[^>]*role=\"dialog\"[^>]*>", (site / "index.html").read_text())
    assert len(dialogs) == 1
    assert 'aria-label="Search"' in dialogs[0]
