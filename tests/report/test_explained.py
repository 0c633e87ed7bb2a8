"""`explain`: the number that a table prints follows from the raw values that it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import pytest
from typer.testing import CliRunner

from peftbench import api
from peftbench.cli.app import app
from peftbench.errors import UserError
from peftbench.report.tables import explained
from peftbench.report.tables.explained import NUMBER, Cell

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "results" / "reference" / "quickstart"


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return api.report(QUICKSTART).cells()


def places(number: str) -> int:
    return len(number.partition(".")[2])


@pytest.mark.slow
def test_every_printed_number_follows_from_its_raw_values(cells: list[Cell]) -> None:
    tried = 0
    for cell in cells:
        origin = cell.origin()
        found = NUMBER.findall(cell.printed.replace("−", "-"))
        if (
            origin.value is None
            or not found
            or cell.column in ("size", "better", "tied", "p")
            or "front" in cell.column
        ):
            continue
        printed = float(found[0].replace(",", ""))
        assert printed == pytest.approx(origin.value / origin.unit, abs=0.51 * 10 ** -places(found[0])), cell.name
        tried += 1
    assert tried > 500


@pytest.mark.slow
def test_the_raw_values_stand_in_the_files_that_are_named(cells: list[Cell]) -> None:
    tried = 0
    for cell in cells:
        if cell.column in ("score", "memory", "trainable", "difference") and "average" not in cell.table:
            for raw in cell.origin().raw:
                at = json.loads(raw.path.read_text())
                for key in raw.field.rpartition(": ")[2].split("."):
                    at = at[key]
                assert at == raw.value, raw
                tried += 1
    assert tried > 200


@pytest.mark.slow
def test_a_row_and_a_column_or_a_number_as_printed_finds_its_cells(cells: list[Cell]) -> None:
    by_name = explained.chosen(cells, "lora score", task="embedded/movie_sentiment")
    assert [cell.printed for cell in by_name] == ["0.776 [0.682, 0.870] (2)"]
    assert by_name[0] in explained.chosen(cells, "0.776")
    assert by_name[0] in explained.chosen(cells, "0.682")
    assert all("22,565,376" in cell.printed for cell in explained.chosen(cells, "22,565,376"))
    assert any(cell.printed.startswith("−") for cell in explained.chosen(cells, "−0.182"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("lora scor", "unknown column of lora 'scor'; did you mean 'score'?"),
        ("lroa score", "unknown cell 'lroa score'"),
        ("0.1234", "no cell prints this number"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(cells: list[Cell], what: str, says: str) -> None:
    with pytest.raises(UserError, match=r"Valid|as it is printed") as error:
        explained.chosen(cells, what)
    assert says in str(error.value)


def test_the_command_says_the_formula_the_records_and_the_computation(tmp_path: Path) -> None:
    factories.write_all(tmp_path, factories.grid(["full", "lora"]))
    printed = CliRunner().invoke(app, ["explain", str(tmp_path), "lora", "memory"]).output
    assert "The largest peak of a training step over the seeds." in printed
    assert printed.count("memory.peak_bytes = ") == 2
    rows = json.loads(CliRunner().invoke(app, ["explain", str(tmp_path), "lora", "score", "--json"]).output)
    assert [row["row"] for row in rows] == ["lora"]
    assert rows[0]["value"] == pytest.approx(sum(r["value"] for r in rows[0]["raw"]) / len(rows[0]["raw"]))


def test_without_a_directory_the_command_says_how_it_is_called(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["explain", str(tmp_path / "nowhere"), "1"])
    assert isinstance(ran.exception, UserError)
    assert "explain results/quickstart lora score" in str(ran.exception)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "explain: nothing is given."),
        (["nowhere", "lora"], "none of this is a results directory"),
        (["RESULTS"], "which number? Rows: full, lora. Columns: score,"),
    ],
)
def test_what_is_missing_is_named_with_an_example(
    call: Callable[..., Any], tmp_path: Path, given: list[str], said: str
) -> None:
    factories.write_all(tmp_path / "r", factories.grid(["full", "lora"]))
    done = call("explain", *(str(tmp_path / "r") if word == "RESULTS" else word for word in given))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: explain")
    assert said in done.err
    assert "peftbench explain results/quickstart lora score" in done.err
    assert "Usage" not in done.err
