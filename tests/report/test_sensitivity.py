"""The verdicts of a table without each seed, and of an average without each task: what changes, and what is said."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import factories
import numpy as np
import pytest

from peftbench.records import record
from peftbench.report.data import sensitivity, verdicts
from peftbench.report.data.average import averages
from peftbench.report.data.collect import compare
from peftbench.report.data.sensitivity import Change, Outcome, Sensitivity
from peftbench.report.figures import plots
from peftbench.report.tables import sensitivity_page
from peftbench.report.write import page

FULL = (0.80, 0.81, 0.79, 0.80)


def runs(scores, task="embedded/question_type", **changes):
    """Runs with these scores: label -> one for each seed, None for a seed without a run. Examples are not known."""
    return [factories.run(label, s, v, task=task, **{"majority": 0.3, **changes})
            for label, values in scores.items() for s, v in enumerate(values) if v is not None]  # fmt: skip


def compared(folder, bodies):
    factories.write_all(folder, bodies)
    return compare(record.read_all(folder))


def table(folder, scores, **changes):
    (c,) = compared(folder, runs(scores, **changes))
    return c


def said(c):
    return sensitivity_page.sentence(sensitivity.of(c), c.reference)


def files(comparisons):
    made = page.build(comparisons, averages(comparisons))
    return {name: content.decode() for name, content in made if not name.endswith((".png", ".svg"))}


def test_a_verdict_that_one_seed_prevents_is_named_with_that_seed(tmp_path):
    c = table(tmp_path, {"full": FULL, "lora": (0.60, 0.62, 0.95, 0.61), "ia3": (0.5, 0.49, 0.5, 0.51)})
    s = sensitivity.of(c)
    assert s.whole["lora"] == Outcome("tied", "open")
    assert s.without["2"]["lora"] == Outcome("behind", "worse")
    assert s.changes == [
        Change("lora", "best", "tied", "behind", ("2",)),
        Change("lora", "reference", "open", "worse", ("2",)),
    ]
    assert said(c) == (
        "Verdicts hold without any one of the 4 seeds, except: lora is behind and worse than full without seed 2."
    )


def test_what_is_left_out_is_judged_as_a_table_without_that_seed(tmp_path):
    scores = {
        "full": FULL,
        "lora": (0.60, 0.62, 0.95, 0.61),
        "ia3": (0.7, 0.71, 0.73, 0.68),
        "dora": (0.9, 0.89, 0.9, 0.91),
    }
    s = sensitivity.of(table(tmp_path / "all", scores))
    for seed in (0, 2):
        less = {label: [v if i != seed else None for i, v in enumerate(values)] for label, values in scores.items()}
        alone = table(tmp_path / str(seed), less)
        assert s.without[str(seed)] == sensitivity.of(alone).whole
        marked = {label: v.tied for label, v in verdicts.of(alone).items()}
        assert {label: o.best == "tied" for label, o in s.without[str(seed)].items()} == marked


def test_where_every_verdict_holds_it_says_so(tmp_path):
    c = table(tmp_path, {"full": FULL, "lora": FULL[::-1], "ia3": (0.30, 0.32, 0.31, 0.29)})
    assert sensitivity.of(c).whole["ia3"] == Outcome("behind", "worse")
    assert sensitivity.of(c).changes == []
    assert said(c) == "Every verdict holds without any one of the 4 seeds."


def test_a_verdict_that_needs_all_seeds_is_said_to(tmp_path):
    c = table(tmp_path, {"full": FULL[:3], "lora": (0.76, 0.78, 0.74), "ia3": (0.76, 0.78, 0.74)})
    assert said(c).endswith("except: ia3 and lora are behind and worse than full only with all 3 seeds.")


def test_a_lower_score_is_better_where_the_metric_says_so(tmp_path):
    scores = {"full": (5.0, 5.1, 4.9, 5.0), "lora": (7.0, 6.9, 7.1, 7.0), "ia3": (3.0, 2.9, 3.0, 3.1)}
    s = sensitivity.of(table(tmp_path, scores, metric="perplexity", direction="min", majority=None))
    assert {label: o.reference for label, o in s.whole.items()} == {"full": None, "lora": "worse", "ia3": "better"}
    assert {label: o.best for label, o in s.whole.items()} == {"full": "behind", "lora": "behind", "ia3": "tied"}


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ({"full": FULL[:2], "lora": FULL[:2]}, "leaving out one seed needs 3 of two configurations"),
        ({"full": FULL[:1], "lora": FULL[:1]}, "leaving out one seed needs 3 of two configurations"),
        ({"full": FULL}, "leaving out one seed needs 3 of two configurations"),
        ({"full": FULL, "lora": FULL[:2]}, "leaving out one seed needs 3 of two configurations"),
        ({"full": [0.1] * 3, "lora": [0.1] * 3}, "not learned at this budget"),
        ({"full": [0.8] * 31, "lora": [0.7] * 31}, "one of 31 seeds hardly weighs"),
    ],
)
def test_too_little_data_is_a_reason_and_no_sentence(tmp_path, scores, why):
    c = table(tmp_path, scores)
    assert sensitivity.of(c).why_not == why
    assert sensitivity.of(c).changes == []
    assert not sensitivity_page.known(sensitivity.of(c))


def test_a_row_that_keeps_one_seed_has_no_verdict_without_the_other(tmp_path):
    c = table(tmp_path, {"full": FULL, "lora": FULL[::-1], "ia3": (0.30, 0.31, None, None)})
    s = sensitivity.of(c)
    assert [s.without[seed]["ia3"] for seed in "01"] == [Outcome()] * 2
    assert not [change for change in s.changes if change.label == "ia3"]
    alone = table(tmp_path / "one", {"full": FULL, "lora": FULL[::-1], "ia3": (0.30, None, None, None)})
    assert "ia3" not in sensitivity.of(alone).without["0"]
    assert sensitivity.of(alone).whole["ia3"] == Outcome(), "a trained network, not a method"


def test_a_table_whose_reference_lost_its_only_seed_says_nothing_of_it(tmp_path):
    c = table(tmp_path, {"full": (0.8, None, None), "lora": FULL[:3], "ia3": (0.30, 0.32, 0.31)})
    assert not [change for change in sensitivity.of(c).changes if change.against == "reference"]


def given(before, **after):
    """A sensitivity of two seeds or more: label -> verdict on all data; each part: label -> verdict without it."""
    whole = {label: Outcome(reference=v) for label, v in before.items()}
    without = {part[1:]: {label: Outcome(reference=v) for label, v in of.items()} for part, of in after.items()}
    return Sensitivity("seed", whole, without)


@pytest.mark.parametrize(
    ("s", "clause"),
    [
        (given({"a": "worse"}, s0={"a": "open"}, s1={"a": "worse"}), "a is no longer worse than full without seed 0"),
        (given({"a": "worse"}, s0={"a": "open"}, s1={"a": "open"}), "a is worse than full only with all 2 seeds"),
        (given({"a": "open"}, s0={"a": "better"}, s1={"a": "better"}),
         "a is better than full whichever seed is left out"),
        (given({"a": "worse"}, s0={"a": "better"}, s1={"a": "worse"}),
         "a is better instead of worse than full without seed 0"),
        (given({"a": "open"}, s0={"a": "worse"}, s1={"a": "worse"}, s7={"a": "open"}),
         "a is worse than full without seed 0 or 1"),
        (given({"a": "better", "b": "better"}, s0={"a": "open", "b": "open"}, s1={"a": "better", "b": "better"}),
         "a and b are no longer better than full without seed 0"),
    ],
)  # fmt: skip
def test_each_kind_of_change_has_its_words(s, clause):
    assert sensitivity_page.sentence(s, "full").endswith(f"except: {clause}.")


def test_many_exceptions_are_counted_and_those_that_turn_round_are_named():
    whole = {f"m{i}": "worse" for i in range(9)}
    kept = {part: dict(whole) for part in (f"s{i}" for i in range(9))}
    for i in range(7):
        kept[f"s{i}"] |= {f"m{i}": "open"}
    kept["s8"] |= {"m8": "better"}
    assert sensitivity_page.sentence(given(whole, **kept), "full") == (
        "Verdicts on 8 of 9 configurations change without one or another of the 9 seeds; m8 is better instead of worse "
        "than full without seed 8."
    )


def test_the_page_has_the_sentence_and_the_tables_have_every_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "figures", lambda comparison, looks: iter(()))
    c = table(tmp_path, {"full": FULL, "=lora|x": (0.60, 0.62, 0.95, 0.61)})
    made = files([c])
    name = f"{c.slug}--sensitivity"
    assert "lora\\|x is behind and worse than full without seed 2." in made["report.md"]
    assert f"(tables/{name}.csv)" in made["report.md"]
    assert made["report.md"].count("Verdicts hold without") == 1
    assert "behind without seed 2" in made[f"tables/{name}.md"]
    rows = list(csv.DictReader(io.StringIO(made[f"tables/{name}.csv"])))
    assert len(rows) == 2 * 5
    assert rows[-2] == {"method": "'=lora|x", "without": "2", "against_best": "behind", "against_reference": "worse"}
    assert rows[0] == {"method": "full", "without": "", "against_best": "tied", "against_reference": ""}


def test_a_page_of_two_seeds_and_one_task_does_not_mention_it(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "figures", lambda comparison, looks: iter(()))
    made = files([table(tmp_path, {"full": FULL[:2], "lora": (0.60, 0.62)})])
    assert not [name for name in made if "sensitivity" in name]
    assert "without any one" not in made["report.md"]


# Averages over tasks


def grid(folder, by_task):
    return compared(folder, [b for task, scores in by_task.items() for b in runs(scores, f"embedded/{task}")])


def test_a_verdict_of_an_average_that_rests_on_one_task_is_named_with_it(tmp_path):
    same = {"full": FULL, "lora": (0.80, 0.80, 0.80, 0.81)}
    comparisons = grid(tmp_path, {"a": same, "b": same, "c": {"full": FULL, "lora": (0.20, 0.21, 0.19, 0.2)}})
    (a,) = averages(comparisons)
    s = sensitivity.over_tasks(a, comparisons)
    assert s.changes == [Change("lora", "reference", "worse", "open", ("embedded/c",))]
    assert sensitivity_page.sentence(s, "full") == (
        "Verdicts hold without any one of the 3 tasks, except: lora is no longer worse than full without embedded/c."
    )


@pytest.mark.slow
def test_an_average_without_a_task_is_judged_as_that_of_the_other_tasks(tmp_path):
    rng = np.random.RandomState(0)
    by_task = {
        task: {label: (at + rng.normal(0, 0.01, 4) + rng.normal(0, 0.02)).tolist()
               for label, at in (("full", 0.8), ("lora", 0.79), ("ia3", 0.7), ("dora", 0.5))}
        for task in "abcdef"
    }  # fmt: skip
    comparisons = grid(tmp_path / "all", by_task)
    (a,) = averages(comparisons)
    s = sensitivity.over_tasks(a, comparisons)
    assert {o.best for o in s.whole.values()} == {"tied", "behind"}
    for task in "f":
        others = grid(tmp_path / task, {t: scores for t, scores in by_task.items() if t != task})
        (less,) = averages(others)
        assert s.without[f"embedded/{task}"] == sensitivity.over_tasks(less, others).whole
        assert {label for label, o in s.without[f"embedded/{task}"].items() if o.best == "behind"} == set(
            less.ranking.behind
        )
        for standing in less.standings[1:]:
            low, high = standing.relative_interval
            sure = "better" if low > 1 else "worse" if high < 1 else "open"
            assert s.without[f"embedded/{task}"][standing.label].reference == sure


def test_an_average_over_one_task_has_nothing_to_leave_out(tmp_path):
    comparisons = grid(tmp_path, {"a": {"full": FULL, "lora": FULL[::-1]}, "b": {"full": [0.1] * 4, "lora": [0.1] * 4}})
    (a,) = averages(comparisons)
    assert a.tasks == ("embedded/a",)
    s = sensitivity.over_tasks(a, comparisons)
    assert s.why_not == "an average without one task needs two"
    assert not sensitivity_page.known(s)


def test_tasks_that_are_not_averaged_over_are_not_left_out(tmp_path):
    good = {"full": FULL, "lora": FULL[::-1]}
    comparisons = grid(tmp_path, {"a": good, "b": good, "c": {"full": [0.1] * 4, "lora": [0.1] * 4}})
    (a,) = averages(comparisons)
    others = [replace(c, experiment="another") for c in comparisons]
    assert list(sensitivity.over_tasks(a, [*others, *comparisons]).without) == ["embedded/a", "embedded/b"]


def test_the_page_has_the_sentence_of_the_average(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "figures", lambda comparison, looks: iter(()))
    monkeypatch.setattr(plots, "average_figures", lambda a, slug, looks: iter(()))
    same = {"full": FULL, "lora": (0.80, 0.80, 0.80, 0.81)}
    made = files(grid(tmp_path, {"a": same, "b": same, "c": {"full": FULL, "lora": (0.20, 0.21, 0.19, 0.2)}}))
    assert "lora is no longer worse than full without embedded/c." in made["report.md"]
    assert "open without embedded/c" in made["tables/quickstart--average--sensitivity.md"]
    rows = list(csv.DictReader(io.StringIO(made["tables/quickstart--average--sensitivity.csv"])))
    assert [row["without"] for row in rows] == ["", "embedded/a", "embedded/b", "embedded/c"] * 2
