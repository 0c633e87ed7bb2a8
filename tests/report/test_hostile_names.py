"""A report of names that a stranger chose to run something, to lead somewhere, or to look like another name."""

from __future__ import annotations

import csv
import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import factories
import pytest
from markdown import Markdown
from markdown_it import MarkdownIt

from peftbench import api
from peftbench.report import assemble

EVILS = (
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "\u202egnp.exe",
    "<script>a</script>",
    "![x](//evil)",
)
TAGS = {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "em", "a", "img", "code", "pre"}
TAGS |= {"details", "summary"}
OWN = re.compile(r"(tables|figures)/[A-Za-z0-9._-]+|verdict\.json|#[A-Za-z0-9._-]+")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def evil(place: str) -> str:
    return f"{place} {' '.join(EVILS)}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of table, with hostile names wherever a record has a text of somebody's."""
    folder, bodies = tmp_path_factory.mktemp("hostile"), []
    tasks, labels = [evil("task"), evil("task") + "2"], ["full", evil("label")]
    stand_in = {tasks[0]: None, tasks[1]: evil("stand-in")}
    for task in tasks:
        facts = {"task": task, "experiment": evil("experiment"), "stand_in_for": stand_in[task]}
        for label in labels:
            bodies += [_told(factories.run(label, seed, 0.6, **facts)) for seed in (0, 1)]
            bodies += [_trial(factories.run(label, 0, 0.6, **facts), n) for n in (1, 2)]
        bodies.append(_told(factories.run("lora", 0, status="error", reason=evil("reason"), **facts)))
        bodies.append(_with_lengths(factories.profile(labels, work=True, **facts)))
    factories.write_all(folder, [{**body, "reference": "full"} for body in bodies])
    return api.report(folder).write().parent


def _told(body: dict[str, Any]) -> dict[str, Any]:
    """A run with what a newer one says of its data, a text that it generated, and planned questions."""
    claims = [{"method": m, "against": evil("other"), "relation": None, "task": None} for m in ("full", evil("label"))]
    claims.append({"method": evil("label"), "against": "full", "relation": "not_worse", "task": None})
    asked = {"margin": 0.02, "prefer": "memory", "looks": [], "spending": "pocock", "claims": claims}
    split = {"copies": 0, "contradictory": 0, "tokens": 9, "longest": 9, "cut_texts": 0, "cut_tokens": 0}
    split |= {"rows": 9, "per_class": [5, 4]}
    data = {"classes": [evil("class"), "b"], "splits": {"train": split}, "cut_from": "end"}
    sample = dict.fromkeys(("prompt", "prediction", "reference"), evil("sample"))
    data |= {"doubled": {evil("token"): 3}, "notes": [evil("note")]}
    return {**body, "data": data, "samples": [sample], "design": asked}


def _with_lengths(body: dict[str, Any]) -> dict[str, Any]:
    """A pass whose latencies have a page and a figure of their own."""
    for row in body["rows"]:
        row["latency"] = [{**at, "length": 64, "typical": False} for at in row["latency"]]
    return body


def _trial(body: dict[str, Any], number: int) -> dict[str, Any]:
    body["spec"] |= {"space": {"lr": [1e-3, 1e-2], evil("space"): [evil("choice"), "b"]}}
    return factories.as_trial(body, number)


class _Read(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags = list[tuple[str, dict[str, str | None]]]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.slow
def test_no_page_has_a_tag_or_a_link_of_a_name(report: Path) -> None:
    pages = sorted(report.rglob("*.md"))
    kinds = {"differences", "step", "classes", "latency", "tuning", "average"}
    tried = {re.sub("-[0-9a-f]{8}$", "", path.stem.rsplit("--", 1)[-1]) for path in pages}
    assert kinds <= tried, "every kind of page"
    ours = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    docs = Markdown(extensions=["tables", "fenced_code", "toc", "attr_list"])
    for path in pages:
        page = path.read_text()
        assert not CONTROL.search(page), path
        for rendered in (ours.render(page), docs.reset().convert(page)):
            read = _Read(rendered)
            assert {tag for tag, _ in read.tags} <= TAGS, path
            assert {name for _, attributes in read.tags for name in attributes} <= {"href", "src", "alt", "id", "style"}
            links = [at[key] for _, at in read.tags for key in ("href", "src") if key in at]
            assert all(link is not None and OWN.fullmatch(link) for link in links), path
            assert "onerror" in html.unescape(rendered), "the name is shown as it was written"


@pytest.mark.slow
def test_no_picture_runs_a_script_or_fetches_anything(report: Path) -> None:
    pictures = sorted(report.rglob("*.svg"))
    assert pictures
    for path in pictures:
        assert not CONTROL.search(path.read_text()), path
        for element in ElementTree.parse(path).iter():
            assert element.tag.rsplit("}", 1)[-1] not in {"script", "a", "foreignObject"}, path
            for name, value in element.attrib.items():
                assert not name.rsplit("}", 1)[-1].startswith("on"), path
                assert not name.endswith("href") or value.startswith(("#", "data:image/png;base64,")), path


@pytest.mark.slow
def test_no_sheet_and_no_latex_table_has_a_control_character_or_a_raw_command(report: Path) -> None:
    for path in sorted(report.rglob("*.csv")):
        assert not CONTROL.search(path.read_text()), path
        assert len({len(row) for row in csv.reader(io.StringIO(path.read_text()))}) == 1, path
    for path in sorted(report.rglob("*.tex")):
        text = path.read_text()
        assert not CONTROL.search(text), path
        assert "<img" not in text, path


@pytest.mark.slow
def test_every_file_of_the_report_has_a_plain_name(report: Path) -> None:
    names = [path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()]
    assert all(re.fullmatch(r"(tables/|figures/)?[A-Za-z0-9._-]+", name) for name in names)


@pytest.mark.slow
def test_a_terminal_and_a_notebook_show_the_names_as_text(report: Path) -> None:
    assert not CONTROL.search(assemble.text_table(report.parent))
    page = api.report(report.parent)._repr_html_()
    assert not CONTROL.search(page)
    assert "<img" not in page
    assert "<script" not in page
