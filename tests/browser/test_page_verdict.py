"""What the page's scripts decide is what Python decides, at every margin and with every limit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import factories
import pytest
from msgspec import structs

from peftbench.report import assemble, site
from peftbench.report.data import decisions
from peftbench.report.data.comparison import Comparison
from peftbench.report.web import wording

pytestmark = pytest.mark.browser

Files = Callable[[str], Path]
Load = Callable[[str], assemble.ReportData]
SETS = ("embedded_small", "decided_small", "nlg_small", "glue_small", "data_size")
FIXED = ("embedded_small", "quickstart", "glue_small", "data_size")
MARGINS = (0.0, 0.5, 1.0, 1.37, 2.0, 3.3, 5.0, 6.3, 7.5, 10.0, 20.0, 45.0, 400.0)  # points
VERDICT = """[...document.querySelectorAll('section.result')].map(
  s => [s.id, [...s.querySelectorAll('.verdict p')].map(p => p.textContent)])"""
COMPUTED = """([slug, margin, cost]) => {
  const facts = JSON.parse(document.getElementById('facts').textContent);
  return Decide.verdict(facts.tables[slug], facts.text, margin, cost).sentences;
}"""


def at(c: Comparison, margin: float, prefer: str) -> list[str]:
    """The sentences that Python writes at another margin and preference."""
    return wording.of(replace(c, design=structs.replace(c.design, margin=margin, prefer=prefer)))


@pytest.mark.parametrize("name", SETS)
def test_at_the_experiments_margin_the_page_says_what_python_wrote(opened: Any, files: Files, name: str) -> None:
    before = written(files(name))
    page = opened(files(name))
    for slug in before:
        page.evaluate("slug => { location.hash = 'task=' + slug }", slug)
        page.wait_for_function("slug => !document.getElementById(slug).hidden", arg=slug)
    assert dict(page.evaluate(VERDICT)) == before


def written(path: Path) -> dict[str, list[str]]:
    """The verdicts in the file."""
    sections = re.split(r'<section class="result" id="', path.read_text())[1:]
    found = {}
    for section in sections:
        block = re.search(r'<div class="verdict".*?</div>', section, re.DOTALL)
        found[section.partition('"')[0]] = (
            [unescape(p) for p in re.findall(r"<p[^>]*>(.*?)</p>", block[0], re.DOTALL)] if block else []
        )
    return found


@pytest.mark.parametrize("name", FIXED)
def test_at_other_margins_the_scripts_write_what_python_writes(
    opened: Any, files: Files, loaded: Load, name: str
) -> None:
    page = opened(files(name))
    seen = set()
    for c in loaded(name).comparisons:
        scale = 100 if c.metric not in ("bleu", "rougeL") else 1
        for margin in (m / scale for m in MARGINS):
            for prefer in ("memory", "parameters", "time"):
                expected = at(c, margin, prefer)
                assert page.evaluate(COMPUTED, [c.slug, margin, prefer]) == expected, (c.title, margin, prefer)
                seen.add(expected[0].partition(" ")[0])
    assert seen >= {"Take", "No"}, "both kinds of verdict were compared"


def test_rows_beyond_a_limit_are_compared_with_no_longer(opened: Any, files: Files, loaded: Load) -> None:
    (c,) = [c for c in loaded("decided_small").comparisons if "question" in c.title]
    assert decisions.of(c).is_within("full")
    page = opened(files("decided_small"), f"#task={c.slug}")
    assert "Take full" in page.inner_text(".result:not([hidden]) .verdict .lead")
    page.fill(".result:not([hidden]) input[data-limit=memory]", "200")
    rows = page.locator(".result:not([hidden]) table.scores tr.out")
    assert rows.evaluate_all("rows => rows.map(r => r.dataset.label)") == ["full"]
    assert "Take ia3" in page.inner_text(".result:not([hidden]) .verdict .lead")
    assert "memory=200" in page.url
    page.click(".result:not([hidden]) [data-reset]")
    assert rows.count() == 0
    assert "Take full" in page.inner_text(".result:not([hidden]) .verdict .lead")


def test_limits_that_leave_one_method_name_it_and_compare_nothing(opened: Any, files: Files) -> None:
    page = opened(files("decided_small"), "#task=decided_small--embedded_question_type&parameters=20000")
    assert page.inner_text(".result:not([hidden]) .verdict .lead") == "Only ia3 fits these limits."
    assert "1 of 8 methods fit" in page.inner_text(".result:not([hidden]) .limits output")


def test_limits_that_no_method_meets_are_said_so(opened: Any, files: Files) -> None:
    for task in ("question_type", "average"):
        name = "decided_small--average" if task == "average" else "decided_small--embedded_question_type"
        page = opened(files("decided_small"), f"#task={name}&memory=1")
        assert page.inner_text(".result:not([hidden]) .verdict") == "No method fits these limits."


def test_a_table_without_an_answer_names_no_method_beyond_the_limits(opened: Any, tmp_path: Path) -> None:
    """One seed each: no answer. `full` has the best score and the most memory."""
    scores = {"full": 0.9, "lora": 0.8, "ia3": 0.7}
    factories.write_all(tmp_path, [factories.run(label, 0, score) for label, score in scores.items()])
    page = opened(site.write_page(tmp_path, tmp_path / "page.html").path)
    verdict = page.locator(".result:not([hidden]) .verdict")
    before = verdict.inner_text()
    assert "The best score is that of full" in before
    page.fill(".result:not([hidden]) input[data-limit=memory]", "310")
    assert "full," not in verdict.inner_text(), "it stands there as what costs are relative to"
    assert "No answer" in verdict.inner_text()
    assert "Of what fits, lora has the best score" in verdict.inner_text()
    page.fill(".result:not([hidden]) input[data-limit=memory]", "290")
    assert verdict.inner_text().startswith("Only ia3 fits these limits.")
    page.fill(".result:not([hidden]) input[data-limit=memory]", "1")
    assert verdict.inner_text() == "No method fits these limits."
    page.click(".result:not([hidden]) [data-reset]")
    assert verdict.inner_text() == before


def test_limits_that_leave_methods_without_a_score_name_none(opened: Any, tmp_path: Path) -> None:
    failed = [factories.run(label, 0, status="error", reason="it broke") for label in ("lora", "ia3")]
    factories.write_all(tmp_path, [factories.run("full", 0, 0.9), *failed])
    page = opened(site.write_page(tmp_path, tmp_path / "page.html").path)
    assert "full" in page.inner_text(".result:not([hidden]) .verdict")
    page.fill(".result:not([hidden]) input[data-limit=parameters]", "80000")
    said = page.inner_text(".result:not([hidden]) .verdict")
    assert said == "No answer: no method that fits these limits has a score."


def test_seeds_that_are_there_are_not_said_to_be_needed(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), "#task=embedded_small--average&margin=30&parameters=50000")
    said = page.inner_text(".result:not([hidden]) .verdict")
    assert "3 seeds" in said
    assert "about 2 seeds" not in said
    assert "more than the present seeds on embedded/movie_sentiment" in said


def test_the_margin_moves_by_keyboard_and_stays_in_the_address(opened: Any, files: Files) -> None:
    page = opened(files("embedded_small"), "#task=embedded_small--embedded_question_type")
    slider = page.locator(".result:not([hidden]) input[data-slider=margin]")
    before = page.inner_text(".result:not([hidden]) .verdict")
    slider.focus()
    for _ in range(100):
        slider.press("ArrowRight")
    assert page.inner_text(".result:not([hidden]) .verdict") != before
    assert page.input_value(".result:not([hidden]) input[data-limit=margin]") == "7"
    assert "margin=7" in page.url
    assert "equal within 7 points" in page.inner_text(".result:not([hidden]) [data-section=pairs]")


def test_quantiles_are_those_of_student(opened: Any, files: Files) -> None:
    from scipy.special import stdtrit

    page = opened(files("embedded_small"))
    degrees = [1, 1.5, 2, 2.7, 4, 9.3, 40, 998]
    found = page.evaluate("dfs => dfs.map(df => Power.quantile(0.975, df))", degrees)
    assert found == pytest.approx([float(stdtrit(df, 0.975)) for df in degrees], rel=1e-10)
