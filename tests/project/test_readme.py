"""Written pages stay true: README's table, the results' README and the folklore are what the committed records give."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return module


def test_the_table_in_the_readme_is_the_one_that_the_records_give() -> None:
    readme = script("readme")
    assert readme.BEGIN in README
    assert readme.replaced(README) == README


@pytest.mark.embedded
def test_the_first_lines_of_python_plan_a_grid_and_name_columns_that_reports_have() -> None:
    lines = re.search(r"```python\n(import peftbench\n.*?)```", README, re.DOTALL)
    assert lines is not None
    call = 'peftbench.run(plan, "results/mine", progress=True)'
    assert call in lines[1]
    names: dict[str, Any] = {}
    exec(lines[1].replace(call, f"peftbench.records({str(ROOT / 'results/reference/quickstart')!r})"), names)
    assert {p.train.steps for p in names["plan"].runs} == {20}


def test_the_readme_of_the_results_is_the_one_that_the_records_give() -> None:
    text = script("results_readme").text()
    assert (ROOT / "results" / "README.md").read_text() == text
    assert "76 finished runs" in text


def test_the_page_of_folklore_is_the_one_that_its_estimates_give() -> None:
    folklore = script("folklore")
    assert folklore.PAGE.read_text() == folklore.page(json.loads(folklore.FILE.read_text())["rows"])


def test_every_committed_set_of_results_says_what_it_is_and_which_command_made_it() -> None:
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    sets = {path.partition("/runs/")[0] for path in listed.stdout.split() if "/runs/" in path}
    assert len(sets) >= 7
    assert [s for s in sorted(sets) if not (ROOT / s / "about.yaml").is_file()] == []
