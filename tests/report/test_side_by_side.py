"""Several result sets side by side in the index of a site."""

from __future__ import annotations

from pathlib import Path

import factories
import pytest

from peftbench.report import assemble, site
from peftbench.report.data import verdicts
from peftbench.report.web import costs, side_by_side
from peftbench.report.web.side_by_side import SideBySide


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    factories.write_all(one, factories.grid(["full", "lora", "ia3"]))
    tasks = {"embedded/question_type": None, "embedded/sms_spam": None}
    factories.write_all(two, factories.grid(["prefix", "lora"], tasks=tasks, experiment="other"))
    return [one, two]


def beside(sets: list[Path]) -> SideBySide:
    found = side_by_side.of([(f"{s.name}.html", s.name, assemble.load(s).comparisons) for s in sets])
    assert found is not None
    return found


def test_every_table_is_a_column_and_every_method_one_row(sets: list[Path]) -> None:
    found = beside(sets)
    assert [(c.experiment, c.number) for c in found.columns] == [("one", 0), ("two", 1), ("two", 1)]
    assert all(c.address.startswith(f"{c.experiment}.html#task=") for c in found.columns)
    for measure in found.measures:
        assert [row.label for row in measure.rows] == ["full", "lora", "prefix", "ia3"]  # by family
        assert {len(row.cells) for row in measure.rows} == {3}


def test_a_cell_is_what_the_table_of_its_set_says(sets: list[Path]) -> None:
    found = beside(sets)
    tables = [c for s in sets for c in assemble.load(s).comparisons]
    scores = next(m for m in found.measures if m.key == "score")
    memory = next(m for m in found.measures if m.key == "memory")
    for number, c in enumerate(tables):
        entries = {e.label: e for e in c.entries}
        for row, of_memory in zip(scores.rows, memory.rows, strict=True):
            cell = row.cells[number]
            if row.label not in entries:
                assert (cell.text, cell.is_tied, of_memory.cells[number].text) == ("", False, "")
                continue
            assert cell.text == costs.score(c, entries[row.label])
            assert cell.is_tied == bool(verdicts.of(c)[row.label].tied)
            assert of_memory.cells[number].text == costs.amount(entries[row.label], "memory")


def test_one_table_has_nothing_beside_it(sets: list[Path], tmp_path: Path) -> None:
    assert side_by_side.of([("one.html", "one", assemble.load(sets[0]).comparisons)]) is None
    page = site.write([sets[0]], tmp_path / "site").path.read_text()
    assert "Side by side" not in page


def test_the_index_is_readable_without_scripts(sets: list[Path], tmp_path: Path) -> None:
    page = site.write(sets, tmp_path / "site").path.read_text()
    head, script = page.split("<script>")
    assert "Side by side" in head
    assert head.count("<table") == len(beside(sets).measures)  # all measures stand there, none hidden by the markup
    assert 'data-measure="score" tabindex' in head
    assert "hidden" in script
