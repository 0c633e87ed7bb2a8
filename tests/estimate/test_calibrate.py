"""Calibration for real, on a tiny network: what is asked is measured once, in processes of its own."""

from __future__ import annotations

from pathlib import Path

import planning
import pytest

from peftbench.estimate.run import calibrate, forecast, run_time
from peftbench.estimate.run.calibrate import Place
from peftbench.plan.prepare import Prepared

TEXT = """\
name: e
backbone: tiny-encoder
tasks: [{task: synthetic/classification, limit_train: 64, limit_validation: 40, limit_test: 40}]
budget: {trainable_params: 1000, tolerance: 0.9, steps: 3, batch_size: 4, max_length: 48, seeds: 2}
methods: [full, lora]
"""
HERE = Place("cpu", jobs=2, threads=1)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "e.yaml"
    path.write_text(TEXT)
    return planning.prepared(path)


def test_a_short_grid_is_not_calibrated(prepared: Prepared) -> None:
    said: list[str] = []
    assert forecast.costs(prepared, HERE, said.append).steps == {}
    assert not said


@pytest.mark.slow
def test_a_grid_is_measured_once_and_said_to_be(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "WORTH_SECONDS", 0)
    said: list[str] = []
    costs = forecast.costs(prepared, HERE, said.append)
    assert [line.split()[0] for line in said] == ["measuring", "simulating"]
    assert len(costs.steps) == 2
    (shape,) = costs.shapes.values()
    assert shape is not None
    assert sum(shape["train"].values()) == 3
    assert sum(shape["test"].values()) == pytest.approx(40 / 32)
    for cost in costs.steps.values():
        assert cost is not None
        assert len(cost["steps"]) == len(cost["evaluated"]) == 3
        assert all(seconds > 0 for seconds in (*cost["steps"].values(), cost["tracked"], cost["setup"]))
    told = run_time.predict(prepared.planned, [], costs)
    assert {t.source for t in told.values()} == {"calibration"}
    assert forecast.costs(prepared, HERE, said.append) == costs
    assert len(said) == 2, "the second plan asks nothing"
    another = calibrate.known(prepared.planned, prepared.catalogue, Place("cpu", 1, 2))
    assert another.steps == {}, "another number of workers is another calibration"


def test_without_leave_to_measure_nothing_is(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "WORTH_SECONDS", 0)
    monkeypatch.setattr(calibrate, "measure", lambda *args: pytest.fail("measured"))
    assert forecast.costs(prepared, HERE).steps == {}


@pytest.mark.slow
def test_the_peaks_of_what_is_left_to_run_are_simulated_once(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = forecast.peaks(prepared, [], HERE)
    assert set(peaks) == {p.spec.id for p in prepared.planned}
    assert all(peak.bytes is not None and peak.bytes > 10_000 for peak in peaks.values())
    monkeypatch.setattr(calibrate, "simulate", lambda *_: pytest.fail("simulated again"))
    assert forecast.peaks(prepared, [], HERE) == peaks


def test_each_process_that_measures_has_the_card_that_its_run_will_have(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def start(command: object, name: str, env: dict[str, str], **_: object) -> tuple[None, None]:
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        return None, None

    monkeypatch.setattr(calibrate.children, "start", start)
    for number in range(3):
        place = Place("cuda", 3, 1, devices=("2", "5"))
        calibrate._start_worker(tmp_path, number, {}, prepared.catalogue, place)
    assert seen == ["2", "5", "2"]
