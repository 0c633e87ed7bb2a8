"""The numbers of a report: means and spreads, failures, what was learned, times, and the average over tasks."""

from __future__ import annotations

import csv
import io
import math
import statistics
from dataclasses import replace
from pathlib import Path

import factories
import pytest
from msgspec import structs

from peftbench.records import record
from peftbench.records.spec import RunSpec, TaskSpec, as_dict
from peftbench.report import assemble
from peftbench.report.data import times, tunings, verdicts
from peftbench.report.data.average import averages
from peftbench.report.data.collect import compare
from peftbench.report.tables import columns as tables

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = {"embedded/dialog_pairs": "glue/rte"}


@pytest.fixture
def no_figures(monkeypatch):
    """For tests of what else is written: figures take most of a report's time."""
    from peftbench.report.figures import plots

    monkeypatch.setattr(plots, "figures", lambda comparison, looks: iter(()))


def compared(directory, bodies):
    factories.write_all(directory, bodies)
    return compare(record.read_all(directory))


def entry(comparison, label):
    (found,) = [e for e in comparison.entries if e.label == label]
    return found


def test_mean_and_spread_are_over_the_seeds(tmp_path):
    (c,) = compared(tmp_path, [factories.run("lora", s, score) for s, score in enumerate([0.5, 0.6, 0.9])])
    lora = entry(c, "lora")
    assert lora.n == 3
    assert lora.mean == pytest.approx(2 / 3)
    assert lora.sd == pytest.approx(statistics.stdev([0.5, 0.6, 0.9]))


def test_one_seed_has_no_spread(tmp_path):
    (c,) = compared(tmp_path, [factories.run("lora", 0, 0.5)])
    assert entry(c, "lora").sd is None
    assert "0.500 (1)" in assemble.text_table(tmp_path)


def test_relative_scores_are_paired_by_seed(tmp_path):
    full, lora = [0.8, 0.4], [0.4, 0.2]
    bodies = [factories.run(label, s, v) for label, vs in (("full", full), ("lora", lora)) for s, v in enumerate(vs)]
    (c,) = compared(tmp_path, bodies)
    assert entry(c, "lora").relative == pytest.approx(0.5)
    assert entry(c, "lora").relative_sd == pytest.approx(0.0)  # half of full on every seed, though both vary
    assert entry(c, "full").relative == 1.0


def test_a_relative_score_is_over_the_seeds_that_both_ran(tmp_path):
    runs = [("full", 0, 0.8), ("full", 1, 0.4), ("lora", 0, 0.6)]
    tables = compared(tmp_path, [factories.run(*r, task=task, majority=0.1) for r in runs for task in ("a", "b")])
    assert [entry(c, "lora").relative for c in tables] == pytest.approx([0.75, 0.75])
    assert verdicts.of(tables[0])["lora"].relative.value == pytest.approx(0.75)
    (a,) = averages(tables)
    assert next(s for s in a.standings if s.label == "lora").relative == pytest.approx(0.75)


@pytest.mark.parametrize("score", [0.0, -0.1])
def test_nothing_is_relative_to_a_score_that_is_not_positive(tmp_path, score):
    bodies = [factories.run("full", 0, score, metric="matthews"), factories.run("lora", 0, 0.3, metric="matthews")]
    (c,) = compared(tmp_path, bodies)
    assert entry(c, "lora").relative is None
    assert any("no positive mean" in note for note in c.notes)


def test_nothing_is_relative_without_a_finished_reference(tmp_path):
    (c,) = compared(tmp_path, [factories.run("full", 0, status="oom"), factories.run("lora", 0, 0.3)])
    assert entry(c, "lora").relative is None
    assert c.learned is None
    assert any("No finished run of the reference full" in note for note in c.notes)


def test_failed_runs_are_counted_by_how_they_ended(tmp_path):
    bodies = [factories.run("lora", s, status=how) for s, how in enumerate(["finished", "diverged", "oom", "diverged"])]
    (c,) = compared(tmp_path, bodies)
    assert entry(c, "lora").failures == {"diverged": 2, "oom": 1}
    assert entry(c, "lora").n == 1
    assert "2 diverged, 1 oom" in tables.markdown(tables.columns(c), c.entries)


