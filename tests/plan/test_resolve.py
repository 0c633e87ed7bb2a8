"""What planning learns of tasks and models before anything runs, and what stands in for what cannot be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning import TEXT, load

from peftbench import tasks
from peftbench.backbones import tiny
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.plan import read, resolve
from peftbench.plan.prepare import prepare
from peftbench.plan.resolve import Facts
from peftbench.plan.selection import Selection
from peftbench.records import comparable
from peftbench.records.spec import RunSpec


def gathered(tmp_path: Path, text: str) -> Facts:
    return resolve.gather(load(tmp_path, text), Selection(), Stores(tmp_path / "answers"))


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


def specs_of(folder: Path, file: str = "a.csv", **options: str) -> list[RunSpec]:
    """The runs of an experiment on a file with the columns body and stars."""
    folder.mkdir(exist_ok=True)
    lines = "".join(f"text number {i},{'good' if i % 2 else 'bad'}\n" for i in range(60))
    (folder / file).write_text(f"{options.get('text', 'body')},stars\n{lines}")
    written = {"task": "local", "train": file, "text": "body", "label": "stars", **options}
    task = ", ".join(f"{key}: {value}" for key, value in written.items())
    planned = prepare(load(folder, SYNTHETIC.replace("TASKS", f"[{{{task}}}]"))).planned
    return [p.spec for p in planned]


def test_a_file_is_the_same_task_at_another_path_and_under_another_name_and_column(tmp_path: Path) -> None:
    first = specs_of(tmp_path / "one")
    for again in (
        specs_of(tmp_path / "two"),
        specs_of(tmp_path / "one", "b.csv"),
        specs_of(tmp_path / "one", name="mine"),
        specs_of(tmp_path / "one", text="words"),
        specs_of(tmp_path / "one", limit_train="5000"),
    ):
        assert [s.id for s in again] == [s.id for s in first]
        assert [s.axes for s in again] == [s.axes for s in first], "equal runs draw equal random numbers"
        assert [comparable.key(s) for s in again] == [comparable.key(s) for s in first]
    assert specs_of(tmp_path / "two", limit_train="20")[0].id != first[0].id


def test_a_file_task_of_the_older_identity_is_another_run(tmp_path: Path) -> None:
    (spec, *_) = specs_of(tmp_path / "one")
    old = replace(spec, task=replace(spec.task, version=1))
    moved = replace(old, task=replace(old.task, name="local/moved", options={}))
    assert len({spec.id, old.id, moved.id}) == 3
    assert [d.name for d in comparable.differences(spec, old)] == ["version of the task's code"]


def test_one_file_under_two_names_is_refused_unless_something_else_differs(tmp_path: Path) -> None:
    specs_of(tmp_path)
    one = "task: local, train: a.csv, text: body, label: stars, name"
    with pytest.raises(UserError, match=r"tasks\[1\].*local/b has the same data as local/a"):
        prepare(load(tmp_path, SYNTHETIC.replace("TASKS", f"[{{{one}: a}}, {{{one}: b}}]")))
    assert prepare(load(tmp_path, SYNTHETIC.replace("TASKS", f"[{{{one}: a}}, {{{one}: b, max_length: 64}}]"))).planned


def test_a_model_that_cannot_be_had_names_its_place(tmp_path: Path) -> None:
    text = SYNTHETIC.replace("TASKS", "[synthetic/pair]").replace("tiny-encoder", "./nowhere")
    with pytest.raises(UserError, match=r"backbone \(line 2\).*nowhere"):
        gathered(tmp_path, text)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model; commands run in its sibling `work`, and the file is in `work/home`."""
    (tmp_path / "work" / "home").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    saved = [tmp_path / "work" / "home" / "beside", tmp_path / "work" / "here", tmp_path / "work" / "tiny-t5"]
    for folder in saved:
        tiny.config("tiny-encoder").save_pretrained(folder)
    return tmp_path / "work" / "home"


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("beside", "home/beside"),
        ("./beside", "home/beside"),
        ("../here", "here"),
        ("../tiny-t5", "./tiny-t5"),
        ("tiny-encoder", "tiny-encoder"),
    ],
)
def test_a_model_is_found_from_the_files_folder(models: Path, written: str, found: str) -> None:
    text = SYNTHETIC.replace("TASKS", "[synthetic/pair]").replace("tiny-encoder", written)
    assert gathered(models, text).backbone.model == found


@pytest.mark.parametrize("override", ["backbone=here", "backbone.model=here", "backbone=./here"])
def test_a_model_on_the_command_line_is_found_from_the_working_directory(models: Path, override: str) -> None:
    (models / "e.yaml").write_text(SYNTHETIC.replace("TASKS", "[synthetic/pair]"))
    asked = read.load(models / "e.yaml", overrides=[override])
    facts = resolve.gather(asked, Selection(), Stores(models / "answers"))
    assert facts.backbone.model == override.partition("=")[2]


def test_a_model_of_an_experiment_in_python_is_found_from_the_working_directory(models: Path) -> None:
    asked = read.load({"name": "e", "backbone": "home/beside", "tasks": ["synthetic/pair"], "methods": ["full"]})
    assert resolve.gather(asked, Selection(), Stores(models / "answers")).backbone.model == "home/beside"


@pytest.mark.parametrize("written", ["here", "../beside", "./nowhere", "~/nowhere"])
def test_a_model_that_is_elsewhere_names_the_path_and_where_paths_start(models: Path, written: str) -> None:
    text = SYNTHETIC.replace("TASKS", "[synthetic/pair]").replace("tiny-encoder", written)
    with pytest.raises(UserError, match=r"there is no directory /.*(start at the file's folder)"):
        gathered(models, text)


def test_a_task_file_on_the_command_line_is_found_from_the_working_directory(models: Path) -> None:
    lines = "".join(f"text number {i},{'good' if i % 2 else 'bad'}\n" for i in range(60))
    Path("a.csv").write_text(f"body,stars\n{lines}")
    local = "[{task: local, name: mine, train: a.csv, text: body, label: stars}]"
    (models / "e.yaml").write_text(SYNTHETIC.replace("TASKS", local))
    with pytest.raises(UserError, match=r"no file .*home/a.csv. Relative paths in an experiment's file start"):
        resolve.gather(read.load(models / "e.yaml"), Selection(), Stores(models / "answers"))
    asked = read.load(models / "e.yaml", overrides=["tasks.mine.train=a.csv"])
    (task,) = resolve.gather(asked, Selection(), Stores(models / "answers")).tasks
    assert task.spec.options["train"] == "a.csv"


def stop_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.backbones import hub
    from peftbench.tasks import glue_hub

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise hub.HubError("switched off for the test", "Switch it on")

    monkeypatch.setattr(glue_hub, "glue", unreachable)
