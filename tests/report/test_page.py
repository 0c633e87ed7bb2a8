"""The page of a report: it needs no network, says what the report says, and survives whatever records hold."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import pages
import pytest

from peftbench.report import assemble
from peftbench.report.data import answer
from peftbench.report.tables import columns
from peftbench.report.web import bundle, sections, wording

EVIL = "</script><b onclick=alert(1)>'\"&{chosen}<!-- \u202e"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, eight methods, a pass, trials, and a run that failed."""
    made = tmp_path_factory.mktemp("page")
    tasks = dict.fromkeys(("embedded/question_type", "embedded/movie_sentiment"))
    bodies = factories.grid(seeds=3, tasks=tasks)
    bodies += [factories.profile(task=task, work=True) for task in tasks]
    bodies += [factories.as_trial(factories.run("lora", 9, lr=lr), n) for n, lr in enumerate((1e-3, 5e-3), 1)]
    bodies.append(factories.run("lora", 7, status="diverged", reason="the loss is not finite"))
    factories.write_all(made, bodies)
    return made


@pytest.fixture(scope="module")
def content(folder: Path) -> bytes:
    return assemble.page(folder)


@pytest.fixture(scope="module")
def page(content: bytes) -> pages.Page:
    return pages.Page(content)


def test_a_browser_has_nothing_to_fetch(page: pages.Page) -> None:
    assert page.loads == []


def test_every_element_is_closed(page: pages.Page) -> None:
    assert page.unbalanced == []


def test_no_two_elements_have_one_id(page: pages.Page) -> None:
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(ids) == len(set(ids))


def test_the_same_records_give_the_same_bytes(folder: Path, content: bytes) -> None:
    assert assemble.page(folder) == content


def test_a_page_stays_below_its_limit_beside_the_scripts(content: bytes) -> None:
    assert len(content) - len(bundle.scripts().encode()) < 400_000


def test_the_table_has_every_cell_that_the_report_has(folder: Path, page: pages.Page) -> None:
    for c in assemble.load(folder).comparisons:
        for e in c.entries:
            for column in columns.with_values(columns.columns(c), c.entries):
                assert column.cell(e) in page.texts


def test_the_verdict_is_readable_without_scripts(folder: Path, page: pages.Page) -> None:
    for c in assemble.load(folder).comparisons:
        sentences = wording.of(c)
        assert 1 <= len(sentences) <= 3
        assert all(sentence in page.text for sentence in sentences)


def test_a_failed_run_is_named_with_its_reason_and_its_record(page: pages.Page) -> None:
    assert "lora, seed 7 : diverged. the loss is not finite" in page.text
    (name,) = [t for t in page.texts if t.startswith("lora--") and "--s7--" in t and t.endswith(".json")][:1]
    assert ("a", {"href": f"../runs/{name}"}) in page.tags


def test_each_number_names_the_records_that_it_comes_from(folder: Path, page: pages.Page) -> None:
    stored = {path.name for path in (folder / "runs").iterdir()}
    for of_table in page.facts["sources"].values():
        assert of_table["runs"] == "../runs"
        for source in of_table["of"].values():
            assert source["runs"]
            assert {*source["runs"], *source["pass"]} <= stored


def test_the_block_has_each_rows_score_and_interval(folder: Path, page: pages.Page) -> None:
    for c in assemble.load(folder).comparisons:
        table = page.facts["tables"][c.slug]
        assert [row["label"] for row in table["rows"]] == [e.label for e in c.entries]
        assert [row["mean"] for row in table["rows"]] == [e.mean for e in c.entries]
        assert [row["costs"]["memory"] for row in table["rows"]] == [e.peak_bytes for e in c.entries]
        assert table["margin"] == 0.02


