"""One version: of the package, in CITATION.cff, in the changelog; and one linter, in the lock and in pre-commit."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import peftbench

ROOT = Path(__file__).resolve().parents[2]


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
