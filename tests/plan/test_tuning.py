"""Tuning: every method gets the same trials, the choice is validation's alone, and final runs wait for it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_session
import pytest
from planning import CONFIGURATIONS, TEXT, known, load, parameters, recorded

from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.estimate.run import calibrate, run_memory, run_time
from peftbench.estimate.run.calibrate import Costs
from peftbench.method.catalogue import Catalogue
from peftbench.plan import configurations, experiment, next_runs, tuning
from peftbench.plan import grid as plan
from peftbench.plan.configurations import Configuration
from peftbench.plan.grid import Planned
from peftbench.plan.selection import Selection
from peftbench.records.record import Record, TrialRecord
from peftbench.records.spec import ProfileSpec, RunSpec
from peftbench.run import runner

TUNED = TEXT.replace("seeds: 2", "seeds: 2, trials: 4, extensions: 0")  # test_extensions.py is about those
SPACES = {"full": {"lr": (1e-5, 1e-3)}, "lora": {"lr": (1e-4, 1e-1), "alpha": (8.0, 16.0, 32.0)}}
TUNED_ONES = [replace(c, space=SPACES.get(c.label, {})) for c in CONFIGURATIONS]  # "lora rank=2" has a given rate


@pytest.fixture
def asked(tmp_path: Path) -> experiment.Experiment:
    return load(tmp_path, TUNED)


def grid(
    asked: experiment.Experiment, part: Selection | None = None, ones: Sequence[Configuration] = TUNED_ONES
) -> list[Planned]:
    return plan.grid(asked, known(asked), ones, parameters, part or Selection())


def trials(planned: Sequence[Planned], label: str, task: str = "one") -> list[RunSpec]:
    return [p.spec for p in planned if p.spec.trial is not None and p.label == label and p.spec.task.name == task]


def scored(specs: Sequence[RunSpec], scores: Sequence[float | None], **more: Any) -> list[Record]:
    """Records of trials; None is one that diverged."""
    return [
        recorded(spec, "diverged" if score is None else "finished", score=score, **more)
        for spec, score in zip(specs, scores, strict=True)
    ]


# What is drawn.


def test_trials_of_all_methods_lie_at_the_same_points_of_their_own_spaces(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    for task in ("one", "two"):
        shares = {
            label: [math.log(s.train.lr / low) / math.log(high / low) for s in trials(everything, label, task)]
            for label, (low, high) in ((label, space["lr"]) for label, space in SPACES.items())
        }
        assert len(shares["full"]) == 4
        assert shares["full"] == pytest.approx(shares["lora"], abs=2e-3), "rates are rounded to three digits"
        assert len({round(s, 2) for s in shares["full"]}) == 4


def test_the_points_are_those_of_the_records_that_there_are() -> None:
    """Another sequence (or another version's way to scramble it) would run all trials again."""
    space = {"lr": (1e-4, 1e-2), "alpha": (8, 16, 32)}
    drawn = [tuning.draw(space, i) for i in range(4)]
    assert [d["lr"] for d in drawn] == [0.0026, 0.00026, 0.00821, 0.000821]
    assert [d["alpha"] for d in drawn] == [16, 32, 8, 16]


def test_the_rates_of_few_trials_are_spread_over_the_space() -> None:
    space = {"lr": (1e-4, 1.0)}
    quarters = {int(math.log10(tuning.draw(space, i)["lr"] / 1e-4)) for i in range(4)}
    assert quarters == {0, 1, 2, 3}, "one in each of its four decades"


def test_a_second_hyperparameter_takes_its_listed_values_and_no_others() -> None:
    drawn = Counter(tuning.draw({"alpha": (8, 16, 32), "lr": (1e-4, 1e-2)}, i)["alpha"] for i in range(12))
    assert drawn == {8: 4, 16: 4, 32: 4}


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path, asked: experiment.Experiment) -> None:
    more = grid(load(tmp_path, TUNED.replace("trials: 4", "trials: 6")))
    assert [s.id for s in trials(more, "lora")][:4] == [s.id for s in trials(grid(asked), "lora")]


def test_a_drawn_value_leaves_the_size_where_the_budget_put_it(asked: experiment.Experiment) -> None:
    sizes = {
        (p.spec.method.size, p.trainable, p.spec.method.hyper.get("rank")) for p in grid(asked) if p.label == "lora"
    }
    assert sizes == {("matched", 1024, None)}, "rank 8, the default"


