"""scripts/kill_storm.py: a few kills do no harm, and harm would be noticed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import factories
import pytest

from peftbench.records import record

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

from kill_storm import GRID, MARK, Storm, measurements, storm

SMALL = (
    GRID.replace("methods: [full, lora, bitfit, family]", "methods: [lora, family]")
    .replace(", {task: synthetic/regression, rows: 60}", "")
    .replace("seeds: 2", "seeds: 1")
)


@pytest.mark.slow
def test_a_grid_survives_kills_of_its_workers_and_of_its_runner(tmp_path: Path) -> None:
    made = storm(tmp_path, kills=4, seed=3, workers=2, grid=SMALL)
    assert sum(made.kills.values()) == 4
    assert {target for target, _ in made.kills} == {"worker", "runner"}
    assert not made.faults, made.details


@pytest.fixture
def calm(tmp_path: Path) -> Storm:
    """A storm that has seen one finished record, as in its calm grid."""
    made = Storm(tmp_path, 1, random.Random(0))
    for folder in ("tmp", "cache/snapshots", "results/adapters"):
        (tmp_path / folder).mkdir(parents=True)
    record.write(tmp_path / "results", factories.run())
    made.calm = measurements(tmp_path / "results")
    made.check(tmp_path / "results")
    assert not made.faults
    return made


def edit(results: Path) -> None:
    (path,) = (results / "runs").iterdir()
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("harm", "faults"),
    [
        (lambda results: next((results / "runs").iterdir()).unlink(), {"lost"}),
        (edit, {"changed", "torn"}),
        (lambda results: record.write(results, factories.run()), {"doubled"}),
        (lambda results: record.write(results, factories.run(status="error", reason="?")), {"different"}),
        (lambda results: (results / ".lock").touch(), {"left behind"}),
        (lambda results: (results.parent / "tmp" / "peftbench-1").mkdir(), {"left behind"}),
        (lambda results: (results.parent / "cache" / "snapshots" / "weights").touch(), {"left behind"}),
        (lambda results: (results / "runs" / ".1-2.tmp").touch(), {"left behind"}),
        (lambda results: (results / "adapters" / "a.safetensors").write_bytes(b"half"), {"torn"}),
    ],
)
def test_harm_is_found(calm: Storm, harm: Callable[[Path], object], faults: set[str]) -> None:
    results = calm.work / "results"
    harm(results)
    calm.check_end(results)
    assert faults <= set(calm.faults)


def test_another_measurement_is_found(calm: Storm) -> None:
    calm.calm = {spec_id: {**body, "curve": None} for spec_id, body in calm.calm.items()}
    calm.check_end(calm.work / "results")
    assert set(calm.faults) == {"different"}


def test_a_process_that_stays_is_found(calm: Storm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kill_storm.GONE_SECONDS", 0.1)
    (calm.work / "errors.txt").touch()
    stays = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = subprocess.Popen(stays, env={**os.environ, MARK: calm.mark})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert calm.ended(ended, calm.work / "results", killed=False) == 0
    assert process.wait(10) < 0
    assert set(calm.faults) == {"orphaned"}
