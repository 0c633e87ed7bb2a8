"""Curves over training sizes, steps and hyperparameters: what belongs to one, what it says, and its files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import axis_records
import factories
import pytest
from axis_records import ALL, CURVES, SIZES, experiment, sized

from peftbench.records import record, spec
from peftbench.report import assemble
from peftbench.report.data import axis_curves, scores, verdicts
from peftbench.report.data.average import averages
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison
from peftbench.report.figures import axis_figure, style
from peftbench.report.stats import intervals
from peftbench.report.tables import axis_tables


@pytest.fixture(scope="module")
def sizes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    factories.write_all(folder, experiment())
    return folder


@pytest.fixture(scope="module")
def tables(sizes_folder: Path) -> list[Comparison]:
    return compare(record.read_all(sizes_folder))


def compared(folder: Path, bodies: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    factories.write_all(folder, bodies)
    return compare(record.read_all(folder))


def curve_of(comparisons: Sequence[Comparison]) -> axis_curves.AxisCurve:
    (curve,) = axis_curves.of(comparisons)
    return curve


def test_tables_of_one_task_that_differ_in_training_size_alone_are_one_curve_in_its_order(
    tables: list[Comparison],
) -> None:
    curve = curve_of(tables)
    assert (curve.axis, list(curve.values)) == ("train_size", list(SIZES))
    assert list(curve.values.values())[-1] == "all (4,354)"
    assert [c.title for c in tables] == [
        f"embedded/question_type, {words} training examples" for words in ("100", "300", "1,000", "3,000", "all 4,354")
    ]
    assert not any("Not comparable" in note for c in tables for note in c.notes), "the curve says how they belong"


def test_the_statistics_of_a_curve_are_those_of_its_tables(tables: list[Comparison]) -> None:
    curve = curve_of(tables)
    for line in curve.lines:
        for size, c in zip(SIZES, tables, strict=True):
            v = verdicts.of(c)[line.label]
            drawn = {x: rest for x, *rest in axis_figure.points(curve, line)}
            assert drawn[size] == [v.mean.value, *(v.interval or ())]
            assert line.difference(None, size) is v.difference


def test_a_curve_says_where_a_method_is_surely_better_and_worse_and_where_the_means_cross(
    tables: list[Comparison],
) -> None:
    curve = curve_of(tables)
    against = [text for text in axis_tables.sentences(curve) if " against " in text]
    said = {text.partition(" against ")[0]: text for text in against}
    assert list(said) == ["ia3", "lora"], "each against the reference"
    assert "surely better at 100 and 300; surely worse at 1,000, 3,000 and all (4,354)" in said["ia3"]
    ia3 = next(line for line in curve.lines if line.label == "ia3")
    found = curve.crossings(ia3)
    assert found is not None
    ((near,), ((low, high),)) = found.estimates, found.parts
    assert 300 < low < near < high < 1000
    assert (
        f"cross near {axis_tables.rounded(near)} training examples; 95 %: {axis_tables.rounded(low)} to" in said["ia3"]
    )


def test_a_curve_is_no_comparison_of_sizes_with_one_draw_or_of_passes_with_one_another(
    tables: list[Comparison],
) -> None:
    said = " ".join(axis_tables.notes(curve_of(tables)))
    assert "nested" in said
    assert "Each was drawn once, so that what another draw would change is in no interval" in said
    assert "6.4 passes over 100 examples, 0.15 over 4,354" in said, "40 steps of 16 examples"


def test_every_pair_of_methods_has_its_differences_and_crossing(tables: list[Comparison]) -> None:
    pairs = {(row["method"], row["other"]): row for row in axis_tables.pair_rows(curve_of(tables))}
    assert set(pairs) == {("full", "ia3"), ("full", "lora"), ("ia3", "lora")}
    row = pairs["ia3", "lora"]
    assert row["difference_100_low"] > 0 > row["difference_4354_high"]
    low, high = map(float, row["crossing_set"].split(".."))
    assert 300 < low < float(row["crossings"]) < high < 3000


def test_a_class_without_a_training_example_is_named(tmp_path: Path) -> None:
    bodies = [sized(b, size, [size, 0] if size == 100 else None) for b, size in _bodies((100, 300))]
    said = list(axis_tables.notes(curve_of(compared(tmp_path, bodies))))
    assert "At 100 there is no training example of place, which no method can learn there." in said


def _bodies(sizes: Sequence[int]) -> list[tuple[dict[str, Any], int]]:
    runs = [axis_records.run(label, seed, 0.8) for label in ("full", "ia3") for seed in (0, 1)]
    return [(body, size) for body in runs for size in sizes]


def test_steps_are_an_axis_and_two_axes_give_a_curve_for_each_value_of_the_other(tmp_path: Path) -> None:
    bodies = [
        sized(axis_records.run(label, seed, 0.8, n=60, steps=steps), size)
        for label in ("full", "ia3") for seed in (0, 1) for steps in (20, 40) for size in (100, ALL)
    ]  # fmt: skip
    curves = axis_curves.of(compared(tmp_path, bodies))
    assert [(c.axis, c.variant, list(c.values)) for c in curves] == [
        ("train_size", "20 optimiser steps", [100, ALL]),
        ("train_size", "40 optimiser steps", [100, ALL]),
        ("steps", "100 training examples", [20, 40]),
        ("steps", "all (4,354) training examples", [20, 40]),
    ]
    assert len({c.slug for c in curves}) == 4


def test_a_grid_of_a_hyperparameter_is_a_curve_and_the_other_methods_are_bands(tmp_path: Path) -> None:
    grid = [factories.method_spec(f"lora rank={r}", name="lora", hyper={"rank": r}) for r in (2, 4, 16)]
    bodies = [axis_records.run(m.label, s, a, method=m) for m, a in zip(grid, (0.7, 0.8, 0.85), strict=True)
              for s in range(3)]  # fmt: skip
    bodies += [axis_records.run("full", s, 0.85) for s in range(3)]
    curve = curve_of(compared(tmp_path, bodies))
    assert (curve.axis, list(curve.values)) == ("rank", [2, 4, 16])
    assert [(line.label, line.varies, list(line.places)) for line in curve.lines] == [
        ("full", False, [2, 4, 16]), ("lora", True, [2, 4, 16]),
    ]  # fmt: skip
    (said,) = axis_tables.sentences(curve)
    assert said.startswith("lora against full: surely worse at 2")
    assert curve.slug.endswith("--by-rank")


def test_a_default_size_has_its_value_from_the_record_and_a_grid_of_rates_is_no_axis(tmp_path: Path) -> None:
    eight = factories.method_spec("lora rank=8", name="lora", hyper={})  # 8 is the default: no part of the spec
    four = factories.method_spec("lora rank=4", name="lora", hyper={"rank": 4})
    bodies = [axis_records.run(m.label, s, 0.8, n=60, method=m) for m in (eight, four) for s in (0, 1)]
    bodies = [{**b, "hyper": {"rank": 8, **b["hyper"]}} for b in bodies]
    assert list(curve_of(compared(tmp_path / "ranks", bodies)).values) == [4, 8]
    rates = [factories.method_spec(f"lora lr={r}", name="lora", hyper={}) for r in ("0.001", "1")]
    assert not axis_curves.of(
        compared(tmp_path / "rates", [axis_records.run(m.label, 0, 0.8, method=m) for m in rates])
    )


def test_tables_that_differ_in_more_than_an_axis_are_no_curve(tmp_path: Path) -> None:
    def rate(body: dict[str, Any]) -> dict[str, Any]:
        asked = spec.RunSpec.from_dict(body["spec"])
        return factories.with_ids({**body, "spec": spec.as_dict(replace(asked, train=replace(asked.train, clip=2.0)))})

    (small, _), (large, _) = [(b, n) for b, n in _bodies((100, ALL)) if b["spec"]["seed"] == 0][:2]
    tables = compared(tmp_path, [sized(small, 100), sized(rate(large), ALL)])
    assert not axis_curves.of(tables)
    assert all(any("Not comparable" in note for note in c.notes) for c in tables)


def test_another_test_split_is_no_curve(tmp_path: Path) -> None:
    bodies = [sized(body, size) for body, size in _bodies((100, ALL))]
    for body in bodies:
        if body["spec"]["task"]["options"]:
            ids = [f"{i + 1:016x}" for i in range(len(body["predictions"]["ids"]))]
            body["predictions"] = {**body["predictions"], "ids": ids}
    assert not axis_curves.of(compared(tmp_path, bodies))


def test_a_value_without_a_score_is_left_out_and_named(tmp_path: Path) -> None:
    bodies = experiment(SIZES[:3], {k: v[:3] for k, v in CURVES.items()}, seeds=3)
    bodies = [
        b
        for b in bodies
        if (b["spec"]["method"]["label"], b["spec"]["task"]["options"]) != ("ia3", {"limit_train": 300})
    ]
    curve = curve_of(compared(tmp_path, bodies))
    ia3 = next(line for line in curve.lines if line.label == "ia3")
    assert [x for x, *_ in axis_figure.points(curve, ia3)] == [100, 1000]
    assert "ia3 has no score at 300." in list(axis_tables.notes(curve))


def test_each_size_has_its_own_trials_also_where_they_chose_the_same_values(tmp_path: Path) -> None:
    runs = [sized(axis_records.run(label, seed, 0.8, n=60), size) for label in ("full", "ia3") for seed in (0, 1)
            for size in (100, ALL)]  # fmt: skip
    tried = [sized(axis_records.run("ia3", 0, score, n=60), size) for size, score in ((100, 0.6), (ALL, 0.9))]
    factories.write_all(tmp_path, [*runs, *(factories.as_trial(body, 0) for body in tried)])
    rows = assemble.rows(tmp_path, assemble.load(tmp_path))
    best = {row["variant"]: row["tuning"]["validation"] for row in rows if row["method"] == "ia3"}
    assert best["100 training examples"] < best["all 4,354 training examples"]


def test_one_seed_says_nothing_of_the_methods(tmp_path: Path) -> None:
    bodies = experiment(SIZES[:2], {k: v[:2] for k, v in CURVES.items()}, seeds=1)
    assert any("hold for its trained networks" in n for n in axis_tables.notes(curve_of(compared(tmp_path, bodies))))


def test_an_average_is_over_tasks_at_one_value_not_over_the_values_of_an_axis(tmp_path: Path) -> None:
    one = [sized(b, size) for b, size in _bodies((100, ALL))]
    assert averages(compared(tmp_path / "one", one)) == []
    runs = [axis_records.run(label, 0, 0.8, task="embedded/other") for label in ("full", "ia3")]
    both = averages(compared(tmp_path / "two", [*one, *(sized(b, n) for b in runs for n in (100, ALL))]))
    assert [len(a.tasks) for a in both] == [2, 2]
    assert [a.slug for a in both] == [
        "sizes--100-training-examples--average",
        "sizes--all-4-354-training-examples--average",
    ]


@pytest.mark.slow
def test_the_page_leads_with_the_curve_and_has_its_files(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes, folder = SIZES[::2], tmp_path_factory.mktemp("fewer sizes")
    factories.write_all(folder, experiment(sizes, {k: v[::2] for k, v in CURVES.items()}))
    assemble.write(folder, tmp_path)
    page = (tmp_path / "report.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("### ")]
    assert headings[0] == "### embedded/question_type by training examples"
    assert len(headings) == 1 + len(sizes)
    stem = "sizes--embedded_question_type--by-train-size"
    rows = list(csv.DictReader(io.StringIO((tmp_path / f"tables/{stem}.csv").read_text())))
    assert [(r["value"], r["all"]) for r in rows if r["method"] == "ia3"] == [
        *((str(n), "False") for n in sizes[:-1]), (str(ALL), "True"),
    ]  # fmt: skip
    assert {r["state"] for r in rows if r["method"] == "ia3"} == {"surely better", "surely worse"}
    files = [f"tables/{stem}{end}" for end in (".md", ".tex", "--crossings.csv")]
    for name in (*files, f"figures/{stem}.png", f"figures/{stem}.svg"):
        assert (tmp_path / name).is_file(), name
    assert not assemble.check(folder, tmp_path, assemble.load(folder))


def test_the_figure_has_a_log_axis_a_tick_at_each_value_and_a_line_for_each_method(tables: list[Comparison]) -> None:
    curve = curve_of(tables)
    with style.drawing():
        panel = axis_figure._figure(curve, {}).axes[0]
    assert panel.get_xscale() == "log"
    assert list(panel.get_xticks()) == list(SIZES)
    texts = [t.get_text().replace("\n", " ") for t in panel.get_xticklabels()]
    assert [t for t in texts if t] == ["100", "300", "1,000", "3,000", "all (4,354)"]
    assert [t.get_text() for t in panel.get_legend().get_texts()] == ["lora", "full", "ia3"], "the best at all first"


def test_a_pair_is_compared_by_seed_and_example(tables: list[Comparison]) -> None:
    from peftbench.report.data import scores

    curve = curve_of(tables)
    lora, ia3 = (next(line for line in curve.lines if line.label == name) for name in ("lora", "ia3"))
    known = scores.of(tables[0])
    assert lora.difference(ia3, 100) == intervals.difference(known["lora"], known["ia3"])


def test_how_much_is_enough_is_the_least_value_from_which_on_the_last_is_not_surely_better_by_the_margin(
    tables: list[Comparison],
) -> None:
    curve = curve_of(tables)
    found = {line.label: line.enough(SIZES[-1], 0.05, "max") for line in curve.lines}
    assert set(found.values()) != {None}, "some curve is flat at its end"
    for line in curve.lines:
        at_last = scores.of(tables[-1])[line.label]
        close = []
        for size, c in zip(SIZES[:-1], tables[:-1], strict=True):
            lost = intervals.difference(at_last, scores.of(c)[line.label])
            close.append(size if lost.value + (lost.half(0.9) or 1.0) < 0.05 else None)
        kept = [size for i, size in enumerate(close) if size is not None and None not in close[i:]]
        assert found[line.label] == min(kept, default=None)
    said = " ".join(axis_tables.sentences(curve))
    assert "How much is enough, surely within 2 points of all (4,354) training examples: " in said


def test_one_seed_does_not_tell_how_much_is_enough(tmp_path: Path) -> None:
    curve = curve_of(compared(tmp_path, experiment(seeds=1)))
    assert {line.enough(SIZES[-1], 0.5, "max") for line in curve.lines} == {None}