def test_trials_and_losses_are_in_the_block(page: pages.Page) -> None:
    series = page.facts["series"]["quickstart--embedded_question_type"]
    assert [(row["x"], row["chosen"]) for row in series["tuning"][0]["rows"]].count((5e-3, True)) <= 1
    assert {curve["label"] for curve in series["loss"]["curves"]} >= {"lora", "full", "lora, seed 7: diverged"}
    assert sum(series["memory"][0][part] for part in page.facts["parts"]) == pytest.approx(series["memory"][0]["peak"])


def hostile() -> list[dict[str, Any]]:
    methods = [factories.method_spec("full"), replace(factories.method_spec("lora"), label=EVIL)]
    bodies = [
        factories.run(m.label, seed, 0.6 + seed / 50, method=m, task=EVIL, experiment=EVIL)
        for m in methods
        for seed in (0, 1)
    ]
    failed = factories.run("lora", 5, status="error", reason=EVIL, task=EVIL, experiment=EVIL)
    samples = [{"prompt": EVIL, "prediction": EVIL, "reference": EVIL}]
    return [{**bodies[0], "samples": samples}, *bodies[1:], failed]


def test_a_hostile_name_is_text_and_nothing_else(tmp_path: Path) -> None:
    page = pages.of(tmp_path, hostile())
    assert page.unbalanced == []
    assert page.loads == []
    assert not [tag for tag, given in page.tags if "onclick" in given]
    shown = EVIL.replace("\u202e", "\\u202e")
    (table,) = page.facts["tables"].values()
    assert [row["label"] for row in table["rows"]] == ["full", shown, "lora"]
    assert shown in page.texts
    assert "\u202e" not in page.text


def test_scripts_of_the_charts_cannot_end_their_element() -> None:
    assert "</script" not in bundle.scripts()
    assert "<!--" not in bundle.scripts()


