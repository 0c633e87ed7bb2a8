"""Scores of each class and the confusion matrix, counted in the predictions of records."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import factories
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from peftbench.records import record
from peftbench.report import assemble
from peftbench.report.data import classes
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison
from peftbench.report.figures import confusion, style
from peftbench.report.figures import names as figure_names
from peftbench.report.media.plain import visible
from peftbench.report.tables import class_scores, columns

SPLIT = {"copies": 0, "contradictory": 0, "tokens": 9, "longest": 9, "cut_texts": 0, "cut_tokens": 0}


def named(body: dict[str, Any], names: list[str]) -> dict[str, Any]:
    train = {**SPLIT, "rows": 9, "per_class": [9] * len(names)}
    return {**body, "data": {"classes": names, "splits": {"train": train}, "cut_from": "end", "doubled": {}}}


def predicted(label: str, seed: int, values: list[int], labels: list[int], names: list[str]) -> dict[str, Any]:
    score = sum(v == y for v, y in zip(values, labels, strict=True)) / len(labels)
    body = factories.run(label, seed, score, examples=len(labels))
    return named({**body, "predictions": {**body["predictions"], "values": values, "labels": labels}}, names)


def table(folder: Path, bodies: list[dict[str, Any]]) -> Comparison:
    factories.write_all(folder, bodies)
    (c,) = compare(record.read_all(folder))
    return c


def test_the_scores_of_each_class_are_those_of_scikit_learn(tmp_path: Path) -> None:
    draw, names = random.Random(0), ["cat", "dog", "eel"]
    labels = [draw.randrange(3) for _ in range(80)]
    guesses = [[draw.choice([y, draw.randrange(3)]) for y in labels] for _ in range(2)]
    c = table(tmp_path, [predicted("full", s, values, labels, names) for s, values in enumerate(guesses)])
    true, values = labels * 2, guesses[0] + guesses[1]
    assert classes.matrices(c)["full"] == confusion_matrix(true, values).tolist()
    expected = zip(*precision_recall_fscore_support(true, values), strict=True)
    for score, (precision, recall, f1, support) in zip(classes.scores(c, "full"), expected, strict=True):
        assert (score.precision, score.recall) == pytest.approx((precision, recall), rel=1e-15)
        assert (score.f1, score.support) == (pytest.approx(f1, rel=1e-15), support // 2)


def test_a_score_that_does_not_exist_is_a_dash_and_never_0(tmp_path: Path) -> None:
    c = table(tmp_path, [predicted("full", 0, [0, 0, 0, 1], [0, 0, 1, 1], ["a", "b", "c", "d"])])
    absent = classes.scores(c, "full")[2]
    assert (absent.support, absent.precision, absent.recall, absent.f1) == (0, None, None, None)
    row = class_scores.table(c)[-1]
    assert [column.cell(row) for column in class_scores.columns(c)][1:] == ["0", "—", "—", "—"]


def test_a_failed_seed_counts_nothing(tmp_path: Path) -> None:
    good = predicted("full", 0, [0, 1], [0, 1], ["a", "b"])
    c = table(tmp_path, [good, factories.run("full", 1, status="oom")])
    assert classes.matrices(c)["full"] == [[1, 0], [0, 1]]
    assert [s.support for s in classes.scores(c, "full")] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("names", [["billing", "Billing"], ["$a$ | \\frac{", "_*<b>\n"]])
def test_tables_and_figure_bear_the_names_of_the_classes(tmp_path: Path, names: list[str]) -> None:
    bodies = [named(factories.run(label, s), names) for label in ("full", "lora") for s in (0, 1)]
    factories.write_all(tmp_path, bodies)
    written = {p.name: p for p in assemble.write(tmp_path)}
    start = "quickstart--embedded_question_type"
    assert "<summary>The classes</summary>" in written["report.md"].read_text()
    assert "| _*<b>" not in written["report.md"].read_text(), "a name is no Markdown"
    assert {f"{start}--confusion{e}" for e in (".png", ".svg", ".csv")} <= set(written)
    rows = list(csv.DictReader(io.StringIO(written[f"{start}--classes.csv"].read_text())))
    assert [(r["method"], r["class"]) for r in rows] == [(m, n) for m in ("full", "lora") for n in map(visible, names)]
    assert not assemble.check(tmp_path, None, assemble.load(tmp_path)), "the same bytes again"


def test_a_figure_needs_room_for_the_names_of_its_classes(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(confusion.MOST + 1)]
    c = table(tmp_path, [named(factories.run("full"), names)])
    assert classes.shown(c) == ["full"]
    assert confusion.draw(c) is None


LONG = "Customer Service / Billing and Payments / "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "task", "cells"),
    [
        (["no", "yes"], "local/short", 40),
        ([f"{LONG}{n}" for n in ("Refund requested", "Refund refused", "Card declined", "$", "W" * 30)], "t" * 300, 7),
        ([f"{LONG}{i}" for i in range(confusion.MOST)], "local/a title of many words " * 9, 2),
        (["漢字" * 20 + n for n in "abc"], "local/" + "$_ 漢" * 40, 900),
        ([f"c{i}" for i in range(confusion.NUMBERED)], "local/many numbers", 1_000),
    ],
)
def test_nothing_is_cut_or_overprinted_in_the_confusion_figure(
    tmp_path: Path, names: list[str], task: str, cells: int
) -> None:
    values = [i for i in range(len(names)) for _ in range(cells)]
    body = predicted("full", 0, values, values, names)
    body["spec"]["task"]["name"] = task
    c = table(tmp_path, [factories.with_ids(body)])
    with style.drawing(figure_names.shown(c)):
        drawn = confusion.draw(c)
        assert drawn is not None
        dict(style.files("confusion", drawn))  # at the resolution of the PNG
        renderer = FigureCanvasAgg(drawn).get_renderer()
        (panel,) = drawn.axes
        rows, columns = panel.get_yticklabels(), panel.get_xticklabels()
        boxes = [
            t.get_window_extent(renderer) for t in [*drawn.texts, *rows, *columns, panel.xaxis.label, panel.yaxis.label]
        ]
        assert all(drawn.bbox.x0 <= b.x0 and b.x1 <= drawn.bbox.x1 for b in boxes)
        assert all(drawn.bbox.y0 <= b.y0 and b.y1 <= drawn.bbox.y1 for b in boxes)
        title, subtitle = boxes[:2]
        assert title.y0 >= subtitle.y1 >= subtitle.y0 >= panel.get_window_extent().y1, "one below the other"
        cell = panel.get_window_extent().width / len(names), panel.get_window_extent().height / len(names)
        assert all(t.get_window_extent(renderer).height <= cell[1] for t in rows)
        assert rows[0].get_window_extent(renderer).height * 2**0.5 <= cell[0], "names turned by 45 degrees"
        assert all(t.get_window_extent(renderer).width <= cell[0] for t in panel.texts)
        assert panel.get_window_extent().width > 2 * drawn.dpi, "room for the matrix"
        for labels in (rows, columns):
            assert len({t.get_text() for t in labels}) == len(names), "told apart"


def test_tables_to_read_have_the_whole_names_of_classes(tmp_path: Path) -> None:
    names = [f"{LONG}{n}" for n in ("Refund requested", "Refund refused")]
    c = table(tmp_path, [named(factories.run("full"), names)])
    shown = class_scores.columns(c), class_scores.table(c)
    text, tex = columns.markdown(*shown), columns.latex(*shown, "caption", "label")
    assert all(name in text and name in tex for name in names)


def test_a_long_table_has_the_largest_classes_and_says_so(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(class_scores.MOST + 7)]
    c = table(tmp_path, [named(factories.run("full"), names)])
    assert len(class_scores.table(c)) == class_scores.MOST
    assert "The 7 smallest classes are in the CSV file alone" in class_scores.legend(c)
    assert len(class_scores.rows(c)) == len(names)


def test_numbers_and_texts_have_no_classes(tmp_path: Path) -> None:
    c = table(tmp_path, [named(factories.run("full", metric="rmse", direction="min"), [])])
    assert not class_scores.known(c)
    assert confusion.draw(c) is None
