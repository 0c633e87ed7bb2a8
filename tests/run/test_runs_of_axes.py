"""A grid with axes, run: what is done is not done again, and the report has the curves."""

from __future__ import annotations

from pathlib import Path

import pytest

import peftbench
from peftbench.report.data import axis_curves

FILE = {
    "name": "curve",
    "backbone": "tiny-encoder",
    "tasks": ["synthetic/classification"],
    "budget": {"seeds": 2, "batch_size": 8, "max_length": 16},
    "axes": {"train_size": [16, "all"], "steps": [2, 3]},
    "profile": False,
    "methods": ["full", {"lora": {"rank": 2}}],
}


@pytest.mark.slow
def test_a_grid_with_axes_resumes_and_reuses_ordinary_runs(tmp_path: Path) -> None:
    ordinary = {**FILE, "axes": {}, "tasks": [{"task": "synthetic/classification", "limit_train": 16}]}
    ordinary["budget"] = {**FILE["budget"], "steps": 2}
    first = list(peftbench.run(ordinary, tmp_path))
    part = peftbench.run(peftbench.plan(FILE, only=["train_size=16", "seed=0"]), tmp_path)
    assert len(list(part)) == len(first) + 2, "those of 3 steps; those of 2 steps are there"
    whole = peftbench.run(FILE, tmp_path)
    assert len(list(whole)) == 2 * 2 * 2 * 2, "two sizes, steps, methods and seeds: none twice"
    assert {r.path for r in first} < {r.path for r in whole}
    curves = axis_curves.of(peftbench.report(whole).loaded.comparisons)
    assert [(c.axis, list(c.values)) for c in curves] == [
        ("train_size", [16, 256]), ("train_size", [16, 256]), ("steps", [2, 3]), ("steps", [2, 3]),
    ]  # fmt: skip
    predicted = {tuple(r.predictions.ids) for r in whole if r.predictions}
    assert len(predicted) == 1, "one test split"
