"""Every example in a docstring gives what it shows."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITH_A_NETWORK = {"peftbench.api.networks", "peftbench.method.edit", "peftbench.method.serving"}  # that a caller holds
SHOWN = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.glob("peftbench/**/*.py")
    if ">>> " in path.read_text(encoding="utf-8")
}


@pytest.mark.parametrize("module", sorted(SHOWN - WITH_A_NETWORK))
def test_examples_give_what_they_show(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed
