"""Extensions: trials go on beyond an edge where the best value lies, by one rule, the same after every interruption."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import planning
import pytest
from planning import CONFIGURATIONS, TEXT, configuration, known, load, parameters, recorded

from peftbench.errors import UserError
from peftbench.method.registry import bounds
from peftbench.plan import grid as plan
from peftbench.plan import next_runs, run_limits, tuning
from peftbench.plan.configurations import Configuration
from peftbench.plan.experiment import Experiment
from peftbench.plan.grid import NO_RATE, Planned
from peftbench.records import trials
from peftbench.records.record import Record
from peftbench.records.spec import RunSpec, as_dict

TUNED = TEXT.replace("seeds: 2", "seeds: 2, trials: 4").replace("tasks: [{task: one, stand_in: other}, ", "tasks: [")
RATES = {"lr": (1e-4, 1e-2)}  # drawn: 0.0026, 0.00026, 0.00821, 0.000821
LORA = configuration("lora")
Score = Callable[[RunSpec], float | None]


def tuned(tmp_path: Path, *ones: Configuration, text: str = TUNED, measures: Any = run_limits.NONE) -> tuple[Any, Any]:
    asked = load(tmp_path, text)
    return asked, plan.grid(asked, known(asked), ones, parameters, measures=measures)


def ran(specs: Sequence[RunSpec], score: Score) -> list[Record]:
    return [recorded(s, "diverged" if (v := score(s)) is None else "finished", score=v) for s in specs]


def followed(asked: Experiment, planned: Sequence[Planned], score: Score) -> tuple[list[RunSpec], list[RunSpec]]:
    """All trials and the final runs of an experiment that is carried out to its end."""
    records: list[Record] = []
    for _ in range(20):
        specs = [s for s in next_runs.plan(asked, planned, records) if isinstance(s, RunSpec)]
        now = [s for s in specs if s.trial is not None]
        if not now:
            done = [r.spec for r in records if isinstance(r.spec, RunSpec)]
            return done, specs
        records += ran(now, score)
    raise AssertionError("it never ends")


def near(rate: float) -> Score:
    """A score that is best at a rate: minus the distance in factors, within what an accuracy may be."""
    return lambda s: 1 / (1 + max(s.train.lr / rate, rate / s.train.lr))


# The rule.


def test_trials_go_on_below_the_lowest_rate_until_the_best_lies_within(tmp_path: Path) -> None:
    tried, finals = followed(*tuned(tmp_path, replace(LORA, space=RATES)), near(2e-5))
    assert [s.trial for s in tried] == list(range(4 + 2 + 2))
    assert [s.train.lr for s in tried[4:]] == [7.07e-5, 3.54e-5, 1.77e-5, 8.84e-6], "a factor of 4 each time"
    assert [dict(s.space) for s in tried[4::2]] == [{"lr": [2.5e-5, 1e-2]}, {"lr": [6.25e-6, 1e-2]}]
    assert {tuple(s.first_space.get("lr", ())) for s in tried[4:]} == {RATES["lr"]}
    assert {s.train.lr for s in finals} == {1.77e-5}
    assert len(finals) == 2, "both seeds"


def test_a_best_value_within_extends_nothing_and_the_first_trials_stay_what_they_were(tmp_path: Path) -> None:
    asked, planned = tuned(tmp_path, replace(LORA, space=RATES))
    tried, finals = followed(asked, planned, near(1e-3))
    assert len(tried) == 4
    assert {s.train.lr for s in finals} == {8.21e-4}
    _, without = tuned(
        tmp_path, replace(LORA, space=RATES), text=TUNED.replace("trials: 4", "trials: 4, extensions: 0")
    )
    assert [p.spec.id for p in planned if p.spec.trial is not None] == [s.id for s in tried]
    assert [p.spec.id for p in without if p.spec.trial is not None] == [s.id for s in tried]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_number_of_extensions_has_a_limit(tmp_path: Path, number: int) -> None:
    text = TUNED.replace("trials: 4", f"trials: 4, extensions: {number}")
    tried, finals = followed(*tuned(tmp_path, replace(LORA, space=RATES), text=text), near(1e6))
    assert len(tried) == 4 + 2 * number
    assert {s.train.lr for s in finals} == {max(s.train.lr for s in tried)}


def test_two_methods_are_extended_on_different_sides_by_the_same_rule(tmp_path: Path) -> None:
    ones = [replace(LORA, space=RATES), replace(CONFIGURATIONS[0], space=RATES)]
    asked, planned = tuned(tmp_path, *ones)
    below, above = near(1e-6), near(1.0)
    tried, _ = followed(asked, planned, lambda s: (below if s.method.label == "lora" else above)(s))
    factors = {
        label: [round(abs_log(s.train.lr, end), 2) for s in tried if s.method.label == label and s.first_space]
        for label, end in (("lora", 1e-4), ("full", 1e-2))
    }
    assert factors["lora"] == factors["full"] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5], "halvings, and doublings"


def abs_log(rate: float, end: float) -> float:
    return abs(math.log2(rate / end))


def test_a_failed_trial_at_an_edge_is_beyond_the_best(tmp_path: Path) -> None:
    tried, finals = followed(
        *tuned(tmp_path, replace(LORA, space=RATES)), lambda s: None if s.train.lr > 8e-3 else s.train.lr
    )
    assert len(tried) == 4
    assert {s.train.lr for s in finals} == {2.6e-3}


def test_an_extension_whose_trials_fail_ends_it(tmp_path: Path) -> None:
    tried, finals = followed(
        *tuned(tmp_path, replace(LORA, space=RATES)), lambda s: None if s.train.lr > 1e-2 else s.train.lr
    )
    assert len(tried) == 4 + 2
    assert {s.train.lr for s in finals} == {8.21e-3}


def test_where_all_trials_failed_nothing_is_extended(tmp_path: Path) -> None:
    tried, finals = followed(*tuned(tmp_path, replace(LORA, space=RATES)), lambda s: None)
    assert len(tried) == 4
    assert {s.train.lr for s in finals} == {tried[0].train.lr}


@pytest.mark.parametrize(("first", "further"), [(1, 2), (4, 2), (8, 2), (12, 3), (40, 10)])
def test_an_extension_has_a_quarter_of_the_first_trials_and_two_at_the_least(first: int, further: int) -> None:
    assert tuning.further_trials(first) == further


# Hyperparameters other than the rate.


def test_a_list_goes_on_by_its_last_ratio_at_the_best_rate(tmp_path: Path) -> None:
    one = replace(LORA, space={**RATES, "alpha": (8.0, 16.0, 32.0)}, bounds={"alpha": {"exclusiveMinimum": 0}})
    asked, planned = tuned(tmp_path, one)
    tried, _ = followed(asked, planned, lambda s: 0.001 * s.method.hyper.get("alpha", 16.0) + near(2.6e-3)(s) / 1e4)
    more = [(s.train.lr, s.method.hyper["alpha"]) for s in tried if s.first_space]
    best_rate = max((s for s in tried[:4] if s.method.hyper.get("alpha") == 32.0), key=near(2.6e-3)).train.lr
    assert [alpha for rate, alpha in more if rate == best_rate][:2] == [64.0, 128.0]
    assert tried[-1].space["alpha"][:4] == [8.0, 16.0, 32.0, 64.0]


@pytest.mark.parametrize(
    ("values", "side", "limits", "further"),
    [
        ([8.0, 16.0, 32.0], "upper", {}, [64.0, 128.0]),
        ([32.0, 8.0, 16.0], "lower", {"exclusiveMinimum": 0}, [4.0, 2.0]),
        ([2, 4, 8], "lower", {"minimum": 1}, [1]),
        ([1, 2], "lower", {"minimum": 1}, []),
        ([1, 2], "lower", {}, []),
        ([1, 3], "upper", {"maximum": 9}, [9]),
        ([0.0, 0.1], "upper", {"minimum": 0, "exclusiveMaximum": 1}, [0.2, 0.3]),
        ([0.0, 0.1], "lower", {"minimum": 0, "exclusiveMaximum": 1}, []),
        ([0.0, 0.5], "upper", {"minimum": 0, "exclusiveMaximum": 1}, []),
        ([-1.0, 1.0], "lower", {}, [-3.0, -5.0]),
        ([1e-300, 1e300], "upper", {}, []),
        ([1, 10**300], "upper", {}, []),
    ],
)
def test_a_list_continues_within_the_limits_of_its_method(
    values: list[Any], side: str, limits: Mapping[str, float], further: list[Any]
) -> None:
    assert trials.beyond(values, side, limits, 2) == further
    assert [type(v) for v in trials.beyond(values, side, limits, 2)] == [type(v) for v in further]


@pytest.mark.parametrize(
    "values", [("relu", "gelu"), (True, False), (None, 1.0), (4.0,), ([1], [2]), (float("nan"), 1.0), (1, 10**400)]
)
def test_what_is_no_list_of_numbers_has_no_edge(values: Sequence[Any]) -> None:
    assert [trials.place(v, values) for v in values] == [None] * len(values)


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({"type": "integer", "minimum": 1}, {"minimum": 1}),
        ({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}, {"exclusiveMinimum": 0}),
        ({"type": "integer", "enum": [2, 4, 8]}, {"minimum": 2, "maximum": 8}),
        ({"type": "string", "enum": ["a", "b"]}, {}),
        ({"type": "boolean"}, {}),
        ({}, {}),
    ],
)
def test_the_limits_of_a_number_are_those_of_its_schema(schema: Mapping[str, Any], found: dict[str, float]) -> None:
    assert bounds(schema) == found


def test_a_value_at_a_limit_of_its_method_is_at_no_edge(tmp_path: Path) -> None:
    one = replace(LORA, space={"alpha": (1.0, 2.0)}, bounds={"alpha": {"minimum": 1}})
    asked, planned = tuned(tmp_path, one)
    mine = [p.spec for p in planned if p.spec.trial is not None]
    scores = {s.id: 1 / s.method.hyper["alpha"] for s in mine}
    done = [recorded(s, score=scores[s.id]) for s in mine]
    limited = [recorded(s, score=scores[s.id], bounds=one.bounds) for s in mine]
    assert trials.edges(limited) == {}
    assert trials.edges(done) == {"alpha": "lower"}, "a record that does not say the limits"
    assert all(s.trial is None for s in next_runs.plan(asked, planned, limited) if isinstance(s, RunSpec))
    assert all(s.trial is None for s in next_runs.plan(asked, planned, done) if isinstance(s, RunSpec))


def test_a_value_that_the_network_refuses_ends_the_range(tmp_path: Path) -> None:
    def check(spec: RunSpec, _: Any) -> None:
        if spec.method.hyper.get("alpha", 0) > 100:
            raise UserError("too large for this network")

    one = replace(LORA, space={"alpha": (8.0, 16.0, 32.0)}, lr=1e-3)
    asked, planned = tuned(tmp_path, one, measures=replace(run_limits.NONE, check_method=check))
    tried, finals = followed(asked, planned, lambda s: s.method.hyper.get("alpha", 16.0) / 1000)
    assert [s.method.hyper["alpha"] for s in tried if s.first_space] == [64.0]
    assert {s.method.hyper["alpha"] for s in finals} == {64.0}


def test_values_at_an_edge_of_both_hyperparameters_are_extended_apart(tmp_path: Path) -> None:
    one = replace(LORA, space={**RATES, "alpha": (8.0, 16.0, 32.0)})
    tried, _ = followed(
        *tuned(tmp_path, one), lambda s: min(1.0, s.train.lr) / 2 + s.method.hyper.get("alpha", 16.0) / 1e6
    )
    first = [s for s in tried if s.trial in range(4, 8)]
    best = max(tried[:4], key=lambda s: s.train.lr)
    assert best.method.hyper["alpha"] == 8.0
    assert [(s.train.lr, s.method.hyper["alpha"]) for s in first] == [
        (0.0141, 8.0), (0.0283, 8.0), (best.train.lr, 4.0), (best.train.lr, 2.0),
    ]  # fmt: skip


# A function of the records.


def test_a_grid_that_is_killed_anywhere_resumes_to_the_same_trials(tmp_path: Path) -> None:
    ones = [replace(LORA, space=RATES), replace(CONFIGURATIONS[0], space=RATES)]
    asked, planned = tuned(tmp_path, *ones)
    score = near(2e-5)
    whole, finals = followed(asked, planned, score)
    rng = random.Random(0)
    for _ in range(20):
        records: list[Record] = []
        while left := [
            s for s in next_runs.plan(asked, planned, records) if isinstance(s, RunSpec) and s.trial is not None
        ]:
            kept = ran(rng.sample(left, rng.randrange(1, len(left) + 1)), score)
            killed = [recorded(s, "killed") for s in left[:1] if s.id not in {r.spec_id for r in kept}]
            records = [*records, *kept, *killed]
            rng.shuffle(records)
        assert {r.spec_id for r in records} == {s.id for s in whole}
        assert [s.id for s in next_runs.plan(asked, planned, records)] == [s.id for s in finals]


def test_final_runs_wait_for_the_trials_of_an_extension_and_no_trial_is_planned_twice(tmp_path: Path) -> None:
    asked, planned = tuned(tmp_path, replace(LORA, space=RATES))
    first = ran([p.spec for p in planned if p.spec.trial is not None], near(1e-9))
    left = next_runs.plan(asked, planned, first)
    assert [(s.trial, s.seed) for s in left if isinstance(s, RunSpec)] == [(4, 0), (5, 0)]
    half = [*first, *ran([s for s in left if isinstance(s, RunSpec)][:1], near(1e-9))]
    assert [s.trial for s in next_runs.plan(asked, planned, half) if isinstance(s, RunSpec)] == [5]
    ids = [s.id for s in next_runs.all_specs(asked, planned, half)]
    assert len(ids) == len(set(ids)) == 6


def test_a_plan_with_extensions_can_be_resolved_again(tmp_path: Path) -> None:
    asked, planned = tuned(tmp_path, replace(LORA, space=RATES))
    tried, _ = followed(asked, planned, near(2e-5))
    done = ran(tried, near(2e-5))
    once = next_runs.with_best_trials(planned, done)
    assert [p.spec.id for p in next_runs.with_best_trials(once, done)] == [p.spec.id for p in once]


def test_what_may_still_come_shrinks_as_extensions_are_used(tmp_path: Path) -> None:
    _, planned = tuned(tmp_path, replace(LORA, space=RATES), CONFIGURATIONS[0])
    assert {(p.label, p.may_come) for p in planned if p.spec.trial is None} == {("lora", 6), ("full", 0)}
    records: list[Record] = []
    seen = []
    for _ in range(5):
        now = next_runs.with_best_trials(planned, records)
        seen.append((sum(p.spec.trial is not None for p in now), max(p.may_come for p in now)))
        records += ran([p.spec for p in now if p.spec.trial is not None], near(1e-9))
    assert seen == [(4, 6), (6, 4), (8, 2), (10, 0), (10, 0)]


def test_a_trial_of_an_extension_is_read_as_it_was_planned(tmp_path: Path) -> None:
    _, planned = tuned(tmp_path, replace(LORA, space=RATES))
    extension = replace(planned[0].spec, trial=4, space={"lr": [2.5e-5, 1e-2]}, first_space={"lr": [1e-4, 1e-2]})
    assert RunSpec.from_dict(as_dict(extension)).id == extension.id
    assert len({extension.id, replace(extension, first_space={}).id}) == 2


# Methods without a rate.

PROBED = """\
name: probed
backbone: tiny-encoder
tasks: [{task: synthetic/classification, rows: 60}]
budget: {steps: 3, seeds: 1, trials: 2, max_length: 16, batch_size: 4}
train: {head_lr: 5e-3}
methods: [linear_probe, bitfit]
"""
PROBE = replace(configuration("full", knob=None), name="full", label="probe", space=RATES)


def probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, one: Configuration) -> list[Planned]:
    monkeypatch.setitem(planning.PARAMETERS, "full", lambda hyper: 0)
    text = TUNED.replace("methods:", f"train: {{{head}}}\nmethods:")
    return tuned(tmp_path, one, text=text)[1]


def test_a_method_that_trains_nothing_at_its_rate_has_no_trials_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = probed(tmp_path, monkeypatch, "head_lr: 5e-3", PROBE)
    assert [(p.spec.trial, p.waits, dict(p.spec.method.exempt)) for p in planned] == [
        (None, False, {"trials": NO_RATE})
    ] * 2


@pytest.mark.slow
def test_the_linear_probe_needs_no_word_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(PROBED)
    found = {
        p.label: (len(p.trials), set(p.spec.method.exempt)) for p in planning.prepared(path).planned if not p.spec.seed
    }
    assert found["linear_probe"] == (0, {"trials"})
    assert found["bitfit"] == (2, set())
    path.write_text(PROBED.replace("head_lr: 5e-3", "warmup: 0.1"))
    assert {len(p.trials) for p in planning.prepared(path).planned if p.spec.trial is None} == {2}


def test_without_a_rate_for_the_head_it_is_tuned_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = probed(tmp_path, monkeypatch, "warmup: 0.1", PROBE)
    assert sum(p.spec.trial is not None for p in planned) == 4
    assert not any(p.spec.method.exempt for p in planned)


def test_what_else_matters_to_it_is_still_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(PROBE, space={**RATES, "tau": (1.0, 2.0, 4.0)}, defaults={"tau": 1.0})
    planned = probed(tmp_path, monkeypatch, "head_lr: 5e-3", one)
    drawn = [p.spec for p in planned if p.spec.trial is not None]
    assert {s.train.lr for s in drawn} == {1e-3}
    assert {s.method.hyper.get("tau", 1.0) for s in drawn} == {1.0, 2.0, 4.0}
    assert [dict(s.space) for s in drawn] == [{"tau": [1.0, 2.0, 4.0]}] * 4
    assert not any(p.spec.method.exempt for p in planned)


def test_a_rate_that_the_file_gives_it_needs_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = probed(tmp_path, monkeypatch, "head_lr: 5e-3", replace(PROBE, space={}))
    assert not any(p.spec.method.exempt for p in planned)
    assert all(p.spec.trial is None for p in planned)
