"""The rooms and their layers: the linter sees each way in which an import can break them, and the count counts."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as lint; lint()"


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("house")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its contracts, in a folder of their own."""
    place = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "peftbench", place / "peftbench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def lint(place: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=place, capture_output=True, text=True)


def test_the_package_keeps_its_contracts(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("room", "line", "reported"),
    [
        ("records", "from peftbench.cli.app import main", "records is not allowed to import peftbench.cli"),
        ("plan", "from peftbench.run.train import fit", "plan is not allowed to import peftbench.run"),
        ("report", "import peftbench.measure.memory", "report is not allowed to import peftbench.measure"),
        ("run", "import peftbench", "run.planted -> peftbench"),
        ("run", "from peftbench.methods import lora", "run.planted -> peftbench"),
        ("estimate", "from peft import LoraConfig", "peftbench is not allowed to import peft"),
        ("method/old_paths", "import peftbench.plan.grid", "method is not allowed to import peftbench.plan"),
    ],
)
def test_an_import_inside_a_function_breaks_the_contract(copy: Path, room: str, line: str, reported: str) -> None:
    file = copy / "peftbench" / room / "planted.py"
    file.write_text(f"def planted():\n    {line}\n")
    done = lint(copy)
    file.unlink()
    assert done.returncode == 1, done.stdout
    assert reported in " ".join(done.stdout.split())


def test_a_new_name_at_the_top_breaks_the_contract(copy: Path) -> None:
    (copy / "peftbench" / "helpers.py").touch()
    done = lint(copy)
    (copy / "peftbench" / "helpers.py").unlink()
    assert done.returncode == 1
    assert "helpers" in done.stdout


def made(place: Path, rooms: dict[str, str]) -> str:
    """A package in `place` whose modules have the given text."""
    name = f"made_{place.name}"
    for room, text in {"__init__": "", **rooms}.items():
        (file := place / name / f"{room}.py").parent.mkdir(exist_ok=True)
        file.write_text(text)
    return name


@pytest.mark.parametrize(
    ("rooms", "floors", "upwards", "circle"),
    [
        ({"a": "def f(): from {0} import b", "b": "", "c": "import {0}.a"}, 3, [], []),
        ({"a": "import {0}.b", "b": "def f(): import {0}.a", "c": ""}, 1, ["b -> a"], ["a", "b"]),
        ({"a": "import {0}", "__init__": "from {0} import b", "b": "import {0}.a", "c": ""}, 1, ["b -> a"], ["a", "b"]),
        ({"a": "", "b": "import {0}.c", "c": ""}, 2, ["b -> c"], []),
    ],
    ids=["in order", "a lazy circle", "a circle through the root", "upwards"],
)
def test_the_count_sees_floors_arrows_upwards_and_circles(
    house: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    rooms: dict[str, str], floors: int, upwards: list[str], circle: list[str],
) -> None:  # fmt: skip
    name = f"made_{tmp_path.name}"
    made(tmp_path, {room: text.format(name) for room, text in rooms.items()})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(house, "layers", lambda: [["c"], ["a"], ["b"]])
    code = house.main(name)
    head, *faults = capsys.readouterr().out.splitlines()
    assert f"{floors} floors" in head
    assert faults == [f"upwards: {a}" for a in upwards] + [f"circle: {r}" for r in circle]
    assert code == bool(faults)


def test_the_package_has_at_most_fourteen_rooms_and_no_import_leads_upwards() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "house.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of at most 14, " in done.stdout
    assert "0 upwards, 0 rooms in or above circles" in done.stdout


PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_drawing_has_the_layers_of_the_contract(house: Any) -> None:
    drawing = re.search(r"<!-- layers: .*?-->\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert drawing is not None
    drawn = [re.split(r" {2,}", line)[0].split(" | ") for line in drawing[1].splitlines()]
    assert drawn == house.layers()


def test_the_page_describes_every_room_once_and_names_files_of_that_room(house: Any) -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+\? \| (.+) \|$", PAGE, re.MULTILINE)
    assert sorted(room for room, _ in rows) == sorted(room for layer in house.layers() for room in layer)
    for room, files in rows:
        for file in re.findall(r"`(.+?)`", files):
            assert file.startswith((f"peftbench/{room}/", f"peftbench/{room}.py"))
            assert (ROOT / file).exists()
