"""`peftbench page`: one page of one results directory, a site of several."""

from __future__ import annotations

from pathlib import Path

import factories
import pages
from commands import Call

from peftbench.report import site


def results(folder: Path, experiment: str = "quickstart") -> Path:
    factories.write_all(folder, factories.grid(["full", "lora"], 2, experiment=experiment))
    return folder


def test_a_page_lies_beside_the_report_and_its_links_lead_to_the_records(call: Call, tmp_path: Path) -> None:
    results(tmp_path / "r")
    done = call("page", "r")
    assert (done.code, done.out) == (0, "page: r/report/index.html\n")
    page = pages.Page((tmp_path / "r/report/index.html").read_bytes())
    links = [given["href"] for tag, given in page.tags if tag == "a" and str(given["href"]).endswith(".json")]
    assert links
    assert all((tmp_path / "r/report" / str(link)).is_file() for link in links)


def test_a_page_elsewhere_still_leads_to_its_records(call: Call, tmp_path: Path) -> None:
    results(tmp_path / "a b" / "r")
    assert call("page", "a b/r", "--out", "x/y/mine.html").code == 0
    page = pages.Page((tmp_path / "x/y/mine.html").read_bytes())
    assert page.facts["sources"]["quickstart--embedded_question_type"]["runs"] == "../../a%20b/r/runs"


def test_a_site_lists_each_result_set_with_its_verdicts(call: Call, tmp_path: Path) -> None:
    results(tmp_path / "one", "first"), results(tmp_path / "two", "second"), (tmp_path / "none").mkdir()
    done = call("page", "one", "two", "none", "--out", "site")
    assert done.code == 0
    assert "none: no records" in done.err
    assert sorted(p.name for p in (tmp_path / "site").iterdir()) == ["index.html", "one.html", "two.html"]
    index = pages.Page((tmp_path / "site/index.html").read_bytes())
    assert (index.loads, index.unbalanced) == ([], [])
    links = [str(given["href"]).partition("#") for tag, given in index.tags if tag == "a"]
    assert {link for link, _, _ in links} == {"", "one.html", "two.html"}
    assert {place for link, _, place in links if not link} == {"verdicts", "beside"}
    for link, _, place in links:
        if not link:
            continue
        page = pages.Page((tmp_path / "site" / link).read_bytes())
        assert not place or place.removeprefix("task=") in [given.get("id") for _, given in page.tags]
        first = next(iter(page.facts["tables"].values()))["sentences"][0]
        assert first in index.text


def test_results_of_one_name_get_a_page_each(call: Call, tmp_path: Path) -> None:
    results(tmp_path / "a" / "r"), results(tmp_path / "b" / "R"), results(tmp_path / "index")
    assert call("page", "a/r", "b/R", "index", "--out", "s").code == 0
    names = [p.name.casefold() for p in (tmp_path / "s").iterdir()]
    assert len(set(names)) == len(names) == 4


def test_mistakes_are_named(call: Call, tmp_path: Path) -> None:
    results(tmp_path / "r")
    (tmp_path / "file").write_text("mine")
    for arguments, said in (
        (["nowhere"], "nowhere"),
        (["nowhere", "none"], "no records"),
        (["r", "--out", "."], "name the file"),
        (["r", "r2", "--out", "file"], "no folder"),
    ):
        done = call("page", *arguments)
        assert (done.code, said in done.err) == (2, True), done.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_site_without_links_names_its_records(tmp_path: Path) -> None:
    results(tmp_path / "one", "first"), results(tmp_path / "two", "second")
    index = site.write([tmp_path / "one", tmp_path / "two"], tmp_path / "site", linked=False).path
    record = next((tmp_path / "one" / "runs").iterdir()).name
    text = (index.parent / "one.html").read_text()
    assert record in text
    assert f"runs/{record}" not in text
    assert f">{record}<" in text
