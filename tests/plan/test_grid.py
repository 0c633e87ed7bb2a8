"""Planning: budgets into sizes, grids into specs, and what is left to run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from planning import CONFIGURATIONS, TEXT, grid, known, load, parameters, recorded

from peftbench.errors import UserError
from peftbench.plan import experiment, next_runs, selection
from peftbench.plan import grid as plan
from peftbench.plan.resolve import Facts
from peftbench.plan.selection import Selection
from peftbench.records.spec import ProfileSpec


@pytest.fixture
def asked(tmp_path: Path) -> experiment.Experiment:
    return load(tmp_path, TEXT)


def test_the_grid_goes_task_by_task_with_all_methods_of_a_seed_together(asked: experiment.Experiment) -> None:
    order = [(p.spec.task.name, p.spec.seed, p.label) for p in grid(asked)]
    labels = [c.label for c in CONFIGURATIONS]
    assert order == [(task, seed, label) for task in ("one", "two") for seed in (0, 1) for label in labels]


def test_a_configuration_may_begin_at_another_seed(asked: experiment.Experiment) -> None:
    later = replace(CONFIGURATIONS[1], label="lora again", first_seed=2)
    planned = plan.grid(asked, known(asked), [CONFIGURATIONS[1], later], parameters)
    assert {(p.label, p.spec.seed) for p in planned} == {("lora", 0), ("lora", 1), ("lora again", 2), ("lora again", 3)}


def test_each_size_bears_how_it_came_about(asked: experiment.Experiment) -> None:
    found = {p.label: p for p in grid(asked)}
    assert (found["lora"].spec.method.size, found["lora"].trainable) == ("matched", 1024)
    assert found["lora"].spec.method.deviation == pytest.approx(0.024)
    assert (found["full"].spec.method.size, found["full"].spec.method.deviation) == ("native", 4.0)
    assert (found["lora rank=2"].spec.method.size, found["lora rank=2"].trainable) == ("explicit", 256)


def test_a_solved_size_that_is_the_default_is_not_written_out(asked: experiment.Experiment) -> None:
    assert {p.label: p.spec.method.hyper for p in grid(asked)}["lora"] == {}, "rank 8 is the default"


def test_no_size_within_the_tolerance_runs_the_nearest_marked_so(tmp_path: Path) -> None:
    found = {p.label: p.spec.method for p in grid(load(tmp_path, TEXT.replace("params: 1000", "params: 1090")))}
    assert (found["lora"].size, found["lora"].hyper) == ("matched", {"rank": 9})
    found = {p.label: p.spec.method for p in grid(load(tmp_path, TEXT.replace("params: 1000", "params: 190")))}
    assert (found["lora"].size, found["lora"].hyper) == ("nearest", {"rank": 1})


def test_a_strict_budget_without_a_size_names_the_method_and_two_sizes(tmp_path: Path) -> None:
    text = TEXT.replace("params: 1000", "params: 190").replace("tolerance: 0.1", "strict: true")
    with pytest.raises(UserError, match=r"methods\[0\].*128 parameters \(at 1\) and 256 parameters \(at 2\)"):
        grid(load(tmp_path, text))


def test_without_a_budget_methods_keep_their_own_size(tmp_path: Path) -> None:
    found = {p.label: p for p in grid(load(tmp_path, TEXT.replace("1000", "null")))}
    assert (found["lora"].spec.method.size, found["lora"].spec.method.deviation) == ("native", None)
    assert found["lora"].trainable == 8 * 128


def test_a_task_may_have_its_own_steps_and_batches(asked: experiment.Experiment) -> None:
    found = {p.spec.task.name: p.spec.train for p in grid(asked)}
    assert (found["one"].steps, found["one"].batch_size, found["one"].eval_every) == (5, 16, None)
    two = found["two"]
    assert (two.steps, two.batch_size, two.max_length, two.eval_every) == (7, 4, 9, 2)


def test_what_is_finished_is_not_planned_again(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    records = [recorded(p.spec) for p in everything[:5]]
    assert next_runs.plan(asked, everything, records) == [p.spec for p in everything[5:]]


@pytest.mark.parametrize(
    ("status", "again", "again_with_retry"),
    [
        ("killed", True, True),
        ("abandoned", True, True),
        ("diverged", False, True),
        ("oom", False, True),
        ("error", False, True),
        ("finished", False, False),
    ],
)
def test_which_attempts_are_repeated(
    asked: experiment.Experiment, status: str, again: bool, again_with_retry: bool
) -> None:
    everything = grid(asked)
    first = everything[0].spec
    records = [recorded(first, status)]
    assert (first in next_runs.plan(asked, everything, records)) == again
    assert (first in next_runs.plan(asked, everything, records, retry_failed=True)) == again_with_retry


def test_what_failed_in_this_invocation_is_not_repeated_in_it(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    first = everything[0].spec
    old = [recorded(first, "error")]
    now = [*old, recorded(first, "killed", attempt=2)]
    assert first in next_runs.plan(asked, everything, old, retry_failed=True, before=old)
    assert first not in next_runs.plan(asked, everything, now, retry_failed=True, before=old)


def test_a_finished_attempt_counts_although_a_later_one_failed(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    first = everything[0].spec
    assert first not in next_runs.plan(asked, everything, [recorded(first), recorded(first, "killed", attempt=2)])


def test_profile_passes_come_when_all_runs_are_settled(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    records = [recorded(p.spec) for p in everything]
    assert not any(isinstance(s, ProfileSpec) for s in next_runs.plan(asked, everything, records[1:]))
    passes = next_runs.plan(asked, everything, records)
    assert [p.task.name for p in passes] == ["one", "two"] * asked.profile_of().processes
    assert [m.label for m in passes[0].methods] == [c.label for c in CONFIGURATIONS]
    assert next_runs.plan(asked, everything, [*records, *map(recorded, passes)]) == []


def test_a_method_that_never_finished_is_not_profiled(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    records = [recorded(p.spec, "oom" if p.label == "full" else "finished") for p in everything]
    assert [m.label for m in next_runs.plan(asked, everything, records)[0].methods] == ["lora", "lora rank=2"]


def test_passes_without_runs_are_those_that_come_when_all_runs_have_finished(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    later = next_runs.plan(asked, everything, [recorded(p.spec) for p in everything])
    assert next_runs.passes(asked, asked.profile_of(), everything) == later
    more = next_runs.passes(asked, asked.profile_of(rounds=50), everything)
    assert {p.rounds for p in more} == {50}
    assert not {p.id for p in more} & {p.id for p in later}


def test_a_files_rounds_hold_where_it_has_some_and_the_default_is_enough_for_an_interval(tmp_path: Path) -> None:
    given = load(tmp_path, TEXT + "profile: {rounds: 3}\n")
    assert given.profile_of().rounds == 3
    assert load(tmp_path, TEXT + "profile: false\n").profile_of().rounds == experiment.ProfileSection().rounds


def test_the_processes_of_a_pass_take_turns_over_the_tasks(tmp_path: Path) -> None:
    several = load(tmp_path, TEXT + "profile: {processes: 3}\n")
    passes = next_runs.passes(several, several.profile_of(), grid(several))
    tasks = len({p.task.name for p in passes})
    assert [p.process for p in passes] == [n for n in range(3) for _ in range(tasks)]
    assert len({p.id for p in passes}) == len(passes)
    assert {p.process for p in next_runs.passes(several, several.profile_of(processes=2), grid(several))} == {0, 1}


def test_profile_false_measures_no_times(tmp_path: Path) -> None:
    asked = load(tmp_path, TEXT + "profile: false\n")
    everything = grid(asked)
    assert next_runs.plan(asked, everything, [recorded(p.spec) for p in everything]) == []


def test_asked_has_what_is_done_too_so_that_progress_can_be_counted(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    records = [recorded(p.spec) for p in everything]
    assert len(next_runs.all_specs(asked, everything, records[:3])) == len(everything)
    assert len(next_runs.all_specs(asked, everything, records)) == len(everything) + 2 * asked.profile_of().processes


def parse(asked: experiment.Experiment, *given: str) -> Selection:
    return Selection.parse(given, asked, CONFIGURATIONS)


def test_only_takes_or_within_a_key_and_and_between_keys(asked: experiment.Experiment) -> None:
    part = parse(asked, "task=one", "method=full", "method=lora rank=2", "seed=1")
    narrowed = Facts(known(asked).backbone, tuple(t for t in known(asked).tasks if part.has_task(t.section)))
    runs = plan.grid(asked, narrowed, CONFIGURATIONS, parameters, part)
    assert [(p.spec.task.name, p.label, p.spec.seed) for p in runs] == [("one", "full", 1), ("one", "lora rank=2", 1)]


def test_only_by_a_methods_name_means_all_its_configurations(asked: experiment.Experiment) -> None:
    assert {p.label for p in grid(asked, parse(asked, "method=lora"))} == {"lora", "lora rank=2"}


def test_only_knows_a_task_by_its_stand_in(asked: experiment.Experiment) -> None:
    assert [t.task for t in asked.tasks if parse(asked, "task=other").has_task(t)] == ["one"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("methd=lora", "unknown key 'methd'; did you mean 'method'"),
        ("method=lroa", "unknown method 'lroa'; did you mean 'lora'"),
        ("task=tow", "unknown task 'tow'; did you mean 'two'"),
        ("seed=2", "unknown seed '2'.*Valid: 0, 1"),
        ("lora", "write key=value"),
    ],
)
def test_an_only_that_matches_nothing_is_refused(asked: experiment.Experiment, given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(asked, given)


def test_the_keys_of_only_are_listed() -> None:
    assert selection.KEYS == ("method", "task", "seed")
