"""Planning: budgets into sizes, grids into specs, and what is left to run; and who may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import peftbench
from peftbench import calibrate, experiment, facts, only, plan, predict, tasks
from peftbench.calibrate import Costs
from peftbench.configurations import Configuration
from peftbench.errors import UserError
from peftbench.facts import Facts, TaskFacts
from peftbench.manifest import Manifest
from peftbench.only import Only
from peftbench.record import Record
from peftbench.sites import Site, Sites
from peftbench.spec import BackboneSpec, ProfileSpec, RunSpec, TaskSpec, as_dict

TEXT = """\
name: e
backbone: tiny-encoder
tasks: [{task: one, stand_in: other}, {task: two, steps: 7, batch_size: 4, max_length: 9, eval_every: 2}]
budget: {trainable_params: 1000, tolerance: 0.1, steps: 5, seeds: 2}
methods: [placeholder]
"""
SITES = Sites("bert", tuple(Site("q", f"layer.{i}", (16, 16), 256) for i in range(4)), 5000, 34, 16, {})


def configuration(label: str, knob: str | None = "rank", given: bool = False, **hyper: Any) -> Configuration:
    return Configuration(
        name=label.partition(" ")[0],
        label=label,
        lr=1e-3,
        hyper=hyper,
        version=1,
        knob=knob,
        knob_is_given=given,
        knob_schema={"type": "integer", "minimum": 1},
        defaults={"rank": 8, "alpha": 16.0} if knob else {},
        place=("methods", 0),
    )


CONFIGURATIONS = [
    configuration("full", knob=None),
    configuration("lora"),
    configuration("lora rank=2", given=True, rank=2),
]
PARAMETERS = {"full": lambda hyper: 5000, "lora": lambda hyper: 128 * hyper["rank"]}


def parameters(name: str, hyper: Mapping[str, Any], sites: Sites) -> int:
    return PARAMETERS[name](hyper)


@pytest.fixture
def asked(tmp_path: Path) -> experiment.Experiment:
    return load(tmp_path, TEXT)


def load(tmp_path: Path, text: str) -> experiment.Experiment:
    path = tmp_path / "e.yaml"
    path.write_text(text)
    return experiment.load(path)


def known(asked: experiment.Experiment) -> Facts:
    found = [
        TaskFacts(
            t, TaskSpec(t.task, "f" * 64), "classification", 10.0, {"train": 9, "validation": 3, "test": 3}, SITES
        )
        for t in asked.tasks
    ]
    return Facts(BackboneSpec("tiny-encoder", "0" * 64), tuple(found))


def grid(asked: experiment.Experiment, part: Only | None = None) -> list[plan.Planned]:
    return plan.grid(asked, known(asked), CONFIGURATIONS, parameters, part or Only())


def recorded(spec: RunSpec | ProfileSpec, status: str = "finished", attempt: int = 1, seconds: float = 9.0) -> Record:
    body = {
        "kind": "run" if isinstance(spec, RunSpec) else "profile",
        "spec_id": spec.id,
        "env_id": "e" * 16,
        "attempt": attempt,
        "status": status,
        "started": f"2026-01-01T00:00:0{attempt}Z",
        "spec": as_dict(spec),
        "seconds": {"total": seconds},
    }
    return Record(Path(f"{spec.id}-{attempt}.json"), body)


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
    assert plan.plan(asked, everything, records) == [p.spec for p in everything[5:]]


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
    assert (first in plan.plan(asked, everything, records)) == again
    assert (first in plan.plan(asked, everything, records, retry_failed=True)) == again_with_retry


def test_what_failed_in_this_invocation_is_not_repeated_in_it(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    first = everything[0].spec
    old = [recorded(first, "error")]
    now = [*old, recorded(first, "killed", attempt=2)]
    assert first in plan.plan(asked, everything, old, retry_failed=True, before=old)
    assert first not in plan.plan(asked, everything, now, retry_failed=True, before=old)


def test_a_finished_attempt_counts_although_a_later_one_failed(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    first = everything[0].spec
    assert first not in plan.plan(asked, everything, [recorded(first), recorded(first, "killed", attempt=2)])


def test_profile_passes_come_when_all_runs_are_settled(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    records = [recorded(p.spec) for p in everything]
    assert not any(isinstance(s, ProfileSpec) for s in plan.plan(asked, everything, records[1:]))
    passes = plan.plan(asked, everything, records)
    assert [p.task.name for p in passes] == ["one", "two"] * asked.profile_of().processes
    assert [m.label for m in passes[0].methods] == [c.label for c in CONFIGURATIONS]
    assert plan.plan(asked, everything, [*records, *map(recorded, passes)]) == []


def test_a_method_that_never_finished_is_not_profiled(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    records = [recorded(p.spec, "oom" if p.label == "full" else "finished") for p in everything]
    assert [m.label for m in plan.plan(asked, everything, records)[0].methods] == ["lora", "lora rank=2"]


def test_passes_without_runs_are_those_that_come_when_all_runs_have_finished(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    later = plan.plan(asked, everything, [recorded(p.spec) for p in everything])
    assert plan.passes(asked, asked.profile_of(), everything) == later
    more = plan.passes(asked, asked.profile_of(rounds=50), everything)
    assert {p.rounds for p in more} == {50}
    assert not {p.id for p in more} & {p.id for p in later}


def test_a_files_rounds_hold_where_it_has_some_and_the_default_is_enough_for_an_interval(tmp_path: Path) -> None:
    given = load(tmp_path, TEXT + "profile: {rounds: 3}\n")
    assert given.profile_of().rounds == 3
    assert load(tmp_path, TEXT + "profile: false\n").profile_of().rounds == experiment.Profile().rounds


def test_the_processes_of_a_pass_take_turns_over_the_tasks(tmp_path: Path) -> None:
    several = load(tmp_path, TEXT + "profile: {processes: 3}\n")
    passes = plan.passes(several, several.profile_of(), grid(several))
    tasks = len({p.task.name for p in passes})
    assert [p.process for p in passes] == [n for n in range(3) for _ in range(tasks)]
    assert len({p.id for p in passes}) == len(passes)
    assert {p.process for p in plan.passes(several, several.profile_of(processes=2), grid(several))} == {0, 1}


def test_profile_false_measures_no_times(tmp_path: Path) -> None:
    asked = load(tmp_path, TEXT + "profile: false\n")
    everything = grid(asked)
    assert plan.plan(asked, everything, [recorded(p.spec) for p in everything]) == []


def test_asked_has_what_is_done_too_so_that_progress_can_be_counted(asked: experiment.Experiment) -> None:
    everything = grid(asked)
    records = [recorded(p.spec) for p in everything]
    assert len(plan.asked(asked, everything, records[:3])) == len(everything)
    assert len(plan.asked(asked, everything, records)) == len(everything) + 2 * asked.profile_of().processes


def parse(asked: experiment.Experiment, *given: str) -> Only:
    return Only.parse(given, asked, CONFIGURATIONS)


def test_only_takes_or_within_a_key_and_and_between_keys(asked: experiment.Experiment) -> None:
    part = parse(asked, "task=one", "method=full", "method=lora rank=2", "seed=1")
    narrowed = Facts(known(asked).backbone, tuple(t for t in known(asked).tasks if part.has_task(t.asked)))
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
    assert only.KEYS == ("method", "task", "seed")


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
    told = predict.predict(everything, [recorded(like, seconds=70.0)], NOTHING)
    found = [told[p.spec.id] for p in everything if p.label == "lora" and p.spec.task.name == "two"]
    assert [(f.seconds, f.source) for f in found] == [(70.0, "finished runs")] * 2


def test_a_measured_time_is_the_sum_over_the_batches_that_the_run_will_see(asked: experiment.Experiment) -> None:
    (p, *_) = everything = grid(asked)
    told = predict.predict(everything, [], measured(everything, **{calibrate.run_key(p): COST}))[p.spec.id]
    once, trained, looked = 2.0 + (5.0 - 3.0), 3 * 1.0 + 2 * 2.0, 0.5 + 2.5 * 1.0
    assert told.source == "calibration"
    assert told.seconds == told.measured == pytest.approx(once + trained + looked)


def test_finished_runs_do_not_change_what_the_calibration_says(asked: experiment.Experiment) -> None:
    (p, *_) = everything = grid(asked)
    costs = measured(everything, **{calibrate.run_key(p): COST})
    told = predict.predict(everything, [recorded(p.spec, seconds=70.0)], costs)[p.spec.id]
    assert (told.seconds, told.source) == (70.0, "finished runs")
    assert told.measured == predict.predict(everything, [], costs)[p.spec.id].seconds


def test_a_configuration_that_was_not_timed_takes_as_long_as_the_nearest_that_was(asked: experiment.Experiment) -> None:
    everything = [p for p in grid(asked) if p.spec.task.name == "one"]
    by_label = {p.label: p for p in everything}
    slow = {**COST, "setup": 100.0}
    timed = {calibrate.run_key(by_label["full"]): slow, calibrate.run_key(by_label["lora"]): COST}
    told = predict.predict(everything, [], measured(everything, **timed, none=None))
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
    assert predict.at(15, {"10": 1.0, "20": 3.0, "40": 4.0}) == 2.0
    assert predict.at(30, {"10": 1.0, "20": 3.0, "40": 4.0}) == 3.5
    assert predict.at(5, {"10": 1.0, "20": 3.0}) == 0.0
    assert predict.at(30, {"10": 1.0}) == 3.0


def test_by_arithmetic_full_fine_tuning_takes_longer(asked: experiment.Experiment) -> None:
    by_label = {p.label: predict.computed(p) for p in grid(asked) if p.spec.task.name == "one"}
    assert by_label["full"] > by_label["lora"] > predict.SETUP_SECONDS


def test_where_only_the_head_trains_no_backward_pass_is_predicted(asked: experiment.Experiment) -> None:
    for p in grid(asked):
        assert predict.computed(replace(p, trainable=0)) < predict.computed(p)


def gathered(tmp_path: Path, text: str, **more: Any) -> Facts:
    return facts.gather(load(tmp_path, text), Only(), Manifest(folder=tmp_path / "manifest"), **more)


SYNTHETIC = TEXT[: TEXT.index("tasks:")] + "tasks: TASKS\nmethods: [full]\n"


def test_a_task_that_cannot_be_had_is_replaced_by_its_stand_in_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_the_hub(monkeypatch)
    text = SYNTHETIC.replace("TASKS", "[{task: glue/rte, stand_in: synthetic/pair, limit_train: 20}]")
    (task,) = gathered(tmp_path, text).tasks
    assert (task.spec.name, task.spec.stand_in_for) == ("synthetic/pair", "glue/rte")
    assert task.rows["train"] == 20
    assert "glue/rte" in (task.unavailable or "")


def test_a_task_without_data_and_stand_in_names_both_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_hub(monkeypatch)
    with pytest.raises(UserError, match=r"tasks\[0\] \(line 3\).*--data-dir.*stand_in"):
        gathered(tmp_path, SYNTHETIC.replace("TASKS", "[glue/rte]"))


def test_an_unknown_stand_in_is_seen_even_where_it_is_not_needed(tmp_path: Path) -> None:
    text = SYNTHETIC.replace("TASKS", "[{task: synthetic/pair, stand_in: synthetic/par}]")
    with pytest.raises(UserError, match="unknown task 'synthetic/par'; did you mean 'synthetic/pair'"):
        gathered(tmp_path, text)


def test_a_task_that_runs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tasks\[1\].*synthetic/pair runs already as tasks\[0\]"):
        gathered(tmp_path, SYNTHETIC.replace("TASKS", "[synthetic/pair, {task: synthetic/pair, steps: 3}]"))


def test_an_unknown_option_of_a_task_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tasks\[0\].*unknown option 'train'"):
        gathered(tmp_path, SYNTHETIC.replace("TASKS", "[{task: synthetic/pair, train: 3}]"))


def test_files_of_a_local_task_are_found_beside_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    lines = "".join(f"text number {i},{'good' if i % 2 else 'bad'}\n" for i in range(60))
    (home / "a.csv").write_text(f"body,stars\n{lines}")
    monkeypatch.chdir(tmp_path)
    local = "[{task: local, name: mine, train: a.csv, text: body, label: stars}]"
    (task,) = gathered(home, SYNTHETIC.replace("TASKS", local)).tasks
    assert task.spec.name == "local/mine"
    assert task.spec.options["train"] == "home/a.csv", "relative to where the command runs, so that records can move"
    assert tasks.open_task(task.spec.name, task.spec.options).fingerprint == task.spec.fingerprint


def test_a_model_that_cannot_be_had_names_its_place(tmp_path: Path) -> None:
    text = SYNTHETIC.replace("TASKS", "[synthetic/pair]").replace("tiny-encoder", "./nowhere")
    with pytest.raises(UserError, match=r"backbone \(line 2\).*nowhere"):
        gathered(tmp_path, text)


def stop_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.tasks import hub

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise hub.Unreachable("switched off for the test")

    monkeypatch.setattr(hub, "glue", unreachable)


# The manifest: what plan knows without torch.


def test_the_manifest_answers_from_its_cache_without_asking_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Manifest(folder=tmp_path)
    sites = first.sites("tiny-encoder", 2, False)
    answers = first.methods(), first.hyper("lora", {"rank": 3}), first.parameters("lora", {"rank": 3}, sites), sites
    first.save()
    forbid_asking(monkeypatch)
    again = Manifest(folder=tmp_path)
    found = again.methods(), again.hyper("lora", {"rank": 3}), again.parameters("lora", {"rank": 3}, sites)
    assert (*found, again.sites("tiny-encoder", 2, False)) == answers


@pytest.mark.parametrize("damage", [b"", b'{"checksum": "0", "answers": {"all": {}}}', b"[1]", b"\xff"])
def test_a_damaged_manifest_is_made_again(tmp_path: Path, damage: bytes) -> None:
    first = Manifest(folder=tmp_path)
    facts_ = {name: asdict(m) for name, m in first.methods().items()}
    first.save()
    (path,) = tmp_path.glob("methods-*.json")
    path.write_bytes(damage)
    again = Manifest(folder=tmp_path)
    assert {name: asdict(m) for name, m in again.methods().items()} == facts_
    again.save()
    assert len(path.read_bytes()) > 1000


def test_a_changed_method_file_is_noticed(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.format(default=3))
    first = Manifest((plugin,), tmp_path / "cache")
    key = first._methods_key()
    plugin.write_text(PLUGIN.format(default=4))
    assert Manifest((plugin,), tmp_path / "cache")._methods_key() != key


def test_the_parameters_are_the_methods_own_formula(tmp_path: Path) -> None:
    manifest = Manifest(folder=tmp_path)
    sites = manifest.sites("tiny-encoder", 2, False)
    counted = manifest.parameters("lora", manifest.hyper("lora", {"rank": 3}), sites)
    assert counted == sum(3 * sum(s.size) for s in sites.of("q v"))


PLUGIN = """
from dataclasses import dataclass
from peftbench.method import Method, register

