"""Verdicts on the records of a table: intervals, ties, words, and the tables and figures that show them."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

import factories
import numpy as np
import pytest

from peftbench.plan import read
from peftbench.records import record
from peftbench.report import assemble
from peftbench.report.data import verdicts
from peftbench.report.data.average import averages
from peftbench.report.data.collect import compare
from peftbench.report.figures import plots
from peftbench.report.tables import conclusions, differences

ROOT = Path(__file__).resolve().parents[2]


def predicted(label, seed, right, *, n=200, stream=None, **changes):
    """A run that is right with probability `right`, each example as hard for every run; its score is that of its
    predictions."""
    hard = [random.Random(f"{i}").gauss(0, 1) for i in range(n)]
    rng = random.Random(stream or f"{label} {seed}")
    labels = [i % 2 for i in range(n)]
    values = [y if rng.gauss(0, 0.5) + h < _quantile(right) * 1.25**0.5 else 1 - y
              for y, h in zip(labels, hard, strict=True)]  # fmt: skip
    score = sum(v == y for v, y in zip(values, labels, strict=True)) / n
    body = factories.run(label, seed, score, examples=n, majority=0.5, **changes)
    body["predictions"] = {"ids": body["predictions"]["ids"], "values": values, "labels": labels}
    return body


def _quantile(p):
    from scipy.stats import norm

    return float(norm.ppf(p))


def compared(directory, bodies):
    factories.write_all(directory, bodies)
    return compare(record.read_all(directory))


def table(levels, seeds=5, **changes):
    return [predicted(label, s, p, **changes) for label, p in levels.items() for s in range(seeds)]


def test_clearly_different_configurations_are_told_apart_and_alike_ones_are_not(tmp_path):
    (c,) = compared(tmp_path, table({"full": 0.80, "lora": 0.80, "ia3": 0.60}))
    v = verdicts.of(c)
    assert v["ia3"].p_holm < 0.01
    assert v["lora"].p_holm > 0.05
    assert {label: found.tied for label, found in v.items()} == {"full": True, "lora": True, "ia3": False}
    assert v["ia3"].better[0] == 0.0
    assert v["full"].interval[0] < c.entries[0].mean < v["full"].interval[1]
    said = " ".join(conclusions.sentences(c))
    assert "ia3 is worse" in said
    assert "with 5 seeds and 200 test examples" in said
    assert "ia3 is behind" in said


def test_a_lower_score_is_better_where_the_metric_says_so(tmp_path):
    bodies = [factories.run(label, s, v + 0.01 * s * v, metric="perplexity", direction="min", majority=None)
              for label, v in (("full", 5.0), ("lora", 9.0)) for s in range(3)]  # fmt: skip
    (c,) = compared(tmp_path, bodies)
    assert verdicts.of(c)["full"].is_best
    assert verdicts.of(c)["lora"].better[0] == 0.0
    said = " ".join(conclusions.sentences(c))
    assert "lora is worse" in said
    assert "from the seeds alone" in said


def test_the_same_method_under_two_names_without_a_common_seed_is_a_tie(tmp_path):
    bodies = [predicted("lora", s, 0.75) for s in range(3)] + [predicted("lora-again", s, 0.75) for s in range(3, 6)]
    (c,) = compared(tmp_path, bodies)
    assert all(v.tied for v in verdicts.of(c).values())
    assert "No configuration can be told apart from the best" in " ".join(conclusions.sentences(c))


def test_one_seed_is_said_to_say_nothing_of_the_methods(tmp_path):
    (c,) = compared(tmp_path, table({"full": 0.8, "lora": 0.78}, seeds=1))
    assert "nothing follows for the methods themselves" in " ".join(conclusions.sentences(c))
    assert verdicts.of(c)["lora"].interval is not None


def test_with_one_seed_worse_is_said_of_the_trained_networks(tmp_path):
    (c,) = compared(tmp_path, table({"full": 0.85, "ia3": 0.6}, seeds=1))
    assert "Of these trained networks, against full, ia3 is worse" in " ".join(conclusions.sentences(c))


def test_one_row_with_one_seed_among_many_is_named_as_one_network(tmp_path):
    bodies = [*table({"full": 0.85, "bitfit": 0.6}), predicted("ia3", 0, 0.6)]
    (c,) = compared(tmp_path, bodies)
    assert "bitfit and ia3 (its one trained network) are worse" in " ".join(conclusions.sentences(c))


def test_tied_with_the_best_yet_below_the_reference_is_explained(tmp_path):
    scores = {"full": (5.0, 5.1, 5.2), "lora": (7.0, 7.13, 7.24), "bitfit": (8.0, 8.12, 8.16),
              "dora": (9.0, 9.13, 9.17), "ia3": (5.09, 5.22, 5.25)}  # fmt: skip
    bodies = [factories.run(label, s, v, metric="perplexity", direction="min", majority=None)
              for label, values in scores.items() for s, v in enumerate(values)]  # fmt: skip
    (c,) = compared(tmp_path, bodies)
    said = " ".join(conclusions.sentences(c))
    assert "Against full, bitfit, dora, ia3 and lora are worse" in said
    assert "full and ia3 cannot be told apart at the top" in said
    assert "ia3 is surely below full and yet marked as tied with the best: Bonferroni's correction" in said


def test_more_test_examples_are_not_advised_where_nothing_is_known_of_them(tmp_path):
    scores = {"full": (5.0, 5.01, 5.02), "lora": (3.0, 5.2, 4.0)}
    bodies = [factories.run(label, s, v, metric="perplexity", direction="min", majority=None)
              for label, values in scores.items() for s, v in enumerate(values)]  # fmt: skip
    (c,) = compared(tmp_path, bodies)
    assert "would need more than 1,000 seeds" in " ".join(conclusions.sentences(c))


def test_no_difference_below_one_test_example_is_promised(tmp_path):
    bodies = [predicted(m, s, 1.0, n=16) for m in ("full", "lora", "ia3") for s in range(3)]
    (c,) = compared(tmp_path, bodies)
    said = " ".join(conclusions.sentences(c))
    assert "One of 16 test examples is more than a difference of 2 points of accuracy" in said
    assert "seeds are enough" not in said


def test_seeds_that_all_agree_do_not_tell_how_many_are_enough(tmp_path):
    (c,) = compared(tmp_path, [predicted(m, s, 1.0) for m in ("full", "lora", "ia3") for s in range(3)])
    said = " ".join(conclusions.sentences(c))
    assert "All seeds agree exactly" in said
    assert "seeds are enough" not in said


def test_seeds_that_agree_have_not_learned_a_task_whose_test_examples_leave_it_open(tmp_path):
    for right, learned in ((0.54, False), (0.8, True)):
        bodies = [predicted("full", s, right, stream="alike") for s in range(3)]
        (c,) = compared(tmp_path / str(right), bodies)
        low, _ = verdicts.of(c)["full"].interval
        assert c.entries[0].mean > 0.5
        assert c.learned is learned is (low > 0.5), "as the interval in its table says"


def test_a_task_that_was_not_learned_allows_no_sentence(tmp_path):
    (c,) = compared(tmp_path, table({"full": 0.5, "lora": 0.5}))
    assert c.learned is False
    assert list(conclusions.sentences(c)) == []


def test_predictions_that_contradict_their_score_widen_nothing_and_are_named(tmp_path):
    bodies = table({"full": 0.8, "lora": 0.78}, seeds=3)
    bodies[0]["metrics"]["test"]["accuracy"] += 0.1
    (c,) = compared(tmp_path, bodies)
    assert (verdicts.of(c)["full"].mean.examples, verdicts.of(c)["lora"].mean.examples) == (0, 200)
    assert "The intervals of full are from the seeds alone" in " ".join(conclusions.sentences(c))


def test_tuning_trials_are_in_no_table(tmp_path):
    trial = factories.as_trial(predicted("lora", 0, 0.9), 3)
    (c,) = compared(tmp_path, [*table({"full": 0.8, "lora": 0.7}, seeds=2), trial])
    assert [e.n for e in c.entries] == [2, 2]


def test_every_table_shows_intervals_ties_and_sentences(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "figures", lambda comparison, looks: iter(()))
    factories.write_all(tmp_path, table({"full": 0.80, "lora": 0.79, "ia3": 0.60}))
    text = assemble.text_table(tmp_path)
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert " •" in lines["full"]
    assert " •" not in lines["ia3"]
    assert "] (5)" in lines["ia3"]
    paths = {p.name: p for p in assemble.write(tmp_path)}
    page = paths["report.md"].read_text()
    assert "ia3 is worse" in page
    assert differences.LEGEND in page
    shown = paths["quickstart--embedded_question_type--differences.csv"].read_text().splitlines()
    assert len(shown) == 4
    assert r"$\bullet$" in paths["quickstart--embedded_question_type.tex"].read_text()
    row = next(r for r in json.loads(json.dumps(assemble.rows(tmp_path), allow_nan=False)) if r["method"] == "ia3")
    assert row["mean_low"] < row["mean"] < row["mean_high"]
    assert row["tied_with_best"] is False


@pytest.mark.slow
def test_who_is_surely_on_the_front_has_probability_one_and_is_marked_in_the_figure(tmp_path):
    bodies = [*table({"full": 0.80, "lora": 0.79, "dora": 0.60}), factories.profile(["full", "lora", "dora"])]
    (c,) = compared(tmp_path, bodies)
    fronts = {label: v.on_front for label, v in verdicts.of(c).items()}
    assert fronts["lora"]["memory"] == 1.0  # the least memory of the three
    assert fronts["dora"]["memory"] < 0.01  # more memory and worse than lora
    assert 0.2 < fronts["full"]["memory"] < 0.95
    drawn = dict(plots.figures(c, plots.looks([c])))
    svg = next(b for n, b in drawn.items() if n.endswith("quality-vs-memory.svg")).decode()
    assert "lora (100 %)" in svg
    assert dict(plots.figures(c, plots.looks([c]))) == drawn


def test_enough_tasks_have_a_diagram_and_two_have_a_sentence(tmp_path):
    few = {f"embedded/t{i}": None for i in range(2)}
    many = {f"embedded/t{i}": None for i in range(9)}
    levels = {"full": 0.9, "lora": 0.8, "ia3": 0.6}
    for name, tasks in (("few", few), ("many", many)):
        bodies = [body for task in tasks for body in table(levels, 2, task=task, n=60)]
        (a,) = averages(compared(tmp_path / name, bodies))
        drawn = [n for n, _ in plots.rank_figure(a, "slug", {})]
        assert bool(drawn) == (name == "many")
        assert any("too few to tell" in note for note in a.notes) == (name == "few")
    assert any("worse than full are" in note for note in a.notes)


def test_the_average_has_an_interval_around_it(tmp_path):
    bodies = [body for task in ("embedded/a", "embedded/b") for body in table({"full": 0.9, "lora": 0.8}, 3, task=task)]
    (a,) = averages(compared(tmp_path, bodies))
    lora = next(s for s in a.standings if s.label == "lora")
    assert lora.relative_interval[0] < lora.relative < lora.relative_interval[1] < 1.2


def test_a_method_may_start_at_a_seed_of_its_own():
    found = read.load(ROOT / "experiments" / "aa_lora.yaml")
    assert [(m.label, m.first_seed) for m in found.methods] == [(None, 0), ("lora-again", found.budget.seeds)]


# The calibration


def script():
    spec = importlib.util.spec_from_file_location("calibrate", ROOT / "scripts" / "calibrate_statistics.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibrate"] = module  # its data classes look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def calibrated():
    return json.loads((ROOT / "results" / "calibration" / "statistics.json").read_text())


def test_the_tables_of_the_page_are_those_of_the_calibration(calibrated):
    page = (ROOT / "docs" / "statistics.md").read_text()
    assert script().replaced(page, calibrated) == page


def test_false_alarms_are_at_most_nominal(calibrated):
    """The lower end of each Wilson interval: above 5 % it would be sure that the level does not hold."""
    for cell in calibrated["alarms"]:
        if cell["seeds"] > 1:
            assert cell["report"][1] <= 0.05, cell
            assert cell["covers"] is None or cell["covers"][2] >= 0.95, cell
    for cell in calibrated["metrics"]:
        assert cell["report"][1] <= 0.05, cell
    for cell in calibrated["tables"]:
        for rate in ("alarm", "any_alarm", "best_not_marked"):
            assert cell[rate][1] <= 0.05, cell


def test_the_calibration_can_find_a_method_that_alarms_too_often(calibrated):
    assert all(c["one"][1] > 0.05 for c in calibrated["pooled"])
    assert all(c["own"][1] <= 0.05 for c in calibrated["pooled"])
    usual = [c for c in calibrated["alarms"] if c["seeds"] in (2, 3) and "5 points apart" in c["what"]]
    assert all(c["bootstrap"][1] > 0.05 for c in usual)
    assert all(c["examples_only"][1] > 0.05 for c in usual)


def test_a_cell_of_the_calibration_is_what_the_code_gives(calibrated):
    """One cheap cell, from its own random stream; a number on the edge may fall otherwise on another machine."""
    module = script()
    cell = next(c for c in calibrated["power"] if (c["gap"], c["seeds"], c["examples"]) == (0.05, 3, 250))
    again = module.seen(0.05, 3, 250, cell["repeats"])
    assert again["power"][0] == pytest.approx(cell["power"][0], abs=0.003)
    assert np.isfinite(again["power"]).all()
