"""`python -m peftbench` runs none of the Python files that lie in the working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftbench.cli.search_path import drop_working_directory

NAMES = ["yaml", "torch", "random", "typer", "click", "numpy", "transformers", "json", "fnmatch", "pathlib", "re"]
NAMES += [
    "typing",
    "dataclasses",
    "tempfile",
    "csv",
    "gzip",
    "pydantic",
    "msgspec",
    "filelock",
    "psutil",
    "rich",
    "pip",
]
NAMES += ["methods", "experiments", "tokenizers", "safetensors", "sitecustomize", "secrets", "copy", "queue", "uuid"]


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open('sprung', 'a').write('{name} ')\nraise SystemExit('{name} ran')\n")
    return tmp_path


def sprung(folder: Path) -> str:
    return (folder / "sprung").read_text() if (folder / "sprung").exists() else ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ("--version",)),
        pytest.param((), ("plan", "quickstart", "--set", "budget.steps=0"), marks=pytest.mark.slow),
        pytest.param((), ("methods",), marks=pytest.mark.slow),
        pytest.param(("-P",), ("--version",), marks=pytest.mark.full),
    ],
)
def test_no_file_of_the_working_directory_is_imported(
    traps: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    command = [sys.executable, *flags, "-m", "peftbench", *words]
    environment = {**os.environ, "PEFTBENCH_CACHE": str(traps / "cache")}
    done = subprocess.run(command, cwd=traps, env=environment, capture_output=True, text=True, timeout=120)
    assert (sprung(traps), done.returncode) == ("", 2 if "plan" in words else 0), done.stderr


def test_only_the_entry_of_python_m_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here, other = str(Path.cwd()), "/other"
    for program, before, after in (
        ("-m", [here, other, here], [other, here]),  # PYTHONPATH may name it: that is asked for
        ("-m", [other, here], [other, here]),
        ("-c", ["", other], ["", other]),
        ("/bin/peftbench", [here, other], [here, other]),
        ("-m", [], []),
    ):
        path = list(before)
        drop_working_directory(path, program)
        assert path == after


@pytest.mark.slow
def test_a_plugin_of_the_working_directory_still_loads(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('yaml ran')")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n\nfrom peftbench.method import Edit, Method, Sites, register\n\n\n"
        "@register\n@dataclass(frozen=True)\nclass Mine(Method):\n"
        '    """Nothing."""\n\n    name = "mine"\n    paper = "none"\n    formula = "h = W x"\n    lr = 1e-3\n'
        '    lr_source = "none"\n    size_formula = "0"\n\n'
        "    def attach(self, edit: Edit) -> None:\n        pass\n\n"
        "    def parameters(self, sites: Sites) -> int:\n        return 0\n"
    )
    command = [sys.executable, "-m", "peftbench", "methods", "--plugin", "mine.py"]
    environment = {**os.environ, "PEFTBENCH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "mine" in done.stdout) == (0, True), done.stderr
