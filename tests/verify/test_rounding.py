"""The last digits of a score may differ on any machine; those of all else may not."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kernels import KERNELS, process_environment
from test_tolerance import body, changed

from peftbench.records import record
from peftbench.records.record import RunRecord
from peftbench.verify.records import audit, differences, rounding, tolerance

SMOKE = Path(__file__).parents[2] / "results" / "reference" / "ci_smoke"
ULP = 2**-52  # of a score between 1 and 2; smaller scores count in these units, too


@pytest.mark.parametrize("score", [0.0, 1e-9, -0.0095, 0.34, 1.87, 54.5])
def test_a_score_two_units_in_the_last_place_away_is_the_same_and_one_1e_9_away_is_not(score: float) -> None:
    unit = math.ulp(max(1.0, abs(score)))
    assert rounding.is_same(score, score + 2 * unit)
    assert rounding.is_same(score, score - rounding.SCORE_ULPS * unit)
    assert not rounding.is_same(score, score + 2 * rounding.SCORE_ULPS * unit)
    assert not rounding.is_same(score, score + 1e-9)


def test_a_score_that_does_not_exist_is_the_same_as_no_number() -> None:
    assert rounding.is_same(None, None)
    for other in (0.0, math.nan, math.inf):
        assert not rounding.is_same(None, other)
        assert not rounding.is_same(0.5, other + 1)


@pytest.mark.parametrize(
    ("field", "is_score"),
    [
        ("metrics.test.pearson", True),
        ("metrics.validation.f1", True),
        ("metrics.majority", True),
        ("curve.validation[1].rmse", True),
        ("curve.validation[1].perplexity", False),
        ("curve.validation[1].step", False),
        ("metrics.test.perplexity", False),
        ("curve.loss[3]", False),
        ("predictions.values[3]", False),
        ("parameters.trainable", False),
    ],
)
def test_only_what_follows_from_predictions_is_a_score(field: str, is_score: bool) -> None:
    assert rounding.is_score(field) is is_score


@pytest.mark.parametrize("place", ["curve.validation.0.pearson", "metrics.test.pearson"])
@pytest.mark.parametrize(("away", "same"), [(2 * ULP, True), (1e-9, False)])
def test_scores_of_two_records_are_compared_to_a_few_units_in_the_last_place(
    place: str, away: float, same: bool
) -> None:
    (found,) = differences.compare(*changed(place, _at(place) + away))
    assert (found.is_rounding, found.within) == (same, same)


@pytest.mark.parametrize("place", ["curve.loss.0", "curve.loss.3", "predictions.values.1"])
def test_losses_and_predictions_are_compared_bit_for_bit(place: str) -> None:
    (found,) = differences.compare(*changed(place, math.nextafter(_at(place), 9)))
    assert not found.within


def test_another_machine_excuses_no_more_of_a_score_whose_predictions_are_equal() -> None:
    for away, same in ((2 * ULP, True), (1e-9, False)):
        one, other = changed("metrics.test.pearson", 0.5 + away)
        judged = tolerance.apply_tolerance(one, other, differences.compare(one, other)).differences
        assert [d.within for d in judged] == [same]


def _at(place: str) -> Any:
    found: Any = body()
    for key in place.split("."):
        found = found[int(key) if key.isdecimal() else key]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["ci_smoke", "embedded_small", "glue_small"])
def test_committed_records_have_the_scores_that_their_predictions_give(folder: str) -> None:
    records, findings = audit.audit(SMOKE.with_name(folder))
    assert any("pearson" in r.metrics.test for r in records if isinstance(r, RunRecord))
    assert not findings


@pytest.mark.parametrize(("away", "finds"), [(2 * ULP, []), (1e-9, ["metrics.test.pearson"])])
def test_the_audit_allows_a_few_units_in_the_last_place(tmp_path: Path, away: float, finds: list[str]) -> None:
    committed = record.read(next((SMOKE / "runs").glob("lora--synthetic_regression*")))
    body = committed.raw()
    body["metrics"]["test"]["pearson"] += away
    assert body["metrics"]["test"] != committed.metrics.test
    record.write(tmp_path, body)
    assert [f.field for f in audit.audit(tmp_path)[1]] == finds


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [pytest.param(k, marks=() if k else pytest.mark.full) for k in KERNELS])
def test_committed_records_verify_with_every_kernel_of_the_blas(kernel: str | None, tmp_path: Path) -> None:
    environment = process_environment(kernel)
    (tmp_path / "runs").mkdir()
    for name in ("prefix--", "linear_probe--"):
        shutil.copy(next((SMOKE / "runs").glob(f"{name}synthetic_regression*")), tmp_path / "runs")
    command = [sys.executable, "-m", "peftbench", "verify", str(tmp_path), "--json", "--keep", str(tmp_path / "kept")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)["repeats"]
    assert len(told) == 2
    for repeat in told:
        is_same_machine = all(d["field"].startswith("code.") for d in repeat["environment"])
        assert repeat["status"] == "identical" or not is_same_machine
    for made in record.read_all(tmp_path / "kept"):
        assert made.env.blas["numpy"].endswith(kernel or "")
