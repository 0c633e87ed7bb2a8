"""Facts about tasks that planning keeps: by content, so that a file is read once and a change is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftbench import tasks
from peftbench.backbones import embedded
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.plan import task_facts

LINES = [f"text number {i},{'good' if i % 2 else 'bad'}" for i in range(60)]


def written(path: Path, lines: list[str] = LINES) -> dict[str, Any]:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["body,stars", *lines]) + "\n")
    return {"train": str(path), "text": "body", "label": "stars"}


def facts(tmp_path: Path, options: dict[str, Any], name: str = "local") -> dict[str, Any]:
    stores = Stores(tmp_path / "answers")
    found = task_facts.facts(stores, name, options)
    stores.save()
    return found


def count_openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    plain = tasks.open_task
    monkeypatch.setattr(tasks, "open_task", lambda name, *args: opened.append(name) or plain(name, *args))
    return opened


def test_a_file_is_read_once_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = count_openings(monkeypatch)
    first = facts(tmp_path, written(tmp_path / "a.csv"))
    again = facts(tmp_path, written(tmp_path / "a.csv"))
    moved = facts(tmp_path, written(tmp_path / "there" / "a.csv"), "local/mine")
    assert opened == ["local"]
    assert first == again == {**moved, "name": "local/a"}
    assert moved["name"] == "local/mine"


@pytest.mark.parametrize("change", ["content", "option", "format", "split"])
def test_what_changes_the_data_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    options = written(tmp_path / "a.csv")
    before = facts(tmp_path, options)
    opened = count_openings(monkeypatch)
    if change == "content":
        written(tmp_path / "a.csv", [*LINES, "one more,good"])
    elif change == "option":
        options["limit_train"] = 20
    elif change == "split":
        options["test"] = written(tmp_path / "t.csv", ["new,good", "newer,bad"])["train"]
    else:
        options = written(tmp_path / "a.tsv") | {"separator": ","}
    assert opened == []
    after = facts(tmp_path, options)
    assert opened == ["local"]
    assert (after["fingerprint"] == before["fingerprint"]) == (change == "format")


def test_a_mistake_is_not_kept(tmp_path: Path) -> None:
    options = written(tmp_path / "a.csv", [*LINES, "cut off"])
    for _ in range(2):
        with pytest.raises(UserError, match=r"a\.csv, line 62"):
            facts(tmp_path, options)
    with pytest.raises(UserError, match="there is no file"):
        facts(tmp_path, {**options, "train": "nowhere.csv"})
    with pytest.raises(UserError, match="unknown option 'colum'"):
        facts(tmp_path, {**options, "colum": "x"})


def test_tasks_without_files_are_opened(tmp_path: Path) -> None:
    assert facts(tmp_path, {"rows": 30}, "synthetic/pair")["rows"]["train"] == 30


def test_an_embedded_task_is_opened_once_while_its_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "question_labels.txt"
    lines = [f"{'HUM:ind' if i % 2 else 'LOC:city'} Which is number {i} ?" for i in range(100)]
    path.write_text("\n".join(lines))
    monkeypatch.setattr(embedded, "data_file", lambda name: path)
    opened = count_openings(monkeypatch)
    first, again = (facts(tmp_path, {}, "embedded/question_type") for _ in range(2))
    assert first == again
    assert len(opened) == 1
    path.write_text("\n".join([*lines, "HUM:ind Who is new ?"]))
    assert facts(tmp_path, {}, "embedded/question_type") != first
    assert len(opened) == 2
