"""The format of record files: older ones are read through steps, in order, and newer ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import factories
import pytest
from msgspec import to_builtins

from peftbench.errors import UserError
from peftbench.records import files, record, upgrades

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "results" / "reference" / "ci_smoke" / "runs"


def written_as(number: int, folder: Path, body: Mapping[str, Any]) -> Path:
    """A file of `body` as a version of that format wrote it."""
    whole = {**body, "schema": number, "env_id": record.env_id(body["env"]), "attempt": 1}
    path = folder / record.FOLDER / record.file_name(whole)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(files.encode(whole))
    return path


def old_pass() -> dict[str, Any]:
    """A profile pass as the first records had it: latencies by batch size, ratios without an interval."""
    body = factories.profile(("full", "lora"))
    spread = {"median": 0.004, "iqr": 0.0, "n": 5}
    row = {
        "method": "full",
        "task": "embedded/question_type",
        "step_seconds": {"median": 0.1, "iqr": 0.01, "n": 5, "samples": [0.1] * 5},
        "ratio": {"median": 1.0, "iqr": 0.0},
        "latency": {"1": {"unmerged": spread, "merged": spread}, "32": {"unmerged": spread, "merged": None}},
        "merge_max_change": None,
    }
    old = {k: v for k, v in body.items() if k not in ("base", "sources", "reference")}
    return {**old, "rows": [{"label": label, **row} for label in ("full", "lora")], "time": {"others_cpu_share": 0.25}}


def test_a_record_of_an_invented_format_is_read_through_its_steps_in_order(tmp_path, monkeypatch):
    old, now = (factories.run("lora", seed) for seed in (0, 1))
    one, two = written_as(1, tmp_path, old), written_as(2, tmp_path, now)
    bytes_before = one.read_bytes(), two.read_bytes()
    monkeypatch.setattr(upgrades, "FORMAT", 4)
    steps = {
        2: lambda body: {**body, "reason": "from 2"},
        3: lambda body: {**body, "reason": body["reason"] + " by 3"},
    }
    monkeypatch.setattr(upgrades, "STEPS", {**upgrades.STEPS, **steps})
    records = record.read_all(tmp_path)
    assert [r.body.reason for r in records] == ["from 2 by 3"] * 2
    assert [r.raw()["schema"] for r in records] == [4, 4]
    assert to_builtins(records[0].predictions) == old["predictions"]
    assert set(record.finished(records)) == {old["spec_id"], now["spec_id"]}, "a run of any format counts as done"
    assert (one.read_bytes(), two.read_bytes()) == bytes_before
    assert json.loads(record.write(tmp_path, now).read_bytes())["schema"] == 4


def test_a_format_of_the_future_is_refused_with_what_this_version_reads(tmp_path):
    path = written_as(upgrades.FORMAT + 1, tmp_path, factories.run())
    with pytest.raises(UserError, match=r"format is 3, and this version .* reads formats 1 to 2.*Read it with"):
        record.read(path)


@pytest.mark.parametrize("number", [True, "1", 1.0, None, 0])
def test_what_is_no_number_of_a_format_is_refused(tmp_path, number):
    path = written_as(number, tmp_path, factories.run())
    with pytest.raises(UserError, match=r"not a peftbench record|format is 0"):
        record.read(path)


def test_the_checksum_of_an_older_format_is_verified_on_its_own_bytes(tmp_path):
    path = written_as(1, tmp_path, factories.run(score=0.75))
    assert record.read(path).metrics.test["accuracy"] == 0.75
    path.write_text(path.read_text().replace("0.75", "0.95"))
    with pytest.raises(UserError, match="changed after it was written"):
        record.read(path)


def test_a_body_that_does_not_fit_its_old_format_is_named(tmp_path):
    path = written_as(1, tmp_path, {**factories.run(), "spec": None})
    with pytest.raises(UserError, match="does not fit format 1") as e:
        record.read(path)
    assert str(path) in str(e.value)


def test_the_first_format_names_the_share_of_other_programs_and_the_reference_as_today(tmp_path):
    raw = record.read(written_as(1, tmp_path, old_pass())).raw()
    assert raw["time"] == {"background_cpu_share": 0.25, "product": None}
    assert raw["reference"] == "full"
    run = {k: v for k, v in factories.run().items() if k != "reference"}
    assert record.read(written_as(1, tmp_path, run)).raw()["reference"] == "full"


def test_the_first_format_lists_its_latencies_and_says_null_for_what_was_not_measured(tmp_path):
    row = record.read(written_as(1, tmp_path, old_pass())).raw()["rows"][1]
    assert row["ratio"] == {"median": 1.0, "iqr": 0.0, "n": 5, "low": None, "high": None}
    assert (row["flops"], row["shape"], row["switch_seconds"]) == (None, None, None)
    one, two = row["latency"]
    assert (one["phase"], one["batch"], one["length"], one["typical"]) == ("forward", 1, None, True)
    assert one["merged"] == one["unmerged"] == {
        "median": 0.004, "iqr": 0.0, "n": 5, "samples": [], "p95": None, "ratio": None
    }  # fmt: skip
    assert (two["batch"], two["merged"]) == (32, None)


def test_no_step_touches_what_the_ids_are_hashes_of():
    for path in sorted(SMOKE.glob("*.json")):
        body = json.loads(path.read_bytes())
        read = record.read(path).raw()
        assert (read["spec"], read["env"]) == (body["spec"], body["env"])
        assert record.env_id(read["env"]) == body["env_id"]


def test_a_finished_run_of_the_first_format_is_not_planned_again(tmp_path):
    shutil.copytree(SMOKE, tmp_path / record.FOLDER)
    (example,) = {json.loads(p.read_bytes())["schema"] for p in SMOKE.glob("*.json")}
    assert example == 1
    finished = record.finished(record.read_all(tmp_path))
    assert len(finished) == len(list(SMOKE.glob("*.json")))