def test_what_the_surroundings_ended_several_times_is_noted_with_the_number_of_attempts(tmp_path):
    bodies = [
        factories.run("lora", 0, status=how, reason="no space") for how in ("killed", "interrupted", "interrupted")
    ]
    (c,) = compared(tmp_path, bodies)
    assert entry(c, "lora").failures == {"interrupted": 1}
    assert "lora, seed 0: interrupted after 3 attempts (no space)" in c.notes


def test_a_timeout_is_a_run_without_a_score(tmp_path):
    (c,) = compared(tmp_path, [factories.run("full", 0, 0.6), factories.run("lora", 0, status="timeout")])
    assert entry(c, "lora").failures == {"timeout": 1}
    assert entry(c, "lora").relative is None


def test_a_repeated_failure_that_then_finished_is_noted_not_counted(tmp_path):
    (c,) = compared(tmp_path, [factories.run("lora", 0, status="killed"), factories.run("lora", 0, 0.7)])
    assert entry(c, "lora").failures == {}
    assert any("1 earlier attempt failed" in note for note in c.notes)


def test_an_attempt_that_the_user_stopped_has_not_failed(tmp_path):
    (c,) = compared(tmp_path, [factories.run("lora", 0, status="abandoned"), factories.run("lora", 0, 0.7)])
    assert not any("attempt" in note for note in c.notes)


def test_repeating_a_finished_run_does_not_change_the_table(tmp_path):
    (c,) = compared(tmp_path, [factories.run("lora", 0, 0.5), factories.run("lora", 0, 0.9)])
    assert (entry(c, "lora").mean, entry(c, "lora").n) == (0.5, 1)


def test_a_finished_run_whose_metric_has_no_value_is_shown_as_such(tmp_path):
    (c,) = compared(tmp_path, [factories.run("lora", 0, math.nan, metric="pearson")])
    assert entry(c, "lora").mean is None
    assert entry(c, "lora").failures == {"undefined score": 1}


# Whether a task was learned


@pytest.mark.parametrize(
    ("scores", "learned"),
    [([0.60, 0.61, 0.62], True), ([0.40, 0.60, 0.80], False), ([0.50, 0.50, 0.50], False), ([0.4, 0.4, 0.4], False)],
)
def test_three_seeds_are_judged_by_their_t_interval(tmp_path, scores, learned):
    (c,) = compared(tmp_path, [factories.run("full", s, v, majority=0.5) for s, v in enumerate(scores)])
    assert c.learned is learned


def test_the_t_interval_is_students(tmp_path):
    scores = [0.6, 0.7, 0.8]  # mean 0.7, standard error 0.1 / sqrt(3), t(0.975, 2) = 4.302653
    half = 4.302653 * 0.1 / math.sqrt(3)
    for i, (majority, learned) in enumerate([(0.7 - half - 1e-4, True), (0.7 - half + 1e-4, False)]):
        bodies = [factories.run("full", s, v, majority=majority) for s, v in enumerate(scores)]
        (c,) = compared(tmp_path / str(i), bodies)
        assert c.learned is learned


@pytest.mark.parametrize(
    ("scores", "examples", "learned"),
    [([0.56], 400, True), ([0.56], 100, False), ([0.56, 0.9], 100, False), ([0.66, 0.62], 400, True)],
)
def test_few_seeds_are_judged_by_their_test_examples(tmp_path, scores, examples, learned):
    bodies = [factories.run("full", s, v, majority=0.5, examples=examples) for s, v in enumerate(scores)]
    (c,) = compared(tmp_path, bodies)
    assert c.learned is learned


def test_a_correlation_is_judged_by_fishers_interval(tmp_path):
    for score, learned in [(0.05, False), (0.3, True)]:
        body = factories.run("full", 0, score, metric="spearman", majority=0.0, examples=200)
        (c,) = compared(tmp_path / str(score), [body])
        assert c.learned is learned


def test_a_metric_without_an_interval_is_not_called_learned_or_not(tmp_path):
    (c,) = compared(tmp_path, [factories.run("full", 0, 12.0, metric="perplexity", direction="min", majority=None)])
    assert c.learned is None


