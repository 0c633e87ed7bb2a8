"""`--set KEY=VALUE`: in the place of the file's value, checked like it, and named in every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftbench.errors import UserError
from peftbench.plan import read
from peftbench.plan.experiment import Experiment

FILE = {
    "name": "e",
    "backbone": "tiny-encoder",
    "tasks": ["synthetic/classification", {"task": "synthetic/regression", "steps": 7}],
    "budget": {"steps": 5, "seeds": 2},
    "methods": ["full", {"lora": {"rank": 8}}, {"lora": {"label": "small", "rank": 2}}],
}


def loaded(*overrides: str, **more: Any) -> Experiment:
    return read.load({**FILE, **more}, overrides=overrides)


def test_a_value_stands_in_place_of_the_files() -> None:
    assert loaded("budget.steps=10").budget.steps == 10
    assert loaded("budget.steps=10").budget.seeds == 2
    assert loaded("train.head_lr=1e-3").train.head_lr == 1e-3
    assert loaded("device=cpu").device == "cpu"
    assert loaded("profile=false").profile is None
    assert loaded("profile.latency.batches=[1, 2]").profile.latency.batches == (1, 2)  # type: ignore[union-attr]


def test_the_last_of_two_values_for_one_key_wins() -> None:
    assert loaded("budget.steps=10", "budget.steps=11").budget.steps == 11


@pytest.mark.parametrize("overrides", [["backbone=tiny-decoder"], ["backbone.model=tiny-decoder"]])
def test_the_backbone_is_replaced_by_its_short_form_or_its_model(overrides: list[str]) -> None:
    assert loaded(*overrides).backbone.model == "tiny-decoder"


def test_a_methods_value_is_set_in_the_entry_that_tables_show_under_that_name_and_in_no_labelled_one() -> None:
    assert [m.hyper for m in loaded("methods.lora.rank=4").methods] == [{}, {"rank": 4}, {"rank": 2}]


def test_a_method_whose_entries_all_have_labels_of_their_own_is_set_in_each() -> None:
    labelled = [{"lora": {"label": "a", "rank": 1}}, {"lora": {"label": "b", "rank": 2}}, "full"]
    assert [m.hyper for m in loaded("methods.lora.dropout=0.5", methods=labelled).methods] == [
        {"rank": 1, "dropout": 0.5},
        {"rank": 2, "dropout": 0.5},
        {},
    ]


def test_a_label_names_one_entry_and_a_star_all_of_them() -> None:
    assert [m.hyper.get("rank") for m in loaded("methods.small.rank=4").methods] == [None, 8, 4]
    assert [m.lr for m in loaded("methods.*.lr=1e-3").methods] == [1e-3] * 3


def test_a_list_is_a_grid_as_in_the_file() -> None:
    assert loaded("methods.full.lr=[1e-3, 2e-3]").methods[0].lr == [1e-3, 2e-3]


def test_a_tasks_value_is_set_by_the_tasks_name() -> None:
    tasks = loaded("tasks.synthetic/classification.steps=3").tasks
    assert [(t.task, t.steps) for t in tasks] == [("synthetic/classification", 3), ("synthetic/regression", 7)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.stepz=3", "--set 'budget.stepz=3': budget.stepz: unknown key 'stepz'; did you mean 'steps'?"),
        ("budget.steps=none", "--set 'budget.steps=none': budget.steps: given 'none'; must be a whole number"),
        ("budget.steps=-1", "--set 'budget.steps=-1': budget.steps: given -1"),
        ("bugdet.steps=3", "--set 'bugdet.steps=3': bugdet: unknown key 'bugdet'; did you mean 'budget'?"),
        ("budget.steps", "--set 'budget.steps': give KEY=VALUE, such as budget.steps=10"),
        ("=3", "give KEY=VALUE"),
        ("budget..steps=3", "give KEY=VALUE"),
        ("budget.=5", "give KEY=VALUE"),
        ("budget={steps: 2, steps: 3}", "steps"),
        ("budget.steps.more=3", "budget.steps is 5, which has no keys"),
        ("methods.lroa.rank=3", "--set 'methods.lroa.rank=3': not in the file: unknown method 'lroa'; did you mean 'l"),
        ("methods.lora_fa.rank=3", "Valid: full, lora, small. To add a method: --method 'lora_fa: {rank: VALUE}'"),
        ("steps=3", "unknown key 'steps'; did you mean 'budget.steps'?"),
        ("lora.rank=4", "unknown key 'lora'; did you mean 'methods.lora'?"),
        ("profile=flase", "or false"),
        ("tasks=synthetic/regression", "must be a list of tasks, e.g. tasks: [embedded/question_type]"),
        ("methods.lora=3", "say which value, such as methods.lora.lr=1e-3"),
        ("tasks.glue/rte.steps=3", "unknown task 'glue/rte'"),
        ("budget.steps={", "cannot be read as a YAML value"),
    ],
)
def test_a_mistake_names_the_option_and_what_is_valid(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        loaded(override)
    assert message in str(caught.value)


@pytest.mark.parametrize("entry", [5, None, {"lora": 3}, {"lora": {}, "ia3": {}}])
def test_an_entry_that_is_no_method_is_a_mistake_of_the_file(entry: Any) -> None:
    with pytest.raises(UserError, match=r"methods\[0\]"):
        loaded("methods.*.lr=1e-3", methods=[entry])


def test_an_entry_that_is_no_task_is_a_mistake_of_the_file() -> None:
    with pytest.raises(UserError, match=r"tasks\[0\]"):
        loaded("tasks.*.steps=3", tasks=[5])


def test_the_files_own_mistakes_still_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("name: e\nbackbone: tiny-encoder\ntasks: [x]\nmethods: [full]\nbudget: {seeds: 0}\n")
    with pytest.raises(UserError, match=r"e.yaml: budget.seeds \(line 5\): given 0"):
        read.load(path, overrides=["budget.steps=3"])


def test_an_experiment_in_memory_remembers_what_was_set_and_added() -> None:
    once = read.load(FILE, ["ia3"], ["budget.steps=10"])
    twice = read.load(once, ["vera"], ["budget.seeds=1"])
    assert twice.overrides == ("budget.steps=10", "budget.seeds=1")
    assert (twice.budget.steps, twice.budget.seeds) == (10, 1)
    assert [m.name for m in twice.methods][-2:] == ["ia3", "vera"]
    assert FILE["budget"] == {"steps": 5, "seeds": 2}, "what the user holds is not changed"