@register
@dataclass(frozen=True)
class Mine(Method):
    name, paper, lr = "mine", "none", 1e-3
    width: int = {default}
"""


def forbid_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench import manifest, method
    from peftbench.backbones import load

    def asked(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the cache should have known")

    monkeypatch.setattr(manifest, "read_methods", asked)
    monkeypatch.setattr(method, "find", asked)
    monkeypatch.setattr(load, "skeleton", asked)


# Who imports what. The graph is read from the source, so that an import counts although nobody runs it.

ROOT = Path(peftbench.__file__).parent


def imports(module: str, lazy: bool) -> set[str]:
    """Absolute names of what `module` imports; those inside functions too if `lazy`; never those for type checkers."""
    path = file_of(module)
    if path is None:
        return set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not lazy:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {source} | {f"{source}.{name.name}" for name in node.names if file_of(f"{source}.{name.name}")}
        todo += ast.iter_child_nodes(node)
    parents = {name.rsplit(".", i)[0] for name in found for i in range(1, name.count(".") + 1)}
    return found | {p for p in parents if p.startswith("peftbench")}


def file_of(module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] != "peftbench":
        return None
    base = ROOT.joinpath(*parts[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def reachable(*modules: str, lazy: bool = False) -> set[str]:
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += imports(module, lazy)
    return found


def test_plan_imports_no_torch() -> None:
    tops = {
        m.partition(".")[0]
        for m in reachable("peftbench.plan", "peftbench.prepare", "peftbench.show", "peftbench.calibrate")
    }
    assert "peftbench" in tops
    assert not tops & {"torch", "transformers", "datasets", "safetensors"}


def test_tables_and_statistics_import_only_records() -> None:
    found = {m for m in reachable("peftbench.report.statistics", "peftbench.report.tables") if file_of(m)}
    foreign = {m for m in found if not m.startswith("peftbench.report")}
    assert "peftbench.record" in foreign
    assert foreign <= {"peftbench", "peftbench.record", "peftbench.errors", "peftbench.spec"}


@pytest.mark.parametrize("module", ["peftbench.train", "peftbench.runner", "peftbench.worker", "peftbench.session"])
def test_the_engine_imports_no_method(module: str) -> None:
    found = reachable(module, lazy=True)
    assert not {m for m in found if m.startswith(("peftbench.methods", "methods"))}


def test_the_reader_of_imports_sees_what_it_must() -> None:
    assert "torch" in reachable("peftbench.train")
    assert "torch" not in imports("peftbench.method", lazy=False)
    assert "torch" in imports("peftbench.method", lazy=True)
    assert "peftbench.record" in imports("peftbench.report", lazy=False), "relative imports too"


def test_importing_plan_really_leaves_torch_out() -> None:
    code = "import sys, peftbench.plan, peftbench.prepare; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