def an_error(seed: int, values: list[float], labels: list[float], majority: float, metric: str) -> dict:
    misses = [abs(v - y) for v, y in zip(values, labels, strict=True)]
    score = statistics.fmean(misses) if metric == "mae" else math.sqrt(statistics.fmean(m * m for m in misses))
    body = factories.run("full", seed, score, metric=metric, direction="min", majority=majority, examples=len(labels))
    return {**body, "predictions": {**body["predictions"], "values": values, "labels": labels}}


@pytest.mark.parametrize("metric", ["mae", "rmse"])
@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize(("miss", "learned"), [(1.0, True), (9.0, False), (10.0, False), (40.0, False)])
def test_an_error_must_be_smaller_than_that_of_the_mean(tmp_path, metric, seeds, miss, learned):
    labels = [float(i) for i in range(40)]
    values = [y + miss * (1 + (i % 3 - 1) / 2) for i, y in enumerate(labels)]
    (c,) = compared(tmp_path, [an_error(s, values, labels, 10.0, metric) for s in range(seeds)])
    assert c.learned is learned


def test_one_seed_that_does_not_beat_the_mean_decides_for_two(tmp_path):
    labels = [float(i) for i in range(40)]
    errors = [an_error(s, [y + miss for y in labels], labels, 10.0, "mae") for s, miss in enumerate((1.0, 11.0))]
    (c,) = compared(tmp_path, errors)
    assert c.learned is False


def test_an_error_whose_interval_is_not_known_is_undecided_only_below_that_of_the_mean(tmp_path):
    for score, learned in [(12.0, None), (30.0, False), (31.0, False)]:
        body = factories.run("full", 0, score, metric="rmse", direction="min", majority=30.0)  # not its predictions'
        (c,) = compared(tmp_path / str(score), [body])
        assert c.learned is learned


def test_a_regression_that_is_not_learned_names_no_winner_and_no_class(tmp_path, no_figures):
    labels = [float(i) for i in range(40)]
    wrong = {"full": 1_463_087.0, "lora": 1_463_000.0}
    for label, miss in wrong.items():
        body = an_error(0, [y + miss for y in labels], labels, 553_947.0, "rmse")
        asked = factories.run(label, 0)
        record.write(tmp_path, {**body, **{k: asked[k] for k in ("spec", "spec_id", "slug")}})
    page = assemble.write(tmp_path)[0].read_text()
    for text in (assemble.text_table(tmp_path), page):
        assert "does not beat the mean of the training labels" in " ".join(text.split())
        assert "553,947" in text
        assert "majority" not in text
        assert "better than every other" not in text


# Times and sizes


def test_times_come_from_the_profile_alone(tmp_path):
    body = factories.run("lora", 0)
    body["time"] = {"step_seconds": {"median": 99.0, "iqr": 0.0, "n": 3, "samples": [99.0] * 3}, "source": "shared"}
    (c,) = compared(tmp_path, [body])
    assert entry(c, "lora").times is None
    assert assemble.rows(tmp_path)[0]["step_seconds"] is None
    assert any("not measured" in note for note in c.notes)
    record.write(tmp_path, factories.profile(["full", "lora"], step_ms={"lora": 71.0}))
    row = assemble.rows(tmp_path)[0]
    assert row["step_seconds"] == pytest.approx(0.071)
    assert row["latency_seconds"]["32"]["merged"] == pytest.approx(0.056)


def test_a_profile_of_other_hyperparameters_is_not_used(tmp_path):
    method = factories.method_spec("lora", hyper={"rank": 64})
    (c,) = compared(tmp_path, [factories.run("lora", 0, method=method), factories.profile(["full", "lora"])])
    assert entry(c, "lora").times is None


def test_the_newest_finished_profile_counts(tmp_path):
    old = factories.profile(["full", "lora"], started="2026-01-01T01:00:00Z", step_ms={"lora": 10.0})
    new = factories.profile(["full", "lora", "ia3"], started="2026-01-02T01:00:00Z", step_ms={"lora": 20.0})
    bad = factories.profile(["lora"], started="2026-01-03T01:00:00Z", status="oom", reason="too large")
    (c,) = compared(tmp_path, [factories.run("lora", 0), old, new, bad])
    assert entry(c, "lora").times.step.median == pytest.approx(0.020)
    assert any("profile pass ended as oom: too large" in note for note in c.notes)


