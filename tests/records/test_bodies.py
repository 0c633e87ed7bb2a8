"""The types of a record's body: every committed record fits, and what does not fit is named with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import factories
import pytest

from peftbench.errors import UserError
from peftbench.records import check, files, packs, record
from peftbench.records.bodies import ProfileBody, RunBody, TrialBody

ROOT = Path(__file__).resolve().parents[2]


def set_at(body: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another value at "curve.validation.0.accuracy"; `...` takes the field away."""
    copied = deepcopy(body)
    *path, last = place.split(".")
    inner: Any = copied
    for step in path:
        inner = inner[int(step) if isinstance(inner, list) else step]
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return copied


def test_every_committed_record_fits_its_type_to_the_last_field_and_has_the_id_of_its_spec():
    sets = {path.parent for name in ("runs", "runs.tar.xz") for path in (ROOT / "results").rglob(name)}
    paths = [path for folder in sorted(sets) for path in record.paths(folder)]
    assert len(paths) > 3500
    kinds = set()
    for path in paths:
        body = files.decode(packs.read_bytes(path), path, predictions=True)
        check.complete(body)
        made = check.typed(body)
        assert made.spec.id == made.spec_id, path
        kinds.add((type(made), made.status))
    assert {kind for kind, status in kinds if status == "finished"} == {RunBody, TrialBody, ProfileBody}
    assert {status for _, status in kinds} >= {"killed", "abandoned"}


RUN = factories.run("lora") | {"env_id": "0" * 16, "attempt": 1}
RUN["curve"]["validation"] = [{"step": 3, "accuracy": 0.5}]
PASS = factories.profile(("full", "lora"), work=True) | {"env_id": "0" * 16, "attempt": 1}


@pytest.mark.parametrize(
    ("body", "place", "value", "said"),
    [
        (RUN, "metrics.test.accuracy", "0.7", "metrics.test.accuracy: expected `float | null`, got `str`"),
        (RUN, "curve.validation.0.accuracy", [], "curve.validation[0].accuracy: expected `int | float | null`"),
        (RUN, "curve.loss.3", "1.0", "curve.loss[3]: expected `float | null`"),
        (RUN, "memory.at_peak.adapter", 0.5, "memory.at_peak.adapter: expected `int`"),
        (RUN, "memory.peak_bytes", ..., "memory.peak_bytes: it is missing"),
        (RUN, "seconds", ..., "seconds: it is missing"),
        (RUN, "env.packages.torch", 2, "env.packages.torch: expected `str | null`"),
        (RUN, "spec.train.lr", None, "spec.train.lr: expected `float`"),
        (RUN, "spec.train.momentum", 0.9, "spec.train.momentum: this version does not know that field"),
        (RUN, "status", "fine", "status: invalid enum value 'fine'"),
        (RUN, "kind", "walk", "kind: 'walk' is neither run nor profile"),
        (RUN, "metrics", None, "a finished run must have metrics"),
        (PASS, "rows.1.latency.0.unmerged.ratio", 1.0, "rows[1].latency[0].unmerged.ratio: expected `object | null`"),
        (PASS, "spec.methods.1.name", 7, "spec.methods[1].name: expected `str`"),
        (PASS, "rows", None, "a finished profile must have rows"),
    ],
)
def test_a_misfit_is_named_with_its_place(body, place, value, said):
    with pytest.raises(ValueError) as e:
        check.typed(set_at(body, place, value))
    assert str(e.value).startswith(said)


def test_a_key_at_fault_is_found_among_others_and_within_nested_mappings():
    probe = {"version": 1, "paper": "p", "definition": "d", "points": [{"step": 0}]}
    body = {**RUN, "probes": {"ranks": probe, "sub.spaces": {**probe, "points": [{}, 7]}}}
    with pytest.raises(ValueError, match=r"^probes\.sub\.spaces\.points\[1\]: expected `object`"):
        check.typed(body)


def test_a_file_that_does_not_fit_is_refused_by_name_and_place(tmp_path):
    path = record.write(tmp_path, factories.run(score=0.75))
    whole = json.loads(path.read_bytes())
    path.write_bytes(
        files.encode({k: v for k, v in set_at(whole, "metrics.test.accuracy", "high").items() if k != "checksum"})
    )
    with pytest.raises(UserError, match=r"metrics\.test\.accuracy: expected.*move it out") as e:
        record.read_all(tmp_path)
    assert str(path) in str(e.value)


def test_a_field_that_newer_code_adds_does_not_keep_a_record_from_being_read():
    made = check.typed({**RUN, "carbon_grams": 3.0, "memory": {**RUN["memory"], "swapped_bytes": 1}})
    assert made == check.typed(RUN)


@pytest.mark.parametrize("place", ["carbon_grams", "memory.swapped_bytes", "metrics.tests", "env.cpu.cores"])
def test_a_field_that_no_reader_knows_is_not_written(tmp_path, place):
    with pytest.raises(ValueError, match=f"not a record: {place}: no record has that field"):
        record.write(tmp_path, set_at(factories.run(), place, 1))
    assert not (tmp_path / record.FOLDER).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["values"].append([]), r"predictions\.values\[400\]: expected"),
        (lambda p: p.pop("ids"), r"predictions\.ids: it is missing"),
    ],
)
def test_predictions_that_misfit_are_not_written(tmp_path, change: Callable[[Any], Any], said: str):
    body = factories.run()
    change(body["predictions"])
    with pytest.raises(ValueError, match=f"not a record: {said}"):
        record.write(tmp_path, body)


def test_a_trial_has_no_test_scores():
    trial = factories.as_trial(RUN, 2)
    made = check.typed(trial)
    assert isinstance(made, TrialBody)
    with pytest.raises(ValueError, match=r"metrics\.test: no record has that field"):
        check.complete(set_at(trial, "metrics.test", {"accuracy": 0.7}))