def test_trials_share_their_random_streams_and_no_final_run_has_them(asked: experiment.Experiment) -> None:
    everything = [p.spec for p in grid(asked) if p.spec.task.name == "one"]
    tuning_axes = {s.axes for s in everything if s.trial is not None}
    assert len(tuning_axes) == 1
    assert not tuning_axes & {s.axes for s in everything if s.trial is None}


def test_trials_are_as_long_as_final_runs_unless_the_file_says_otherwise(
    tmp_path: Path, asked: experiment.Experiment
) -> None:
    assert {s.train.steps for s in trials(grid(asked), "lora", "two")} == {7}
    shorter = grid(load(tmp_path, TUNED.replace("trials: 4", "trials: 4, tuning_steps: 3")))
    assert {s.train.steps for s in trials(shorter, "lora", "two")} == {3}
    assert {p.spec.train.steps for p in shorter if p.spec.trial is None and p.spec.task.name == "two"} == {7}


# What is planned when.


def test_all_trials_come_before_all_final_runs(asked: experiment.Experiment) -> None:
    kinds = [p.spec.trial is not None for p in grid(asked)]
    assert kinds == sorted(kinds, reverse=True)
    assert sum(kinds) == 2 * 2 * 4, "two tuned methods, two tasks"
    assert len(kinds) - sum(kinds) == 2 * 3 * 2, "three methods, two tasks, two seeds"