def test_what_was_not_measured_is_a_dash_and_never_zero(tmp_path, no_figures):
    body = factories.run("lora", 0) | {"memory": None}
    (c,) = compared(tmp_path, [body])
    cells = dict(zip([k.heading for k in tables.columns(c)], tables.grid(tables.columns(c), c.entries)[0], strict=True))
    for heading in ("peak memory, MiB", "step, ms", "step / full", "latency, batch 1, ms (unmerged / merged)"):
        assert cells[heading] == "—", heading
    (row,) = csv.DictReader(io.StringIO(_csv(assemble.write(tmp_path))))
    assert row["peak_memory_bytes"] == row["step_seconds"] == row["latency_seconds_1_merged"] == ""


def _csv(paths):
    (path,) = [p for p in paths if p.suffix == ".csv"]
    return path.read_text()


def test_csv_keeps_whole_numbers_and_full_precision(tmp_path, no_figures):
    factories.write_all(tmp_path, [factories.run("full", s, v) for s, v in enumerate([0.1, 0.2, 0.4])])
    (row,) = csv.DictReader(io.StringIO(_csv(assemble.write(tmp_path))))
    assert row["trainable"] == "22565376"
    assert float(row["mean"]) == statistics.fmean([0.1, 0.2, 0.4])


@pytest.mark.parametrize(
    ("mark", "deviation", "shown"),
    [
        ("matched", 0.012, "matched (+1.2 %)"),
        ("nearest", -0.23, "nearest (−23.0 %)"),
        ("native", 299.9, "native (301×)"),
    ],
)
def test_the_size_mark_and_its_deviation_are_in_the_tables(tmp_path, mark, deviation, shown):
    method = factories.method_spec("lora", size=mark, deviation=deviation)
    (c,) = compared(tmp_path, [factories.run("lora", 0, method=method)])
    assert shown in tables.markdown(tables.columns(c), c.entries)
    assert (mark if mark == "native" else shown.removeprefix("matched ")) in assemble.text_table(tmp_path)


# What is compared with what


def test_experiments_and_budgets_are_never_mixed_in_one_table(tmp_path):
    bodies = [
        factories.run("lora", 0, 0.5),
        factories.run("lora", 0, 0.6, experiment="other", steps=41),
        factories.run("lora", 0, 0.7, steps=80),
    ]
    comparisons = compared(tmp_path, bodies)
    assert [(c.experiment, c.budget.steps, c.entries[0].mean) for c in comparisons] in (
        [("other", 41, 0.6), ("quickstart", 40, 0.5), ("quickstart", 80, 0.7)],
        [("other", 41, 0.6), ("quickstart", 80, 0.7), ("quickstart", 40, 0.5)],
        [("quickstart", 40, 0.5), ("quickstart", 80, 0.7), ("other", 41, 0.6)],
    )
    assert len({c.title for c in comparisons if c.experiment == "quickstart"}) == 2
    assert len({c.slug for c in comparisons}) == 3


def test_a_record_from_before_a_field_was_added_is_in_the_same_row(tmp_path):
    old, new = factories.run("lora", 0, 0.5), factories.run("lora", 1, 0.6)
    for part, name in (("train", "memory"), ("train", "tokens"), ("method", "exempt"), ("backbone", "compile")):
        del old["spec"][part][name]
    del old["spec"]["probes"]
    (c,) = compared(tmp_path, [old, new])
    assert entry(c, "lora").scores == {0: 0.5, 1: 0.6}


def test_without_a_profile_pass_the_reference_is_the_one_that_the_runs_were_given(tmp_path):
    bodies = [{**factories.run(label, 0), "reference": "dora"} for label in ("lora", "dora")]
    (c,) = compared(tmp_path, bodies)
    assert (c.reference, c.entries[0].label) == ("dora", "dora")


def test_a_label_with_two_settings_gets_two_rows_that_say_what_differs(tmp_path):
    (c,) = compared(tmp_path, [factories.run("lora", 0, 0.5), factories.run("lora", 0, 0.6, lr=1e-3)])
    assert {e.label: e.mean for e in c.entries} == {"lora (lr=0.005)": 0.5, "lora (lr=0.001)": 0.6}


