"""Predicted times: from finished runs, from what was measured, by arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning import TEXT, grid, load, recorded

from peftbench.estimate.run import calibrate, run_time
from peftbench.estimate.run.calibrate import Costs
from peftbench.plan import experiment


@pytest.fixture
def asked(tmp_path: Path) -> experiment.Experiment:
    return load(tmp_path, TEXT)


NOTHING = Costs(None, {}, {}, {})
COST = {
    "setup": 2.0,
    "tracked": 5.0,
    "steps": {"10": 1.0, "20": 3.0},
    "evaluated": {"10": 0.5, "20": 1.0},
}
SHAPE = {"train": {"10": 3, "15": 2}, "validation": {"10": 1.0}, "test": {"20": 2.5}}


def measured(planned: list[Any], **cost: Any) -> Costs:
    keys = [calibrate.task_key(p.spec) for p in planned]
    batches = {calibrate.batch_key(p.spec): {} for p in planned}
    return Costs(3.0, dict.fromkeys(keys, 1.0), dict.fromkeys(keys, SHAPE), cost, batches)


def test_times_come_from_finished_runs_of_the_same_label_scaled_by_their_steps(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    like = next(p.spec for p in everything if p.label == "lora" and p.spec.task.name == "two")
    told = run_time.predict(everything, [recorded(like, seconds=70.0)], NOTHING)
    found = [told[p.spec.id] for p in everything if p.label == "lora" and p.spec.task.name == "two"]
    assert [(f.seconds, f.source) for f in found] == [(70.0, "finished runs")] * 2


def test_a_measured_time_is_the_sum_over_the_batches_that_the_run_will_see(asked: experiment.Experiment) -> None:
    (p, *_) = everything = grid(asked)
    told = run_time.predict(everything, [], measured(everything, **{calibrate.run_key(p): COST}))[p.spec.id]
    once, trained, looked = 2.0 + (5.0 - 3.0), 3 * 1.0 + 2 * 2.0, 0.5 + 2.5 * 1.0
    assert told.source == "calibration"
    assert told.seconds == told.measured == pytest.approx(once + trained + looked)


def test_finished_runs_do_not_change_what_the_calibration_says(asked: experiment.Experiment) -> None:
    (p, *_) = everything = grid(asked)
    costs = measured(everything, **{calibrate.run_key(p): COST})
    told = run_time.predict(everything, [recorded(p.spec, seconds=70.0)], costs)[p.spec.id]
    assert (told.seconds, told.source) == (70.0, "finished runs")
    assert told.measured == run_time.predict(everything, [], costs)[p.spec.id].seconds


def test_a_configuration_that_was_not_timed_takes_as_long_as_the_nearest_that_was(asked: experiment.Experiment) -> None:
    everything = [p for p in grid(asked) if p.spec.task.name == "one"]
    by_label = {p.label: p for p in everything}
    slow = {**COST, "setup": 100.0}
    timed = {calibrate.run_key(by_label["full"]): slow, calibrate.run_key(by_label["lora"]): COST}
    told = run_time.predict(everything, [], measured(everything, **timed, none=None))
    assert told[by_label["lora rank=2"].spec.id].seconds == told[by_label["lora"].spec.id].seconds
    assert told[by_label["full"].spec.id].seconds > 100


def test_what_is_known_is_not_measured_again(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    tasks, runs = calibrate.missing(everything, NOTHING)
    assert len(tasks) == 2
    assert len(runs) == 6, "three configurations, with two shapes of batches; not one for each seed"
    known = measured(everything, **dict.fromkeys(runs, COST))
    assert calibrate.missing(everything, known) == ({}, {})


def test_a_rate_or_a_seed_changes_no_key_and_a_size_does(asked: experiment.Experiment) -> None:
    p = grid(asked)[1]
    train, method = p.spec.train, p.spec.method
    faster = replace(p, spec=replace(p.spec, seed=7, train=replace(train, lr=9.0, steps=99)))
    larger = replace(p, spec=replace(p.spec, method=replace(method, hyper={"rank": 99})))
    assert calibrate.run_key(faster) == calibrate.run_key(p) != calibrate.run_key(larger)


def test_between_two_measured_lengths_a_time_lies_on_the_line() -> None:
    assert run_time.at(15, {"10": 1.0, "20": 3.0, "40": 4.0}) == 2.0
    assert run_time.at(30, {"10": 1.0, "20": 3.0, "40": 4.0}) == 3.5
    assert run_time.at(5, {"10": 1.0, "20": 3.0}) == 0.0
    assert run_time.at(30, {"10": 1.0}) == 3.0


def test_by_arithmetic_full_fine_tuning_takes_longer(asked: experiment.Experiment) -> None:
    by_label = {p.label: run_time.computed(p) for p in grid(asked) if p.spec.task.name == "one"}
    assert by_label["full"] > by_label["lora"] > run_time.SETUP_SECONDS


def test_where_only_the_head_trains_no_backward_pass_is_predicted(asked: experiment.Experiment) -> None:
    for p in grid(asked):
        assert run_time.computed(replace(p, trainable=0)) < run_time.computed(p)
