"""A record may come from anybody: it is checked when it is read, and one that cannot be true is set aside by name."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import factories
import pytest
from commands import Call
from test_bodies import set_at

from peftbench.errors import SetAside, UserError
from peftbench.records import files, record

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from fuzzing import records as edits  # noqa: E402


def committed(pattern: str) -> dict[str, Any]:
    path = sorted((ROOT / "results" / "reference").glob(pattern))[0]
    return {k: v for k, v in json.loads(path.read_bytes()).items() if k != "checksum"}


BODIES = {
    "run": committed("ci_smoke/runs/lora--synthetic_classification*"),
    "pass": committed("ci_smoke/runs/profile*classification*"),
    "trial": edits.with_ids(factories.as_trial(factories.run() | {"attempt": 1, "schema": 2, "overrides": []}, 3)),
}
SIZED = committed("embedded_small/runs/adalora--*")  # with hyperparameters that are not the defaults
BODIES["trial"]["env_id"] = record.env_id(BODIES["trial"]["env"])


def put(folder: Path, content: bytes | dict[str, Any], name: str = "x--1.json") -> Path:
    """Write a file among the records, with a right checksum."""
    path = folder / record.FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else edits.encoded(content))
    return path


def told(folder: Path) -> tuple[list[record.Record], list[str]]:
    """What is readable, and what is said of the rest."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = record.readable(folder)
    return found, [str(w.message) for w in caught if issubclass(w.category, SetAside)]


@pytest.mark.parametrize("kind", BODIES)
def test_the_records_that_are_spoilt_below_are_sound(kind: str, tmp_path: Path) -> None:
    put(tmp_path, BODIES[kind])
    found, said = told(tmp_path)
    assert (len(found), said) == (1, [])


def test_every_committed_record_is_readable() -> None:
    sets = {path.parent for name in ("runs", "runs.tar.xz") for path in (ROOT / "results").rglob(name)}
    assert len(sets) > 25
    for folder in sorted(sets):
        found, said = told(folder)
        assert (len(found), said) == (len(record.paths(folder)), []), folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "trial", pytest.param("pass", marks=pytest.mark.full)])
def test_no_odd_value_at_any_place_is_more_than_a_message(kind: str, tmp_path: Path) -> None:
    """Every place of a record, each with a few of the odd values in turn."""
    values: Iterator[int] = iter(range(10**9))
    path = put(tmp_path, BODIES[kind])
    for at in list(edits.places(BODIES[kind])):
        for odd in [edits.ODD[next(values) % len(edits.ODD)] for _ in range(4)] + [...]:
            body = deepcopy(BODIES[kind])
            owner = edits._owner(body, at)
            if odd is ...:
                owner.pop(at[-1])
            else:
                owner[at[-1]] = odd
            path.write_bytes(edits.encoded(body))
            found, said = told(tmp_path)
            assert len(found) == 1 or (len(said) == 1 and path.name in said[0] and len(said[0]) <= 2_000), at


@pytest.mark.slow
@pytest.mark.parametrize("raw", edits.RAW, ids=lambda raw: raw[:12])
@pytest.mark.parametrize(
    "place", ["metrics.test.accuracy", "spec.seed", "reason", "hyper", "predictions", "curve.loss.2"]
)
def test_text_that_is_no_json_value_is_set_aside(raw: str, place: str, tmp_path: Path) -> None:
    path = put(tmp_path, edits.encoded(set_at(BODIES["run"], place, "RAW"), raw))
    found, said = told(tmp_path)
    if found:  # a control character is a character
        assert raw in ('"\\u0000"',)
    else:
        assert path.name in said[0]
        assert len(said[0]) <= 2_000


