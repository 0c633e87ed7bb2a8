"""What planning learns of tasks and models before anything runs, and what stands in for what cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planning import TEXT, load

from peftbench import tasks
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.plan import resolve
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


def stop_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.tasks import glue_hub

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise glue_hub.Unreachable("switched off for the test")

    monkeypatch.setattr(glue_hub, "glue", unreachable)
