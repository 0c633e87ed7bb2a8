"""The user's files that go to the nodes of a cluster, and how a node reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fake_session
import pytest

from peftbench import tasks
from peftbench.backbones import source
from peftbench.errors import UserError
from peftbench.records import user_file
from peftbench.records.spec import BackboneSpec, TaskSpec
from peftbench.run.executors import ray_files
from peftbench.run.executors.ray_files import Tree, arguments, trees

OPTIONS = {"train": "tickets.csv", "text": "body", "label": "queue"}


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    yield
    user_file.use_copies({})


def rows(count: int) -> str:
    return "body,queue\n" + "".join(f"ticket {n} says so,{'ab'[n % 2]}\n" for n in range(count))


def copied(tree: Tree) -> None:
    """Install the tree from its pieces, as a node does that has nothing."""
    Tree.from_json(json.loads(json.dumps(tree.to_json()))).install(tree.pieces(), lambda piece: piece)


def test_a_plain_grid_has_no_files_to_send() -> None:
    assert trees(fake_session.grid(4, 0), {"data_dir": None, "plugins": []}) == []
    assert arguments({"journal": "j"}, []) == {"journal": "j"}


def test_the_files_of_a_task_are_read_from_a_copy_where_they_are_not(tmp_path: Path) -> None:
    Path("tickets.csv").write_text(rows(60))
    there = tasks.open_task("local/tickets", OPTIONS)
    spec = replace(fake_session.spec(0), task=TaskSpec("local/tickets", there.fingerprint, 2, options=OPTIONS))
    (tree,) = trees([spec, spec], {})
    assert (tree.named, tree.is_here, tree.is_lacking) == ("tickets.csv", True, False)
    assert arguments({}, [tree]) == {"copies": {"tickets.csv": str(tmp_path / "here" / "tickets.csv")}}
    copied(tree)
    os.chdir(tmp_path)
    (tmp_path / "here" / "tickets.csv").unlink()
    assert (tree.is_here, tree.is_lacking) == (False, False)
    own = arguments({}, [tree])
    assert own["copies"]["tickets.csv"].startswith(str(tmp_path / "cache"))
    user_file.use_copies(own["copies"])
    assert tasks.open_task("local/tickets", OPTIONS).fingerprint == there.fingerprint


def test_of_a_data_directory_only_the_files_that_runs_read_travel(tmp_path: Path) -> None:
    for name in ("RTE", "MRPC"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        (tmp_path / "data" / "RTE" / name).write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    spec = replace(fake_session.spec(0), task=TaskSpec("glue/rte", "f"))
    kwargs = {"data_dir": str(tmp_path / "data")}
    (tree,) = trees([spec], kwargs)
    assert [name for name, *_ in tree.files] == ["data/RTE/dev.tsv", "data/RTE/train.tsv"]
    copied(tree)
    (tmp_path / "data" / "RTE" / "dev.tsv").unlink()
    moved = Path(arguments(kwargs, [tree])["data_dir"])
    assert moved.name == "data"
    assert sorted(p.name for p in tasks.files("glue/rte", {}, moved)) == ["dev.tsv", "train.tsv"]


def test_a_models_directory_keeps_its_name_and_with_it_its_seeds(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "notes.pdf").write_bytes(b"not loaded")
    print_of_it = source.fingerprint(str(folder))
    spec = replace(fake_session.spec(0), backbone=BackboneSpec(str(folder), print_of_it))
    (tree,) = trees([spec], {})
    assert [name for name, *_ in tree.files] == ["config.json", "model.safetensors"]
    copied(tree)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(UserError, match="no directory"):
        source.locate(str(folder))
    user_file.use_copies(arguments({}, [tree])["copies"])
    assert source.fingerprint(str(folder)) == print_of_it
    assert spec.axes[0] == str(folder)


def test_a_plugin_keeps_the_name_of_its_file(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("x = 1\n")
    kwargs = {"plugins": [str(plugin)]}
    (tree,) = trees([], kwargs)
    copied(tree)
    plugin.write_text("x = 22\n")
    assert not tree.is_here, "another content at the same path"
    (moved,) = arguments(kwargs, [tree])["plugins"]
    assert Path(moved).name == "mine.py"
    assert Path(moved).read_text() == "x = 1\n"
    (changed,) = trees([], kwargs)
    assert changed.key != tree.key


def test_large_and_empty_files_arrive_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_files, "PIECE_BYTES", 10)
    (tmp_path / "a.py").write_bytes(bytes(range(95)))
    (tmp_path / "b.py").touch()
    kwargs = {"plugins": [str(tmp_path / "a.py"), str(tmp_path / "b.py")]}
    found = trees([], kwargs)
    for tree in found:
        copied(tree)
        assert (tree.copy / tree.target).read_bytes() == (tmp_path / tree.target).read_bytes()
