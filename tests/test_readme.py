"""README stays true: its table is the one that the committed records give, and what it names exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_in_the_readme_is_the_one_that_the_records_give() -> None:
    spec = importlib.util.spec_from_file_location("readme_script", ROOT / "scripts" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.BEGIN in README
    assert script.replaced(README) == README


def test_files_and_experiments_that_the_documents_name_exist() -> None:
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?:experiments|scripts|tests|benchmarks|peftbench|results/reference)/[\w./-]+\.\w+", text))
    assert len(named) > 5
    assert [n for n in sorted(named) if not (ROOT / n).exists()] == []
