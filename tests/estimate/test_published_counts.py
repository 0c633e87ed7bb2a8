"""The parameter counts that papers print are the ones that our formulas give, to the printed digit, or why not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from peftbench.backbones import architectures

ROOT = Path(__file__).resolve().parents[2]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("published_counts", ROOT / "scripts" / "published_counts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


published = script()
ROWS = published.rows()
COUNTED = [
    pytest.param(
        row,
        id=f"{i:02d}-{row['source']}-{row['what']}",
        marks=pytest.mark.skipif(published.missing(row) is not None, reason=published.missing(row) or "it is there"),
    )
    for i, row in enumerate(ROWS)
]


@pytest.mark.slow
@pytest.mark.parametrize("row", COUNTED)
def test_a_published_count_is_ours_to_the_digit_or_its_difference_is_explained(row: dict[str, Any]) -> None:
    own = published.trainable(row)
    if "explained" not in row:
        assert published.as_printed(published.quantity(row, own), str(row["printed"])) == str(row["printed"])
        return
    assert own == row["ours"], "the explanation speaks of another number"
    assert not published.equal(row, own), "there is no difference to explain"
    if "plus" in row:
        assert published.equal(row, own + row["plus"]), (
            "what it says is counted besides does not make up the difference"
        )


def test_there_are_enough_rows_and_most_need_no_explanation() -> None:
    counted = [row for row in ROWS if published.missing(row) is None]
    assert len(counted) >= 50
    assert sum("explained" not in row for row in counted) > len(counted) / 2


def test_a_row_has_what_it_needs_and_nothing_else() -> None:
    needed = {"source", "what", "printed", "model", "method", "from"}
    optional = {"hyper", "counts", "plus", "explained", "ours"}
    for row in ROWS:
        assert needed <= set(row) <= needed | optional, row
        assert ("explained" in row) == ("ours" in row), row
        assert "plus" not in row or "explained" in row, row
        assert row["model"] in architectures.known(), row


@pytest.mark.parametrize(
    ("value", "printed", "same"),
    [
        (250_000, "0.3 M", "0.3 M"),  # halves go up
        (349_999, "0.3 M", "0.3 M"),
        (350_000, "0.3 M", "0.4 M"),
        (23_002_848, "23.00 M", "23.00 M"),
        (175_255_849_999, "175,255.8 M", "175,255.8 M"),
        (4_404_019, "4.2 MiB", "4.2 MiB"),
        (4_404_019, "4.2 MB", "4.4 MB"),
    ],
)
def test_numbers_round_as_they_are_printed(value: int, printed: str, same: str) -> None:
    assert published.as_printed(value, printed) == same


@pytest.mark.slow
def test_the_committed_page_is_up_to_date_for_the_rows_that_can_be_counted_here() -> None:
    page = published.PAGE.read_text(encoding="utf-8")
    assert page.startswith(published.HEAD)
    lines = page.removeprefix(published.HEAD).splitlines()
    assert len(lines) == len(ROWS)
    for row, line in zip(ROWS, lines, strict=True):
        if published.missing(row) is None:
            assert line == published.line(row), "run python scripts/published_counts.py"
        else:
            assert line.startswith(f"| {row['source']} | {row['what']} | {row['printed']} |")