def test_several_environments_are_noted(tmp_path):
    other = {**factories.ENV, "device": "cuda"}
    (c,) = compared(tmp_path, [factories.run("lora", 0), factories.run("lora", 1, env=other)])
    assert any("2 environments" in note for note in c.notes)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (0.034, "Times: with 1 thread; other programs used 3 % of the machine meanwhile."),
        (0.0, "Times: with 1 thread; other programs used 0 % of the machine meanwhile."),
        (0.10, "Times: with 1 thread; other programs used 10 % of the machine meanwhile."),
        (0.31, "Times: disturbed, with 1 thread; other programs used 31 % of the machine meanwhile. "
               "The ratios suffer less, as they are taken within rounds."),
        (None, "Times: no other run of this command beside them, with 1 thread."),
    ],
)  # fmt: skip
def test_the_note_says_how_busy_other_programs_kept_the_machine(tmp_path, others, said):
    (c,) = compared(tmp_path, [*factories.grid(seeds=1), factories.profile(others=others)])
    assert [note for note in c.notes if note.startswith("Times:")] == [said]


def test_two_passes_with_different_neighbours_are_both_described(tmp_path):
    first = factories.profile(["full", "lora"], others=0.02)
    second = factories.profile(["adapter"], others=0.4, started="2026-01-01T02:00:00Z")
    (c,) = compared(tmp_path, [*factories.grid(seeds=1), first, second])
    notes = " ".join(c.notes)
    assert "used 2 %" in notes
    assert "disturbed, with 1 thread; other programs used 40 %" in notes


def test_times_that_spread_over_half_of_their_median_are_called_too_noisy_by_name(tmp_path):
    passed = factories.profile()
    by_label = {row["label"]: row for row in passed["rows"]}
    step, unmerged = by_label["full"]["step_seconds"], by_label["prefix"]["latency"][0]["unmerged"]
    merged, quiet = by_label["lora"]["latency"][1]["merged"], by_label["adapter"]["step_seconds"]
    for noisy in (step, unmerged, merged):
        noisy["iqr"] = 0.51 * noisy["median"]
    quiet["iqr"] = 0.5 * quiet["median"]
    (c,) = compared(tmp_path, [*factories.grid(seeds=1), passed])
    (note,) = [n for n in c.notes if "too noisy" in n]
    assert note == (
        "Times too noisy to compare, their quartiles further apart than half of the median: full (step), "
        "lora (latency, batch 32, merged), prefix (latency, batch 1)."
    )


def test_a_pass_whose_first_timed_steps_are_slow_is_said_to_be_warmed_up_too_little(tmp_path):
    passed = factories.profile()
    by_label = {row["label"]: row for row in passed["rows"]}
    by_label["full"]["step_seconds"] |= {"samples": [0.17, 0.10, 0.11], "n": 3, "median": 0.11}
    by_label["lora"]["step_seconds"] |= {"samples": [0.11, 0.10, 0.11], "n": 3, "median": 0.11}
    (c,) = compared(tmp_path, [*factories.grid(seeds=1), passed])
    (note,) = [n for n in c.notes if "Warmed up too little" in n]
    assert "(full)" in note
    assert "warmup: 3" in note


def test_the_first_round_of_each_process_counts_and_not_of_the_first_alone(tmp_path):
    factories.write_all(tmp_path, [factories.profile()])
    (r,) = record.read_all(tmp_path)
    both = replace(r, processes=2)
    step = structs.replace(r.rows[0].step_seconds, samples=[1.0, 1.0, 2.0, 1.0])
    row = structs.replace(r.rows[0], step_seconds=step)
    assert times.of_row(row, both).first == 1.5
    assert times.of_row(row, r).first == 1.0


def test_quiet_times_have_no_such_note(tmp_path):
    (c,) = compared(tmp_path, [*factories.grid(seeds=1), factories.profile()])
    assert not [n for n in c.notes if "too noisy" in n]


def test_the_reference_comes_first_then_the_order_of_the_experiment(tmp_path):
    (c,) = compared(tmp_path, [*factories.grid(seeds=1), factories.profile(list(factories.EIGHT))])
    assert [e.label for e in c.entries] == list(factories.EIGHT)


# The average over tasks


def two_tasks(**scores):
    return [
        factories.run(label, 0, score, task=f"embedded/{task}", majority=0.1)
        for label, pair in scores.items()
        for task, score in zip(("a", "b"), pair, strict=True)
        if score is not None
    ]