def test_final_runs_wait_until_every_trial_of_their_method_and_task_is_settled(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    mine = trials(everything, "lora")
    ready = [s for s in next_runs.plan(asked, everything, []) if isinstance(s, RunSpec) and s.trial is None]
    assert {s.method.label for s in ready} == {"lora rank=2"}, "the one that is not tuned"
    ready = next_runs.plan(asked, everything, scored(mine[:3], [0.1, 0.2, 0.3]))
    assert {s.method.label for s in ready if s.trial is None} == {"lora rank=2"}
    ready = next_runs.plan(asked, everything, scored(mine, [0.1, 0.2, 0.3, 0.0]))
    found = [(s.method.label, s.task.name) for s in ready if s.trial is None and s.method.label == "lora"]
    assert found == [("lora", "one")] * 2, "two seeds, and not yet on the other task"


def test_final_runs_have_the_values_of_the_best_trial(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    mine = trials(everything, "lora")
    finals = finals_of(asked, everything, scored(mine, [0.1, 0.9, 0.3, 0.2]))
    assert {(f.train.lr, json.dumps(dict(f.method.hyper))) for f in finals} == {
        (mine[1].train.lr, json.dumps(dict(mine[1].method.hyper)))
    }
    assert [(f.seed, f.trial, f.space) for f in finals] == [(0, None, {}), (1, None, {})]


@pytest.mark.parametrize(
    ("scores", "direction", "won"),
    [
        ([0.1, 0.9, 0.3, 0.2], "min", 0),
        ([None, 0.2, 0.5, None], "max", 2),
        ([None, 9.0, None, 5.0], "min", 3),
        ([0.5, 0.7, 0.7, 0.1], "max", 1),
        ([None, None, None, None], "max", 0),
    ],
)
def test_which_trial_wins(asked: experiment.Experiment, scores: list[float | None], direction: str, won: int) -> None:
    everything = grid(asked)
    mine = trials(everything, "full")
    finals = finals_of(asked, everything, scored(mine, scores, direction=direction), "full")
    assert {f.train.lr for f in finals} == {mine[won].train.lr}


def finals_of(
    asked: experiment.Experiment, everything: Sequence[Planned], records: Sequence[Record], label: str = "lora"
) -> list[RunSpec]:
    specs = [s for s in next_runs.plan(asked, everything, records) if isinstance(s, RunSpec)]
    return [s for s in specs if s.trial is None and s.method.label == label and s.task.name == "one"]


def test_a_killed_trial_is_repeated_and_a_failed_one_counts(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    mine = trials(everything, "lora")
    records = scored(mine, [0.1, 0.2, 0.3, 0.2])
    killed = [*records[:3], recorded(mine[3], "killed")]
    assert mine[3] in next_runs.plan(asked, everything, killed)
    assert not finals_of(asked, everything, killed)
    assert finals_of(asked, everything, [*records[:3], recorded(mine[3], "oom")])


def test_a_trial_killed_in_this_invocation_leaves_its_final_runs_and_the_passes_for_the_next(
    asked: experiment.Experiment,
) -> None:
    everything = grid(asked)
    every_trial = [p.spec for p in everything if p.spec.trial is not None]
    kept = [recorded(p.spec) for p in everything if p.spec.trial is None and not p.trials]
    now = [*kept, recorded(every_trial[0], "killed"), *scored(every_trial[1:], [0.1] * (len(every_trial) - 1))]
    left = next_runs.plan(asked, everything, now, before=kept)
    assert {(s.method.label, s.task.name) for s in left} == {("full", "two"), ("lora", "one"), ("lora", "two")}
    done = [*now, *map(recorded, left)]
    assert next_runs.plan(asked, everything, done, before=kept) == [], "no pass that would lack a method"
    assert next_runs.plan(asked, everything, done) == [every_trial[0]]


def test_retrying_failed_trials_comes_before_final_runs(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    mine = trials(everything, "lora")
    records = scored(mine, [0.1, None, 0.3, 0.2])
    again = next_runs.plan(asked, everything, records, retry_failed=True)
    assert mine[1] in again
    assert not [s for s in again if isinstance(s, RunSpec) and s.trial is None and s.method.label == "lora"]


def test_a_profile_pass_has_the_chosen_values_and_no_trials(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    settled = [trials(everything, label, task) for label in SPACES for task in ("one", "two")]
    records = [r for mine in settled for r in scored(mine, [1.0, 2.0, 0.0, 0.5])]
    finals = next_runs.plan(asked, everything, records)
    assert not any(isinstance(s, ProfileSpec) for s in finals)
    passes = next_runs.plan(asked, everything, [*records, *map(recorded, finals)])
    assert {type(p) for p in passes} == {ProfileSpec}
    first = next(p for p in passes if isinstance(p, ProfileSpec))
    rates = dict(zip((m.label for m in first.methods), first.lrs, strict=True))
    assert rates == {
        "full": trials(everything, "full")[1].train.lr,
        "lora": trials(everything, "lora")[1].train.lr,
        "lora rank=2": 1e-3,
    }


def test_a_part_by_seed_keeps_the_trials_that_its_final_runs_need(asked: experiment.Experiment) -> None:
    part = grid(asked, Selection.parse(["seed=1", "method=lora", "task=one"], asked, TUNED_ONES))
    assert len(trials(part, "lora")) == 4
    assert {p.spec.seed for p in part if p.spec.trial is None} == {1}
    assert {p.spec.method.name for p in part} == {"lora"}


# What is predicted.


def test_final_runs_are_predicted_before_their_values_are_known(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    told = run_time.predict(everything, [], Costs(None, {}, {}, {}))
    assert all(told[p.spec.id].seconds > 0 for p in everything)
    mine = [p for p in everything if p.label == "lora" and p.spec.task.name == "one"]
    by_kind = {p.spec.trial is None: told[p.spec.id].seconds for p in mine}
    assert by_kind[True] > by_kind[False], "a trial is not tested"


def test_what_tuning_draws_is_neither_timed_nor_simulated_apart(asked: experiment.Experiment) -> None:
    everything = [p for p in grid(asked) if p.spec.task.name == "one" and p.label == "lora"]
    assert len({json.dumps(dict(p.spec.method.hyper)) for p in everything}) > 1
    assert len({calibrate.run_key(p) for p in everything}) == 1
    assert len({key for key, _ in run_memory._queries(everything, Costs(None, {}, {}, {})).values()}) == 1
    mine = trials(everything, "lora")
    resolved = next_runs.with_best_trials(everything, scored(mine, [0.0, 0.0, 0.0, 1.0]))
    assert {calibrate.run_key(p) for p in resolved} == {calibrate.run_key(p) for p in everything}


def test_the_batches_of_trials_are_asked_for_apart_from_those_of_seeds(asked: experiment.Experiment) -> None:
    everything = [p for p in grid(asked) if p.spec.task.name == "one"]
    keys = {(p.spec.trial is None, p.spec.seed): calibrate.batch_key(p.spec) for p in everything}
    assert len(set(keys.values())) == 3, "two seeds, and one stream for all trials"


# What the file says.


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return Catalogue(stores=Stores(tmp_path_factory.mktemp("answers")))


def spaces(tmp_path: Path, catalogue: Catalogue, methods: str, more: str = "") -> dict[str, Any]:
    asked = load(tmp_path, TUNED.replace("[placeholder]", methods).replace("trials: 4", f"trials: 4{more}"))
    return {c.label: c.space for c in configurations.expand(asked, catalogue.methods(), catalogue.hyper)}


def test_every_method_declares_rates_to_tune(tmp_path: Path, catalogue: Catalogue) -> None:
    found = spaces(tmp_path, catalogue, f"[{', '.join(catalogue.methods())}]")
    for label, space in found.items():
        low, high = space["lr"]
        assert 0 < low < high / 90, f"{label}: about two decades, so that the best lies within for most networks"
        assert low <= catalogue.methods()[label].lr <= high or label == "prefix", (
            f"{label}: its default is of the space"
        )
        assert len(space) <= 2, label


def test_a_rate_that_the_file_gives_is_kept_without_trials(tmp_path: Path, catalogue: Catalogue) -> None:
    found = spaces(tmp_path, catalogue, "[lora, {dora: {lr: 1e-3}}, {ia3: {lr: [1e-3, 1e-2]}}]")
    assert found["lora"]["lr"] == (2e-4, 2e-2)
    assert {label: s for label, s in found.items() if label != "lora"} == {
        "dora": {},
        "ia3 lr=0.001": {},
        "ia3 lr=0.01": {},
    }


def test_what_the_file_fixes_or_the_budget_solves_is_not_drawn(tmp_path: Path, catalogue: Catalogue) -> None:
    found = spaces(tmp_path, catalogue, "[{lora_plus: {ratio: 4.0}}, adalora]")
    assert set(found["lora_plus"]) == {"lr"}
    assert list(found["adalora"]) == ["lr", "gamma"]
    declared = {"lr": (1e-4, 1e-2), "rank": (4, 8), "ratio": (8.0, 16.0)}
    assert list(tuning.declared_space(declared, [])) == ["lr", "rank"], "the first that it declares"
    assert list(tuning.declared_space(declared, ["rank"])) == ["lr", "ratio"], "the next one, where the first is given"


def test_a_space_in_the_file_stands_in_place_of_the_methods_own(tmp_path: Path, catalogue: Catalogue) -> None:
    whole = "{lora: {search_space: {lr: [1e-2, 1e-3, 1e-1], dropout: [0.0, 0.1]}}}"
    part = "{dora: {lr: 1e-3, search_space: {alpha: [4.0, 8.0]}}}"
    text = f"[{whole}, {part}]"
    found = spaces(tmp_path, catalogue, text)
    assert found["lora"] == {"lr": (1e-3, 1e-1), "dropout": (0.0, 0.1)}
    assert found["dora"] == {"alpha": (4.0, 8.0)}, "at the rate that is given"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("{lora: {search_space: 3}}", "methods[0].lora.search_space (line 5): given 3; valid: two or more values"),
        ("{lora: {search_space: {lr: [1e-3]}}}", "two or more values"),
        ("{lora: {search_space: {lr: [1e-3, -1]}}}", "a learning rate is a number above 0"),
        ("{lora: {search_space: {lr: [1e-3, 1e-3]}}}", "must differ"),
        ("{lora: {search_space: {alpha: [1.0, 2.0]}}}", "lr is always tuned; add lr"),
        ("{lora: {lr: 1e-3, search_space: {lr: [1e-3, 1e-2]}}}", "lr is given as a value and as a space; remove one"),
        ("{lora: {alpha: 2.0, search_space: {lr: [1e-3, 1e-2], alpha: [1.0, 2.0]}}}", "alpha is given as a value and"),
        ("{lora: {search_space: {lr: [1e-3, 1e-2], rank: [1, 2]}}}", "rank is decided by the budget"),
        ("{lora: {search_space: {lr: [1e-3, 1e-2], alpha: [0.0, 2.0]}}}", "alpha"),
        ("{lora: {search_space: {lr: [1e-3, 1e-2], alpa: [1.0, 2.0]}}}", "did you mean 'alpha'?"),
        ("{lora: {search_space: {lr: [1e-3, 1e-2], alpha: [1.0, 2.0], dropout: [0.0, 0.1]}}}", "at most one"),
    ],
)
def test_a_space_that_cannot_be_drawn_from_names_its_place_and_the_fix(
    tmp_path: Path, catalogue: Catalogue, method: str, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        spaces(tmp_path, catalogue, f"[{method}]")
    assert "methods[0].lora" in str(caught.value)
    assert said in str(caught.value)


def test_a_space_without_trials_is_refused(tmp_path: Path, catalogue: Catalogue) -> None:
    text = TEXT.replace("[placeholder]", "[{lora: {search_space: {lr: [1e-3, 1e-2]}}}]")
    with pytest.raises(UserError, match=r"search_space.*write budget: \{trials: 4\}"):
        configurations.expand(load(tmp_path, text), catalogue.methods(), catalogue.hyper)


def test_a_method_that_declares_no_rates_needs_one_from_the_file(tmp_path: Path, catalogue: Catalogue) -> None:
    methods = dict(catalogue.methods())
    methods["lora"] = replace(methods["lora"], search_space={})
    asked = load(tmp_path, TUNED.replace("[placeholder]", "[lora]"))
    with pytest.raises(UserError, match=r"methods\[0\].*lora declares no rates to tune; write its lr"):
        configurations.expand(asked, methods, catalogue.hyper)


# Carried out.


@pytest.mark.slow
def test_an_interrupted_grid_goes_on_after_its_trials_and_repeats_none(
    tmp_path: Path, asked: experiment.Experiment
) -> None:
    one = load(tmp_path, TUNED.replace("tasks: [{task: one, stand_in: other}, ", "tasks: ["))
    everything = grid(one)
    journal, results = tmp_path / "journal", tmp_path / "results"
    rounds = []

    def planner(records: list[Record]) -> list[Any]:
        rounds.append(len(records))
        if len(rounds) == 2:
            raise KeyboardInterrupt  # after the first round: trials, and the runs that wait for none
        return next_runs.all_specs(one, everything, records)

    how: dict[str, Any] = {"experiment": "e", "session": "fake_session:Session"}
    how |= {"session_kwargs": {"journal": str(journal)}}
    assert runner.run(planner, results, **how).code == runner.INTERRUPTED
    before = [line[-1] for line in fake_session.journal(journal) if line[3] == "run"]
    assert len(before) == 2 * 4 + 2
    assert runner.run(lambda records: next_runs.all_specs(one, everything, records), results, **how).code == 0
    ran = Counter(line[-1] for line in fake_session.journal(journal) if line[3] == "run")
    assert set(ran.values()) == {1}
    assert len(ran) == 2 * 4 + 3 * 2
    records = runner.record.read_all(results)
    mine = [r for r in records if r.kind == "run" and r.spec.method.label == "lora"]
    best = max((r for r in mine if isinstance(r, TrialRecord)), key=lambda r: r.spec.train.lr)
    finals = [r for r in mine if not isinstance(r, TrialRecord)]
    assert {r.spec.train.lr for r in finals} == {best.spec.train.lr}, "the fake score is the rate"


@pytest.mark.parametrize(("do", "code"), [("diverge", 0), ("raise", 1)])
def test_a_diverged_trial_is_a_result_and_a_broken_one_a_failure(
    tmp_path: Path, asked: experiment.Experiment, do: str, code: int
) -> None:
    mine = trials(grid(asked), "lora")[:2]
    first = replace(mine[0], method=replace(mine[0].method, hyper={"do": do}))
    how: dict[str, Any] = {"experiment": "e", "session": "fake_session:Session"}
    how |= {"session_kwargs": {"journal": str(tmp_path / "journal")}}
    assert runner.run(lambda _: [first, mine[1]], tmp_path / "results", **how).code == code


# What was recorded before there were trials.


def test_specs_without_the_new_fields_keep_their_ids() -> None:
    committed = sorted((Path(__file__).resolve().parents[2] / "results" / "reference").glob("*/runs/*.json"))
    assert len(committed) > 100
    for path in committed:
        body = json.loads(path.read_bytes())
        spec = (RunSpec if body["kind"] == "run" else ProfileSpec).from_dict(body["spec"])
        assert spec.id == body["spec_id"], path.name
