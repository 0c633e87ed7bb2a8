"""What planning learns of tasks and models before anything runs, and what stands in for what cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planning import TEXT, load

from peftbench import tasks
from peftbench.backbones import tiny
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.plan import read, resolve
from peftbench.plan.resolve import Facts
from peftbench.plan.selection import Selection


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
    from peftbench.tasks import glue_hub

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise glue_hub.Unreachable("switched off for the test")

    monkeypatch.setattr(glue_hub, "glue", unreachable)
