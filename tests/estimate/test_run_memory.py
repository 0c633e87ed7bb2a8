"""The peak memory that `plan` predicts is the one that the run's record then has, to the byte."""

from __future__ import annotations

from pathlib import Path

import planning
import pytest

from peftbench.estimate.run import calibrate, calibration_worker, run_memory
from peftbench.estimate.run.calibrate import Costs, Place
from peftbench.estimate.run.run_peak import peak
from peftbench.plan.prepare import Prepared
from peftbench.run.session import Session

TEXT = """\
name: e
backbone: BACKBONE
MORE
tasks: [{task: TASK, limit_train: 64, limit_validation: 40, limit_test: 40}]
budget: {trainable_params: 2000, tolerance: 0.9, steps: 3, batch_size: 4, max_length: 48, seeds: 2}
methods: METHODS
"""


def prepared(
    folder: Path, backbone: str, task: str, methods: str = "[full, lora]", more: str = "backbone_dropout: 0.1"
) -> Prepared:
    path = folder / "e.yaml"
    said = TEXT.replace("BACKBONE", backbone).replace("TASK", task).replace("METHODS", methods)
    path.write_text(said.replace("MORE", more))
    return planning.prepared(path)


def read(grid: Prepared) -> tuple[Session, Costs]:
    """The session, and what a calibration would have read about the batches."""
    session = Session(device="cpu", shared=True)
    found = {calibrate.batch_key(p.spec): calibration_worker.tracked(session, p.spec) for p in grid.planned}
    return session, Costs(None, {}, {}, {}, found, "cpu")


ENCODER = "[full, lora, qlora, adapter, prefix, ia3, dora, bitfit, linear_probe, adalora, prompt]"
CASES = {
    "classification": ("tiny-encoder", "synthetic/classification", ENCODER, "backbone_dropout: 0.1"),
    "two-texts": ("tiny-encoder", "synthetic/pair", "[lora]", "backbone_dropout: 0.0"),
    "regression": ("tiny-encoder", "synthetic/regression", "[lora, full]", "backbone_dropout: 0.0"),
    "causal-classifier": ("tiny-decoder", "synthetic/classification", "[lora, prefix]", "dtype: bfloat16"),
    "generation": ("tiny-decoder", "synthetic/generation", "[full, lora, qlora, prefix]", "backbone_dropout: 0.0"),
    "checkpointing": ("tiny-decoder", "synthetic/generation", "[lora]", "gradient_checkpointing: true"),
    "decoder-behind-encoder": ("tiny-t5", "synthetic/generation", "[lora, full]", "dtype: bfloat16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_prediction_is_the_peak_in_the_runs_record_to_the_byte(tmp_path: Path, case: str) -> None:
    backbone, task, methods, more = CASES[case]
    grid = prepared(tmp_path, backbone, task, methods, more)
    session, costs = read(grid)
    asked = run_memory.missing(grid.planned, costs, grid.catalogue)
    told = {key: peak(question) for key, question in asked.items()}
    for key, question in asked.items():
        spec = next(
            p.spec
            for p in grid.planned
            if p.spec.method.label == question["spec"]["method"]["label"]
            and costs.batches[calibrate.batch_key(p.spec)] == question["batch"]
        )
        measured = session.execute(spec)["memory"]
        assert (told[key]["bytes"], told[key]["batch"]) == (measured["peak_bytes"], measured["batch"]), spec.method


@pytest.mark.slow
def test_a_few_steps_are_simulated_without_a_process_and_give_what_a_process_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = prepared(tmp_path, "tiny-encoder", "synthetic/classification")
    asked = run_memory.missing(grid.planned, Costs(None, {}, {}, {}), grid.catalogue)
    with monkeypatch.context() as patched:
        patched.setattr(calibrate, "_run_workers", lambda *_: pytest.fail("it started processes"))
        here = calibrate.simulate(asked, grid.catalogue, Place("cpu", 2, 1))
    monkeypatch.setattr(calibrate, "FEW", 0)
    assert here == calibrate.simulate(asked, grid.catalogue, Place("cpu", 2, 1))
    assert len(here) == 2