ODD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one method": (factories.grid(["lora"], 3), "lora is the only method with a score"),
    "one seed": (factories.grid(["full", "lora"], 1), "fewer than two methods have two seeds"),
    "one run": ([factories.run("lora")], "lora is the only method with a score"),
    "failed runs alone": (
        [factories.run(label, s, status="oom", reason="no memory") for label in ("full", "lora") for s in (0, 1)],
        "none of the 4 runs has a score",
    ),
    "no reference": (factories.grid(["lora", "dora"], 3), "No finished run of the reference full"),
    "a task that was not learned": (factories.grid(["full", "lora"], 3, majority=0.99), "not learned"),
    "a metric without a range": (
        [
            factories.run(label, s, 30.0 + len(label) + s / 7, metric="rmse", direction="min", majority=99.0)
            for label in ("full", "lora")
            for s in (0, 1, 2)
        ],
        "of rmse",
    ),
    "a profile alone": ([factories.profile(["full", "lora"], work=True)], "peftbench report"),
    "trials alone": ([factories.as_trial(factories.run("lora"), 1)], "Tuning"),
    "undefined scores": (
        [{**b, "metrics": {**b["metrics"], "test": {"accuracy": None}}} for b in factories.grid(["full", "lora"], 2)],
        "none of the 4 runs has a score",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_a_page_of_odd_records_says_what_is_missing(tmp_path: Path, what: str) -> None:
    bodies, said = ODD[what]
    if what == "a profile alone":
        for row in bodies[0]["rows"]:
            for at in row["latency"]:
                at["length"] = 12
    page = pages.of(tmp_path, bodies)
    assert page.unbalanced == []
    assert said in page.text


def test_without_records_there_is_no_page(tmp_path: Path) -> None:
    from peftbench.errors import UserError

    with pytest.raises(UserError, match="no records"):
        assemble.page(tmp_path)


def certain(scores: dict[str, float]) -> list[dict[str, Any]]:
    """Runs whose scores are all that is known of them, and hardly differ between seeds."""
    noise = (0.001, -0.0012, 0.0004, 0.0, -0.0007)
    return [
        factories.run(label, seed, value + (-1) ** i * noise[seed - i], metric="pearson", majority=None)
        for i, (label, value) in enumerate(scores.items())
        for seed in range(5)
    ]


def test_seeds_that_suffice_give_an_answer_with_its_costs(tmp_path: Path) -> None:
    scores = {"full": 0.80, "lora": 0.799, "ia3": 0.60}
    factories.write_all(tmp_path, [*certain(scores), factories.profile(list(scores), work=True)])
    (c,) = assemble.load(tmp_path).comparisons
    first, second, third = wording.of(c)
    assert first.startswith("Take lora: it has the least peak memory of the 2 methods")
    assert "2 points of pearson (full and lora)" in first
    assert second.startswith("lora trains 73,728 parameters (0.33 % of full’s 22,565,376), needs 301 MiB")
    assert "takes 71 ms a step (0.75× [0.72, 0.77])" in second
    assert re.search(r"answers one text in [\d.]+ ms \([\d.]+×\), or merged in [\d.]+ ms", second)
    assert re.search(r"5 seeds.*2 within the margin, 1 surely behind\.", third)


def test_where_the_reference_is_the_answer_the_next_best_is_named(tmp_path: Path) -> None:
    factories.write_all(tmp_path, certain({"full": 0.80, "lora": 0.70}))
    (c,) = assemble.load(tmp_path).comparisons
    assert answer.of(c).chosen == "full"  # type: ignore[union-attr]
    assert "Of the others, lora has the best score, 0.700" in wording.of(c)[1]


def test_where_lower_is_better_the_lowest_score_is_not_called_the_highest(tmp_path: Path) -> None:
    factories.write_all(tmp_path, factories.perplexities())
    (c,) = assemble.load(tmp_path).comparisons
    said = " ".join(wording.of(c))
    assert "best score is that of full, 11.03" in said
    assert "highest" not in said


def test_the_matrix_says_of_two_rows_the_same_from_both_sides(folder: Path) -> None:
    for c in assemble.load(folder).comparisons:
        grid = sections.matrix(c)
        turned = {"better": "worse", "worse": "better"}
        for i, a in enumerate(grid):
            for j, b in enumerate(grid):
                state = grid[a][j][0]
                assert grid[b][i][0] == turned.get(state, state)


def test_figures_as_svg_may_be_left_out_of_a_repository_but_not_be_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    factories.write_all(folder, factories.grid(["full", "lora"]))
    loaded = assemble.load(folder)
    drawn = [path for path in assemble.write(folder, loaded=loaded) if path.suffix == ".svg"]
    drawn[0].write_text("edited")
    name = drawn[0].relative_to(folder / "report").as_posix()
    assert [line.partition(":")[0] for line in assemble.check(folder, None, loaded)] == [name]
    for path in drawn:
        path.unlink()
    assert assemble.check(folder, None, loaded) == []
    drawn[0].with_suffix(".png").unlink()
    missing = drawn[0].with_suffix(".png").relative_to(folder / "report").as_posix()
    assert assemble.check(folder, None, loaded) == [f"{missing}: missing"]


def test_the_page_may_be_left_out_of_a_repository_but_not_be_wrong(tmp_path: Path) -> None:
    folder, out = tmp_path / "results", tmp_path / "report"
    factories.write_all(folder, factories.grid(["full", "lora"]))
    loaded = assemble.load(folder)
    written = assemble.write(folder, out, loaded)
    assert written[1] == out / "index.html"
    assert "index.html" in (out / "files.txt").read_text().split()
    (out / "index.html").write_text("edited")
    assert assemble.check(folder, out, loaded) == ["index.html: line 1: 'edited' kept, '<!doctype html>' made"]
    (out / "index.html").unlink()
    assert assemble.check(folder, out, loaded) == []


def test_where_scripts_cannot_be_bundled_the_page_says_so_and_has_its_figures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(bundle, "PROGRAM", "import os; os.abort()")  # as an engine does without address space
    bundle.scripts.cache_clear()
    try:
        page = pages.Page(assemble.page(folder))
    finally:
        bundle.scripts.cache_clear()
    assert page.unbalanced == []
    assert "vl-convert could not bundle their scripts" in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 3
