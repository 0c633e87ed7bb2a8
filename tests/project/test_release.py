"""One version: of the package, in CITATION.cff, in the changelog; and one linter, in the lock and in pre-commit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from setuptools import find_packages

import peftbench

ROOT = Path(__file__).resolve().parents[2]
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")


def test_the_citation_names_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == peftbench.__version__


def test_the_changelog_begins_with_unreleased_and_then_the_version_of_the_package() -> None:
    heads = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in heads[:2]] == ["Unreleased", peftbench.__version__]
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", heads[1][1])


def test_pre_commit_runs_the_ruff_of_the_lock() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (rev,) = [repo["rev"] for repo in hooks if repo["repo"].endswith("ruff-pre-commit")]
    assert f"ruff=={rev.removeprefix('v')}" in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()


def test_the_wheel_has_every_module_and_every_data_file() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = settings["package-dir"]
    listed = [*find_packages(str(ROOT), include=["peftbench*"]), *re.findall(r'"(peftbench\.[\w.]+)"', SETUP)]
    packaged: set[Path] = set()
    for package in listed:
        top = max((p for p in folders if f"{package}.".startswith(f"{p}.")), key=len)
        place = ROOT / folders[top] / package.removeprefix(top).strip(".").replace(".", "/")
        for pattern in ("*.py", *settings["package-data"].get(package, ())):
            packaged |= set(place.glob(pattern))
    there = {p for folder in folders.values() for p in (ROOT / folder).rglob("*.*") if p.suffix != ".pyc"}
    assert {p.relative_to(ROOT).as_posix() for p in there - packaged} == set()
    assert ROOT / "experiments/paper/lora_rank.yaml" in packaged
