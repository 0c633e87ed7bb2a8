"""A tuned experiment through the command line: plan, run, plan again, run again; and one under a limit of seconds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from commands import Call

from peftbench.records import record
from peftbench.records.record import RunRecord, TrialRecord

TEXT = """\
name: tuned
backbone: tiny-encoder
tasks: [{task: synthetic/classification, rows: 60}]
budget: {trainable_params: 2000, tolerance: 0.2, steps: 4, seeds: 2, max_length: 16, batch_size: 4%s}
profile: false
methods: [full, %s, {ia3: {lr: 1e-2}}]
"""
TRIED = (
    ", trials: 2, tuning_steps: 3, extensions: 0",
    "{lora: {search_space: {lr: [1e-3, 1e-1], alpha: [8.0, 16.0]}}}",
)


def output(call: Call, *args: str) -> str:
    """What a command prints, which has to succeed; white space is not told apart."""
    done = call(*args)
    assert done.code == 0, done.err
    return " ".join(done.out.split())


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_tuned_experiment_is_planned_run_and_reported(call: Call, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(TEXT % TRIED)
    rows = json.loads(output(call, "plan", "e.yaml", "--json"))
    assert Counter((r["label"], r["trial"] is not None) for r in rows) == {
        ("full", True): 2, ("lora", True): 2, ("full", False): 2, ("lora", False): 2, ("ia3", False): 2,
    }  # fmt: skip
    assert {r["lr"] for r in rows if r["waits_for_trials"]} == {None}
    assert all(r["predicted_seconds"] > 0 for r in rows)
    shown = output(call, "plan", "e.yaml")
    assert "10 runs (4 of them tuning trials), 0 finished" in shown
    assert "not tuned, at the rate given: ia3" in shown

    assert "2 trials of 3 steps a method" in output(call, "run", "e.yaml")
    runs = [r for r in record.read_all(tmp_path / "results" / "tuned") if r.kind == "run"]
    assert len(runs) == 10
    for label in ("full", "lora"):
        mine = [r for r in runs if r.spec.method.label == label]
        best = max((r for r in mine if isinstance(r, TrialRecord)), key=lambda r: r.metrics.validation["accuracy"])
        rates = {r.spec.train.lr for r in mine if isinstance(r, RunRecord)}
        scores = {r.metrics.validation["accuracy"] for r in mine if isinstance(r, TrialRecord)}
        assert rates == {best.spec.train.lr} or len(scores) == 1, label
    report = tmp_path / "results" / "tuned" / "report"
    assert len(list((report / "figures").glob("*--tuning--*.png"))) == 2

    assert "10 runs (4 of them tuning trials), 10 finished, 0 to run" in output(call, "plan", "e.yaml")
    output(call, "run", "e.yaml")
    assert len([r for r in record.read_all(tmp_path / "results" / "tuned") if r.kind == "run"]) == 10
    assert "10 identical" in output(call, "verify", "results/tuned")


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_best_value_at_an_edge_is_followed_beyond_it(call: Call, tmp_path: Path) -> None:
    edge = "{lora: {search_space: {lr: [1e-9, 1e-8]}}}"  # too low to learn: the best of equal scores is the first
    (tmp_path / "e.yaml").write_text(TEXT % (", trials: 2, tuning_steps: 3, extensions: 1", edge))
    shown = output(call, "plan", "e.yaml", "--only", "method=lora")
    assert "4 runs (2 of them tuning trials), 0 finished" in shown
    assert "and 0 to 2 trials more" in shown
    output(call, "run", "e.yaml", "--only", "method=lora", "--quiet")
    trials = [r for r in record.read_all(tmp_path / "results" / "tuned") if isinstance(r, TrialRecord)]
    beyond = [r.spec for r in trials if r.spec.first_space]
    assert len(trials) == 4, "each of two trials is at an edge"
    assert [dict(s.first_space) for s in beyond] == [{"lr": [1e-9, 1e-8]}] * 2
    shown = output(call, "plan", "e.yaml", "--only", "method=lora")
    assert "6 runs (4 of them tuning trials, 2 of these beyond an edge of their search space), 6 finished" in shown
    assert "trials more" not in shown
    assert "4 identical" in output(call, "verify", "results/tuned", "--sample", "4")


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_limit_of_seconds_holds_through_the_command_line(call: Call, tmp_path: Path) -> None:
    text = (TEXT % ("", "lora")).replace("steps: 4", "seconds: 0.2")
    (tmp_path / "e.yaml").write_text(text)
    assert "0.2 s" in output(call, "plan", "e.yaml")
    shown = output(call, "run", "e.yaml", "--only", "method=lora", "--only", "seed=0")
    assert "after 0.2 seconds of training steps" in shown
    (run,) = (r for r in record.read_all(tmp_path / "results" / "tuned") if r.kind == "run")
    assert run.body.trained.seconds >= 0.2
    assert run.body.trained.repeatable is False
    done = call("verify", "results/tuned")
    assert done.code == 1, "nothing could be repeated"
    assert "not repeatable" in " ".join(done.out.split())
