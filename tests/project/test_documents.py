"""What the documents name exists: links, files, modules, commands and targets of make."""

from __future__ import annotations

import pkgutil
import re
import subprocess
from pathlib import Path

import pytest
import typer.main

from peftbench.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    p.relative_to(ROOT).as_posix()
    for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md"), ROOT / "results/README.md")
)
RESULTS = "results/(?:reference|paper|gpu|benchmarks|calibration)"
FOLDERS = rf"benchmarks|docs|examples|experiments|methods|peftbench|scripts|tests|\.github|\.ci|{RESULTS}"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]*\w")
QUOTED = re.compile(r"`([\w-]+\.(?:py|yaml|md|sh|toml|lock|yml))`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = re.compile(r"(?<![\w./-])peftbench\.[a-z_][\w.]*\w")
COMMAND = re.compile(r"(?:python -m |^ {4}|`)peftbench ([a-z][a-z-]+)", re.MULTILINE)
TARGET = re.compile(r"(?:^ {4,}|`)make (?:PYTHON=\S+ )?([a-z][a-z-]+)", re.MULTILINE)
GROUPS = {"peftbench.methods", "peftbench.executors"}  # of entry points
ELSEWHERE = re.compile(r"my_|NAME|^examples/NLU/")  # what a reader is to write; the folder of LoRA's own repository


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def exists(name: str) -> bool:
    return any(ROOT.glob(name)) if "*" in name else (ROOT / name).exists()


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The names, without their folders, of all files of the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {Path(line).name for line in listed.stdout.splitlines()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_lead_to_files(document: str, tracked: set[str]) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(text(document)) if "://" not in link]
    assert [link for link in links if not (ROOT / document).parent.joinpath(link).exists()] == []
    assert [p for p in PATH.findall(text(document)) if not ELSEWHERE.search(p) and not exists(p)] == []
    assert [f for f in QUOTED.findall(text(document)) if not ELSEWHERE.search(f) and f not in tracked] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_can_be_imported(document: str) -> None:
    def resolves(name: str) -> bool:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            return False
        return True

    named = set(MODULE.findall(text(document))) - GROUPS
    assert [name for name in sorted(named) if not resolves(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_targets_are_there(document: str) -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(COMMAND.findall(text(document))) <= commands
    assert set(TARGET.findall(text(document))) <= targets


def test_the_patterns_find_what_they_are_for() -> None:
    readme, adapters = text("README.md"), text("docs/adapters-elsewhere.md")
    assert {"examples/ssf.py", "results/reference/quickstart"} <= set(PATH.findall(text("docs/own-method.md")))
    assert "quickstart.yaml" in QUOTED.findall(text("docs/experiments.md"))
    assert {"CONTRIBUTING.md", "docs/methods/index.md"} <= set(LINK.findall(readme))
    assert "peftbench.method.serving.AdapterSet" in MODULE.findall(adapters)
    assert {"plan", "estimate", "new-method"} <= set(COMMAND.findall(readme))
    assert {"export", "import"} <= set(COMMAND.findall(adapters))
    assert {"test", "lint"} <= set(TARGET.findall(text("CONTRIBUTING.md")))