def test_the_average_is_of_relative_scores_and_ranks(tmp_path):
    bodies = two_tasks(full=(0.8, 0.5), lora=(0.4, 0.5), dora=(0.6, 0.6))
    (a,) = averages(compared(tmp_path, bodies))
    by_label = {s.label: s for s in a.standings}
    assert by_label["lora"].relative == pytest.approx((0.5 + 1.0) / 2)
    assert by_label["dora"].relative == pytest.approx((0.75 + 1.2) / 2)
    assert by_label["lora"].rank == pytest.approx((3 + 2.5) / 2)  # ties share their mean rank
    assert by_label["dora"].rank == pytest.approx((2 + 1) / 2)


def test_only_tasks_that_every_method_finished_are_averaged(tmp_path):
    bodies = two_tasks(full=(0.8, 0.5), lora=(0.4, None))
    bodies.append(factories.run("lora", 0, task="embedded/b", status="diverged"))
    (a,) = averages(compared(tmp_path, bodies))
    assert a.tasks == ("embedded/a",)
    assert {s.label: s.relative for s in a.standings} == {"full": 1.0, "lora": 0.5}
    assert {s.label: s.failed for s in a.standings} == {"full": 0, "lora": 1}
    assert any("Left out of the average: embedded/b (no finished run of lora)" in n for n in a.notes)


def test_a_method_that_never_finished_has_a_row_without_an_average(tmp_path):
    bodies = [*two_tasks(full=(0.8, 0.5), lora=(0.4, 0.5)), factories.run("ia3", 0, task="embedded/a", status="oom")]
    (a,) = averages(compared(tmp_path, bodies))
    (ia3,) = [s for s in a.standings if s.label == "ia3"]
    assert (ia3.relative, ia3.rank, ia3.failed) == (None, None, 1)
    assert a.tasks == ("embedded/a", "embedded/b")


def test_a_task_that_was_not_learned_is_left_out_of_the_average(tmp_path):
    bodies = [factories.run(label, 0, 0.5, task="embedded/c", majority=0.5) for label in ("full", "lora")]
    (a,) = averages(compared(tmp_path, [*two_tasks(full=(0.8, 0.5), lora=(0.4, 0.5)), *bodies]))
    assert a.tasks == ("embedded/a", "embedded/b")
    assert any("embedded/c (not learned at this budget)" in n for n in a.notes)


def test_a_lower_score_counts_for_more_where_lower_is_better(tmp_path):
    bodies = [
        factories.run(label, 0, score, task=f"embedded/{task}", metric="perplexity", direction="min", majority=None)
        for label, score in (("full", 10.0), ("lora", 20.0))
        for task in "ab"
    ]
    (a,) = averages(compared(tmp_path, bodies))
    assert {s.label: (s.relative, s.rank) for s in a.standings} == {"full": (1.0, 1.0), "lora": (0.5, 2.0)}


def of_file(body, name, version=2):
    """The body of a run on a user's file that was called so at the time."""
    asked = replace(
        RunSpec.from_dict(body["spec"]), task=TaskSpec(name, "c" * 64, version, None, {"train": f"{name}.csv"})
    )
    return {**body, "spec": as_dict(asked), "spec_id": asked.id, "slug": asked.slug}


def test_runs_on_one_file_share_a_table_whatever_it_was_called(tmp_path):
    bodies = [of_file(factories.run(label, s, 0.5 + s / 10), name) for label in ("full", "lora") for s, name in NAMES]
    (c,) = compared(tmp_path, bodies)
    assert c.task == "local/moved"
    assert entry(c, "lora").n == 2
    tried = [factories.as_trial(body, i) for i, body in enumerate(bodies)]
    factories.write_all(tmp_path / "trials", tried)
    (tuned,) = tunings.of(record.read_all(tmp_path / "trials"))
    assert tuned.task == "local/moved"


def test_runs_on_a_file_of_the_older_identity_have_tables_of_their_own(tmp_path):
    bodies = [of_file(factories.run("lora", s, 0.5), name, version) for version in (1, 2) for s, name in NAMES]
    assert [c.task for c in compared(tmp_path, bodies)] == ["local/moved", "local/moved", "local/tickets"]


NAMES = list(enumerate(["local/tickets", "local/moved"]))
