"""The published JSON Schema of a record: complete, described, and true of committed and of new records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import factories
import jsonschema
import msgspec
import pytest
from commands import Call
from test_bodies import set_at

from peftbench.records import record, schema, upgrades

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "results" / "reference" / "ci_smoke"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema.json_schema())
    return jsonschema.Draft202012Validator(schema.json_schema())


def file_of(folder: Path, body: dict[str, Any]) -> dict[str, Any]:
    return json.loads(record.write(folder, body).read_bytes())


def test_committed_records_fit_the_schema(validator):
    records = record.read_all(SMOKE)
    assert {r.kind for r in records} == {"run", "profile"}
    for r in records:
        validator.validate({**r.raw(), "checksum": "0" * 64})


@pytest.mark.parametrize(
    "body",
    [
        factories.run(),
        factories.as_trial(factories.run(), 3),
        factories.profile(work=True),
        {**factories.run(status="diverged", reason="the loss is not finite"), "curve": None},
        {**factories.profile(status="oom", reason="out of memory"), "time": None},
    ],
    ids=["run", "trial", "profile", "diverged", "oom"],
)
def test_a_record_as_it_is_written_fits_the_schema(validator, tmp_path, body):
    validator.validate(file_of(tmp_path, body))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("metrics.test.accuracy", "0.7"),
        ("metrics", None),
        ("predictions", None),
        ("spec.train.momentum", 0.9),
        ("env.threads", ...),
        ("schema", upgrades.FORMAT + 1),
        ("checksum", "none"),
        ("status", "fine"),
    ],
)
def test_what_is_no_record_does_not_fit_the_schema(validator, tmp_path, place, value):
    assert not validator.is_valid(set_at(file_of(tmp_path, factories.run()), place, value))


def test_every_field_of_every_type_has_a_description():
    found = schema.json_schema()
    for name, definition in found["$defs"].items():
        assert definition["description"], name
        for field, about in definition["properties"].items():
            assert about.get("description"), f"{name}.{field} has no comment that says what it is"
    assert {"RunSpec", "TrainSpec", "Environment", "ProfileRow", "Predictions"} <= set(found["$defs"])


class Base(msgspec.Struct, kw_only=True):
    # seconds of a step,
    # warm-up left out
    seconds: float = 0.0  # null: not measured
    kind: str = ""


class Derived(Base, kw_only=True):
    kind: Literal["run"]  # always this


def test_a_description_is_the_comment_at_the_field_and_of_a_field_declared_again_the_last():
    assert schema.descriptions(Base) == {
        "seconds": "seconds of a step, warm-up left out null: not measured",
        "kind": "",
    }
    assert schema.descriptions(Derived)["kind"] == "always this"
    assert schema.descriptions(Derived)["seconds"] == schema.descriptions(Base)["seconds"]


def test_the_command_line_prints_it_and_the_experiments_by_default(call: Call):
    assert json.loads(call("schema", "record").out) == json.loads(json.dumps(schema.json_schema()))
    assert json.loads(call("schema", "experiment").out) == json.loads(call("schema").out)
    wrong = call("schema", "records")
    assert wrong.code == 2
    assert "record" in wrong.err
