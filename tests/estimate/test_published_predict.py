"""Our predictions of published measurements: how well they hold; the stored ones are what is simulated today."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.errors import UserError
from peftbench.estimate.published import published_check, published_points, published_predict
from peftbench.tasks.metrics import spearman

POINTS = {point.id: point for point in published_points.points()}
PREDICTED = [point for point in POINTS.values() if not point.left_out]
STORED = published_predict.stored()
CHECKED = published_check.check(PREDICTED, lambda point: STORED.get(point.id), published_check.read_rivals())


def test_every_size_that_is_not_left_out_has_a_stored_prediction() -> None:
    assert [point.id for point in PREDICTED if point.id not in STORED and point.unit != "tokens"] == []


def test_half_of_what_is_allocated_is_within_1_percent_and_nine_in_ten_within_3() -> None:
    assert CHECKED.strict is not None
    assert CHECKED.strict.n > 60
    assert CHECKED.strict.median_size < 1
    assert CHECKED.strict.p90_size < 3


@pytest.mark.parametrize(
    "point", [p for p in PREDICTED if p.measure == "after_step"], ids=lambda point: str(point.note)
)
def test_what_is_allocated_after_a_step_is_within_1_percent_for_every_method(
    point: published_points.PublishedPoint,
) -> None:
    assert abs(published_check.error(point, STORED[point.id])) < 1


def test_reserved_bytes_rank_the_methods_as_measured_and_stay_below() -> None:
    points = {(p.method, p.hyper.get("rank")): p for p in PREDICTED if p.group == "P"}.values()
    own, measured = [STORED[point.id] for point in points], [point.value_bytes for point in points]
    assert len(own) >= 9
    assert all(a < b for a, b in zip(own, measured, strict=True))
    assert (spearman(own, measured) or 0) > 0.85


def test_ours_are_closer_than_every_rival_on_points_that_none_was_made_from() -> None:
    made_from = {("vramcalc", "V"), ("ftuneai", "F"), ("ftune", "F")}
    rows = [row for row in CHECKED.beside if (row.tool, row.key[0]) not in made_from and row.key[0] in "FLRVI"]
    assert len(rows) >= 4
    assert [row for row in rows if row.ours.median_size >= row.theirs.median_size] == []


@pytest.mark.parametrize("name", ["V8", pytest.param("V9", marks=pytest.mark.full), "H24", "L8"])
def test_stored_predictions_are_what_is_simulated_today(name: str) -> None:
    assert published_predict.predict(POINTS[name]) == STORED[name]


def test_predictions_are_read_back_as_they_are_written(tmp_path: Path) -> None:
    path = published_predict.write({"V8": 5, "A1": 7}, tmp_path / "new" / "predictions.json")
    assert published_predict.stored(path) == {"A1": 7, "V8": 5}
    path.write_text("[]")
    with pytest.raises(UserError, match="--check --out"):
        published_predict.stored(path)


def test_a_point_of_texts_that_are_packed_has_no_mask() -> None:
    packed = next(point for point in PREDICTED if point.parts.get("packed") is True)
    assert not published_predict.setting(packed).with_mask
    assert published_predict.setting(POINTS["V8"]).with_mask
