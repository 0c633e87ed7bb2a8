"""The calibration of seeds until decided: its levels hold, and its page and its cells are what the code gives."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("calibrate_sequential")


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    return json.loads((ROOT / "results" / "calibration" / "sequential.json").read_text())["cells"]


def test_the_tables_of_the_page_are_those_of_the_calibration(script: Any, cells: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "statistics.md").read_text()
    assert script.replaced(page, cells) == page


def test_wrong_claims_are_at_most_nominal(cells: list[dict[str, Any]]) -> None:
    """The lower end of each Wilson interval: above the level it would be sure that the level does not hold."""
    for cell in cells:
        assert cell["best"][1] <= 0.025, cell
        assert cell["reference"][1] <= 0.025, cell
        assert cell["questions"][1] <= 0.05, cell


def test_the_calibration_has_every_cell_of_the_script(script: Any, cells: list[dict[str, Any]]) -> None:
    planned = [(t.runs.what, rows, list(looks), asks, repeats)
               for truths, rows, looks, asks, repeats in script.CELLS for t in truths]  # fmt: skip
    assert [(c["what"], c["rows"], c["looks"], c["asks"], c["repeats"]) for c in cells] == planned


@pytest.mark.slow
def test_a_cell_is_what_the_code_gives(script: Any, cells: list[dict[str, Any]]) -> None:
    """One cheap cell, from its own random stream; a number on the edge may fall otherwise on another machine."""
    truths, *how = script.CELLS[1]
    cell = next(c for c in cells if c["rows"] == how[0] and c["looks"] == list(how[1]))
    again = script.cell(truths[0], *how)
    assert again["what"] == cell["what"]
    assert again["best"][0] == pytest.approx(cell["best"][0], abs=0.003)
    assert again["reference"][0] == pytest.approx(cell["reference"][0], abs=0.003)
    assert again["seeds"] == pytest.approx(cell["seeds"], abs=0.05)


def test_wrong_claims_are_told_from_right_ones(script: Any) -> None:
    from peftbench.report.data import decisions
    from peftbench.report.data.decisions import Decisions, Row

    def d(**rows: Row) -> Decisions:
        return decisions.Decisions({r.label: r for r in rows.values()}, [], script.MARGIN, (3,), 1, {})

    import numpy as np

    gaps = np.array([0.0, -0.02, 0.0])
    right = d(a=Row("0", place_at=3, cleared={"2"}), b=Row("1", behind=True, versus="worse", place_at=3),
              c=Row("2", versus="equal"))  # fmt: skip
    assert script.wrong_claims(right, gaps) == [False] * 4
    assert script.wrong_claims(d(a=Row("0", behind=True), b=Row("1"), c=Row("2")), gaps)[:2] == [True, True]
    assert script.wrong_claims(d(a=Row("0"), b=Row("1"), c=Row("2", behind=True)), gaps)[:2] == [False, True]
    within = d(a=Row("0"), b=Row("1", cleared={"0", "2"}, place_at=3), c=Row("2"))
    assert script.wrong_claims(within, gaps)[:2] == [True, True]
    for label, versus in (("1", "equal"), ("1", "better"), ("2", "better"), ("2", "worse")):
        rows = {name: Row(name, versus=versus if name == label else None) for name in "012"}
        assert script.wrong_claims(d(**rows), gaps)[2], (label, versus)