IMPOSSIBLE: dict[str, tuple[str, str, Any]] = {  # what -> record, place, value
    "a score above its metric's range": ("run", "metrics.test.accuracy", 1.5),
    "a score below it": ("run", "metrics.validation.accuracy", -0.1),
    "a score of the curve beyond it": ("run", "curve.validation.0.accuracy", 7.0),
    "a majority class beyond it": ("run", "metrics.majority", 2.0),
    "a trial's score beyond it": ("trial", "metrics.validation.accuracy", 1.01),
    "another direction": ("run", "metrics.direction", "min"),
    "a primary metric without a score": ("run", "metrics.primary", "f1"),
    "no test scores": ("run", "metrics.test", {}),
    "negative memory": ("run", "memory.at_peak.weights", -1),
    "a peak that is not the sum": ("run", "memory.peak_bytes", 5),
    "more trained than there is": ("run", "parameters.total", 1),
    "negative parameters": ("run", "parameters.head", -3),
    "fewer losses than steps": ("run", "stopped_at", 7),
    "a negative step": ("run", "stopped_at", -1),
    "an end before the start": ("run", "ended", "2020-01-01T00:00:00+00:00"),
    "a start that is no time": ("run", "started", "yesterday"),
    "a start without a time zone": ("run", "started", "2026-01-01T00:00:00"),
    "a year long ago": ("run", "started", "0001-01-01T00:00:00+00:00"),
    "negative seconds": ("run", "seconds.total", -0.5),
    "another spec's id": ("run", "spec_id", "0" * 16),
    "another environment's id": ("run", "env_id", "0" * 16),
    "another name": ("run", "slug", "full--synthetic_classification--s0"),
    "another rate": ("run", "spec.train.lr", 0.5),
    "a rate below nothing": ("run", "spec.train.lr", -1e-3),
    "a batch of none": ("run", "spec.train.batch_size", 0),
    "a seed below nothing": ("run", "spec.seed", -1),
    "a seed that no table holds": ("run", "spec.seed", 10**400),
    "other hyperparameters": ("sized", "hyper.rank", 4_711),
    "fewer labels than ids": ("run", "predictions.labels", [1]),
    "predictions of a wrong type": ("run", "predictions.values", "none"),
    "no predictions": ("run", "predictions", None),
    "attempt 0": ("run", "attempt", 0),
    "a row of a method that is not in the pass": ("pass", "rows.0.label", "nobody"),
    "two rows of one method": ("pass", "rows.1.label", "full"),
    "a negative time": ("pass", "rows.0.step_seconds.median", -1.0),
    "a median outside its samples": ("pass", "rows.0.step_seconds.median", 1e6),
    "more samples than rounds": ("pass", "rows.0.step_seconds.n", 1),
    "a rate too few": ("pass", "spec.lrs", [0.1]),
    "a label as long as a book": ("run", "spec.method.label", "x" * 10_000),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_true_is_set_aside_and_named(what: str, tmp_path: Path) -> None:
    kind, place, value = IMPOSSIBLE[what]
    good = put(tmp_path, BODIES["run" if kind == "pass" else "pass"], "good--1.json")
    bad = put(tmp_path, set_at({**BODIES, "sized": SIZED}[kind], place, value))
    found, said = told(tmp_path)
    assert [r.path for r in found] == [good]
    (text,) = said
    assert bad.name in text
    assert "set aside" in text


def test_a_key_that_stands_twice_is_set_aside(tmp_path: Path) -> None:
    for old, new in [(b'"kind":', b'"kind":"x",\n"kind":'), (b'"seed":', b'"seed":7,"seed":'),
                     (b'\n"predictions":', b'\n"predictions":null,\n"predictions":')]:  # fmt: skip
        text = edits.encoded(BODIES["run"]).rpartition(b',\n"checksum"')[0]
        assert old in text
        put(tmp_path, sealed(text.replace(old, new, 1)))
        found, said = told(tmp_path)
        assert not found
        assert "twice" in said[0]


def sealed(head: bytes) -> bytes:
    import hashlib

    return head + b',\n"checksum":"' + hashlib.sha256(head + b"\n}").hexdigest().encode() + b'"\n}\n'


@pytest.mark.parametrize("make", ["pipe", "folder", "loop", "sparse", "null device"])
def test_what_is_no_file_of_a_record_is_set_aside_without_waiting(make: str, tmp_path: Path) -> None:
    path = tmp_path / record.FOLDER / "x--1.json"
    path.parent.mkdir()
    ways: dict[str, Callable[[], Any]] = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "sparse": lambda: (path.touch(), os.truncate(path, 2**40)),
        "null device": lambda: path.symlink_to("/dev/zero"),
    }
    ways[make]()
    found, said = told(tmp_path)
    assert found == []
    assert path.name in said[0]


def test_the_message_has_at_most_2000_characters_however_many_files_there_are(tmp_path: Path) -> None:
    for i in range(300):
        put(tmp_path, b"{" * 5_000, f"{'long name ' * 20}{i}--1.json")
    _, (text,) = told(tmp_path)
    assert len(text) <= 2_000
    assert "and 295 more such files" in text


def test_a_file_of_an_odd_number_stops_no_writing(tmp_path: Path) -> None:
    path = record.write(tmp_path, factories.run())
    for number in ("²", "٣", "x", ""):
        path.with_name(path.name.replace("--1.json", f"--{number}.json")).write_text("{")
    assert record.write(tmp_path, factories.run()).name.endswith("--2.json")


def test_committed_figures_refuse_what_others_set_aside(tmp_path: Path) -> None:
    put(tmp_path, b"{}")
    with pytest.raises(UserError, match="not a peftbench record"):
        record.read_all(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_the_commands_go_on_without_a_record_that_is_set_aside(call: Call, tmp_path: Path) -> None:
    results = tmp_path / "r"
    factories.write_all(results, factories.grid(["full", "lora"], seeds=2))
    put(results, set_at(BODIES["run"], "metrics.test.accuracy", 1.5))
    report = call("report", "r")
    assert report.code == 0
    assert "note: set aside" in report.err
    assert "x--1.json" in report.err
    assert "lora" in report.out
    checked = call("verify", "r", "--sample", "1")
    assert checked.code == 1
    assert "x--1.json" in checked.out


def test_a_run_whose_record_is_set_aside_is_not_done(tmp_path: Path) -> None:
    path = record.write(tmp_path, factories.run())
    body = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "checksum"}
    path.write_bytes(files.encode(set_at(body, "metrics.test.accuracy", 1.5)))
    found, _ = told(tmp_path)
    assert record.finished(found) == {}
