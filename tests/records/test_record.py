"""Records: whole or absent, never overwritten, never trusted when changed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import factories
import msgspec
import pytest
from msgspec import to_builtins

from peftbench.errors import UserError
from peftbench.records import files, record

ROOT = Path(__file__).resolve().parents[2]
PATHS = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])}


def test_a_written_record_reads_back_with_its_predictions(tmp_path):
    body = factories.run("lora", 1)
    path = record.write(tmp_path, body)
    assert path.parent == tmp_path / "runs"
    assert path.name == f"{body['slug']}--{body['spec_id']}--{body['env_id'][:8]}--1.json"
    back = record.read(path)
    assert (back.kind, back.attempt, back.status) == ("run", 1, "finished")
    assert to_builtins(back.curve) == body["curve"]
    assert not hasattr(back.body, "predictions")
    assert to_builtins(back.predictions) == body["predictions"]


def test_a_second_attempt_gets_the_next_number_and_the_first_stays(tmp_path):
    first = record.write(tmp_path, factories.run(score=0.5))
    before = first.read_bytes()
    second = record.write(tmp_path, factories.run(score=0.9))
    assert second.name.endswith("--2.json")
    assert record.read(second).attempt == 2
    assert first.read_bytes() == before


def test_writers_racing_for_a_number_all_get_their_own(tmp_path):
    paths: list[Path] = []
    start = threading.Barrier(8)

    def one() -> None:
        start.wait()
        paths.extend(record.write(tmp_path, factories.run()) for _ in range(5))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(r.attempt for r in record.read_all(tmp_path)) == list(range(1, 41))
    assert len(set(paths)) == 40


def test_a_taken_number_is_never_overwritten(tmp_path, monkeypatch):
    first = record.write(tmp_path, factories.run(score=0.5))
    before = first.read_bytes()
    monkeypatch.setattr(files, "attempt_in", lambda name, stem: 0)  # as if the directory had been listed before `first`
    assert record.write(tmp_path, factories.run(score=0.9)).name.endswith("--2.json")
    assert first.read_bytes() == before


def test_a_truncated_record_is_named_with_the_fix(tmp_path):
    path = record.write(tmp_path, factories.run())
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match="half-written") as e:
        record.read_all(tmp_path)
    assert str(path) in str(e.value)
    assert "delete it and run" in str(e.value)


@pytest.mark.parametrize("length", [0, 1, 40, -1, -40])
def test_no_prefix_of_a_record_passes_for_one(tmp_path, length):
    path = record.write(tmp_path, factories.run())
    path.write_bytes(path.read_bytes()[:length].rstrip(b"\n}"))
    with pytest.raises(UserError):
        record.read_all(tmp_path)


@pytest.mark.parametrize("change", [("0.75", "0.95"), ('"finished"', '"diverged"'), ('"values":[0,1', '"values":[1,1')])
def test_a_record_edited_by_hand_is_refused(tmp_path, change):
    path = record.write(tmp_path, factories.run(score=0.75))
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(UserError, match="changed after it was written") as e:
        record.read_all(tmp_path)
    assert path.name in str(e.value)


def test_a_record_without_its_checksum_is_refused(tmp_path):
    path = record.write(tmp_path, factories.run())
    body = json.loads(path.read_text())
    del body["checksum"]
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match="changed after"):
        record.read_all(tmp_path)


def test_a_record_that_was_only_laid_out_anew_still_reads(tmp_path):
    path = record.write(tmp_path, factories.run())
    original = record.read(path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    again = record.read(path)
    assert again.body == original.body
    assert again.predictions.labels


@pytest.mark.parametrize("content", ['{"schema": 99, "kind": "run"}', '{"hello": 1}', "[]", "7"])
def test_a_foreign_file_is_named_with_the_fix(tmp_path, content):
    path = record.write(tmp_path, factories.run()).with_name("other.json")
    path.write_text(content)
    with pytest.raises(UserError, match=r"other\.json.*(format is 99|not a peftbench record).*move it out"):
        record.read_all(tmp_path)


def test_binary_rubbish_is_named(tmp_path):
    path = record.write(tmp_path, factories.run())
    path.write_bytes(b"\xff\xfe\x00rubbish")
    with pytest.raises(UserError, match="half-written or damaged"):
        record.read_all(tmp_path)


def test_all_bad_files_are_named_at_once(tmp_path):
    paths = factories.write_all(tmp_path, factories.grid(["full", "lora", "ia3", "dora"], seeds=2))
    for path in paths[:7]:
        path.write_text("{")
    with pytest.raises(UserError, match="2 more such files") as e:
        record.read_all(tmp_path)
    assert str(e.value).count("half-written") == 5


def test_leftover_temporary_files_are_ignored(tmp_path):
    path = record.write(tmp_path, factories.run())
    (path.parent / ".123-abc.tmp").write_text('{"half')
    (path.parent / ".hidden.json").write_text('{"half')
    (path.parent / "notes.txt").write_text("mine")
    assert len(record.read_all(tmp_path)) == 1


def test_a_directory_without_records_reads_as_empty(tmp_path):
    assert record.read_all(tmp_path / "none yet") == []


@pytest.mark.parametrize("fails", ["fsync", "link"])
def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path, monkeypatch, fails):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(UserError, match=r"No space left.*Free some space") as e:
        record.write(tmp_path, factories.run())
    assert str(tmp_path / "runs") in str(e.value)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_while_writing_leaves_nothing(tmp_path, monkeypatch):
    real = open

    def full(path, mode="r", *args, **options):
        return real("/dev/full", "wb") if mode == "xb" else real(path, mode, *args, **options)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(UserError, match="No space left"):
        record.write(tmp_path, factories.run())
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_file_in_the_way_of_the_directory_is_explained(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="in the way"):
        record.write(tmp_path, factories.run())


def test_a_crash_between_writing_and_linking_leaves_no_record(tmp_path):
    code = (
        "import os, sys\nfrom peftbench.records import record\nimport factories\n"
        "os.link = lambda *a: os._exit(9)\nrecord.write(sys.argv[1], factories.run())"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=PATHS).returncode == 9
    assert [p.suffix for p in (tmp_path / "runs").iterdir()] == [".tmp"]
    assert record.read_all(tmp_path) == []
    assert record.write(tmp_path, factories.run()).name.endswith("--1.json")


def test_the_first_finished_attempt_counts_not_the_best(tmp_path):
    for score, status in [(0.1, "killed"), (0.6, "finished"), (0.9, "finished"), (0.2, "diverged")]:
        record.write(tmp_path, factories.run(score=score, status=status))
    (counts,) = record.latest(record.read_all(tmp_path)).values()
    assert (counts.attempt, counts.metrics.test["accuracy"]) == (2, 0.6)
    assert set(record.finished(record.read_all(tmp_path))) == {counts.spec_id}


def test_without_a_finished_attempt_the_last_failure_counts(tmp_path):
    for status in ("killed", "diverged"):
        record.write(tmp_path, factories.run(status=status))
    (counts,) = record.latest(record.read_all(tmp_path)).values()
    assert counts.status == "diverged"
    assert record.finished(record.read_all(tmp_path)) == {}


@pytest.mark.parametrize("threads", [1, 2], ids=["the same environment", "another environment"])
def test_a_clock_that_is_set_back_changes_neither_which_attempt_counts_nor_which_is_last(tmp_path, threads):
    times = ["2026-05-02T10:00:00.000+00:00", "2026-05-01T10:00:00.000+00:00", "2026-04-01T10:00:00.000+00:00"]
    for number, (started, status) in enumerate(zip(times, ["diverged", "finished", "finished"], strict=True)):
        env = {**factories.ENV, "threads": threads if number else 1}
        record.write(tmp_path, {**factories.run(status=status, env=env), "started": started, "ended": started})
    records = record.read_all(tmp_path)
    assert [r.attempt for r in sorted(records, key=lambda r: r.order)] == [1, 2, 3]
    assert [r.body.started for r in record.latest(records).values()] == times[1:2]
    assert [r.body.started for r in record.newest(records).values()] == times[2:]


def test_a_number_that_is_not_finite_is_stored_as_null(tmp_path):
    body = factories.run(status="diverged", reason="the loss became NaN at step 3")
    body["curve"]["loss"] = [1.0, float("inf"), float("nan")]
    assert record.read(record.write(tmp_path, body)).curve.loss == [1.0, None, None]


def test_a_path_that_is_no_utf8_in_a_reason_is_stored_readably(tmp_path):
    reason = os.fsdecode(b"/data/caf\xe9.csv: no such file")
    body = factories.run(status="error", reason=reason)
    assert record.read(record.write(tmp_path, body)).body.reason == "/data/caf?.csv: no such file"


@pytest.mark.parametrize(
    "change",
    [{"status": "fine"}, {"kind": "walk"}, {"spec": None}, {"slug": 3}, {"metrics": None}, {"predictions": None}],
)
def test_a_body_that_is_no_record_is_not_written(tmp_path, change):
    with pytest.raises(ValueError, match="not a record"):
        record.write(tmp_path, {**factories.run(), **change})
    assert not (tmp_path / "runs").exists()


def test_the_environment_id_follows_the_facts(tmp_path):
    other = {**factories.ENV, "threads": 2}
    one, two = (record.read(record.write(tmp_path, factories.run(env=env))) for env in (factories.ENV, other))
    assert one.env_id == record.env_id(factories.ENV) != two.env_id
    assert two.attempt == 2  # attempts at a spec are counted over all environments


def test_a_long_or_odd_label_still_makes_a_file_name(tmp_path):
    body = {**factories.run(), "slug": "ré/../" + "long" * 100}
    path = record.write(tmp_path, body)
    assert path.parent == tmp_path / "runs"
    assert len(path.name.encode()) < 256
    assert record.write(tmp_path, body).name.endswith("--2.json")


def test_reading_parses_no_predictions_until_somebody_asks(tmp_path, monkeypatch):
    factories.write_all(tmp_path, factories.grid(["full", "lora"]))
    parsed = []
    decode = msgspec.json.decode
    monkeypatch.setattr(msgspec.json, "decode", lambda text: parsed.append(text) or decode(text))
    records = record.read_all(tmp_path)
    assert len(parsed) == len(records) == 4
    assert not any(b'"predictions"' in text for text in parsed)
    assert records[0].predictions.labels
    assert b'"predictions"' in parsed[-1]


@pytest.mark.slow
def test_five_thousand_records_are_read_in_seconds(tmp_path):
    source = record.write(tmp_path, factories.run(examples=1000, steps=200))
    for i in range(2, 5001):
        source.with_name(f"copy{i}.json").write_bytes(source.read_bytes())
    start = time.perf_counter()
    assert len(record.read_all(tmp_path)) == 5000
    assert time.perf_counter() - start < 10


def test_records_import_neither_torch_nor_pandas():
    code = (
        "import sys, peftbench.records.record; print(sorted({'torch', 'pandas', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], env=PATHS, text=True).strip() == "[]"
