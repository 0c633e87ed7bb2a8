"""`verify`: what is true is found true, and what somebody changed is found and named."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import planning
import pytest
import verify_session
from commands import Call

from peftbench.errors import UserError
from peftbench.records import files, record
from peftbench.run import runner
from peftbench.verify.records import audit, differences, repeat, summary
from peftbench.verify.records.repeat import RepeatRequest, Verification


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of three runs, as this machine makes them."""
    specs = [verify_session.spec("full"), verify_session.spec("bitfit"), verify_session.spec("full", seed=1)]
    folder = tmp_path_factory.mktemp("made")
    session = {"device": "cpu", "journal": str(folder / "journal")}
    runner.run(
        lambda _: specs,
        folder,
        experiment="e",
        session="verify_session:Session",
        session_kwargs=session,
        threads=1,
    )
    return folder


def test_numbers_of_the_data_are_compared_and_remarks_are_not() -> None:
    recorded = {"data": {"doubled": {"<s>": 1}, "notes": ["2 rows left out"]}}
    repeated = {"data": {"doubled": {"<s>": 2}, "notes": ["two rows are left out"]}}
    assert [d.field for d in differences.compare(recorded, repeated)] == ["data.doubled.<s>"]
    assert differences.compare({}, repeated) == [], "an older record has none"


@pytest.fixture
def made(once: Path, tmp_path: Path) -> Path:
    """A copy of them to spoil."""
    return Path(shutil.copytree(once / "runs", tmp_path / "made" / "runs")).parent


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., Verification]:
    """Verify a directory with the session that needs no torch; further arguments are the session's."""

    def run(folder: Path, number: int | None = None, seed: int = 0, jobs: int = 1, **session: Any) -> Verification:
        more = {"journal": str(tmp_path / "journal"), **session}
        request = RepeatRequest(number, seed, jobs=jobs, session="verify_session:Session", more=more)
        return repeat.verify(folder, tmp_path / "repeats", request)

    return run


def forged(folder: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The directory's records with one of them changed, its checksum, ids and name made to fit again."""
    for i, r in enumerate(record.read_all(folder)):
        body = r.raw()
        if i == 0:
            change(body)
        record.write(out, body)
    return out


def setter(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value at a place such as curve.loss.2."""

    def change(body: Any) -> None:
        *parents, last = [int(p) if p.isdecimal() else p for p in path.split(".")]
        for key in parents:
            body = body[key]
        body[last] = value(body[last]) if callable(value) else value

    return change


def repeated(tmp_path: Path) -> Counter[str]:
    journal = tmp_path / "journal"
    return Counter(line.split()[1] for line in journal.read_text().splitlines()) if journal.exists() else Counter()


def test_records_of_this_machine_are_repeated_bit_for_bit(made: Path, check: Callable[..., Verification]) -> None:
    before = {p: p.read_bytes() for p in made.rglob("*.json")}
    found = check(made)
    assert [o.status for o in found.outcomes] == ["identical"] * 3
    assert found.code == 0
    assert "verified, bit for bit (3 identical)" in summary.as_text(found, made)
    assert {p: p.read_bytes() for p in made.rglob("*.json")} == before, "what is verified is never touched"


def test_a_record_edited_by_hand_is_named_and_the_others_are_verified(
    made: Path, check: Callable[..., Verification]
) -> None:
    path = sorted(made.rglob("*.json"))[0]
    path.write_text(path.read_text().replace('"peak_bytes":4964', '"peak_bytes":4963'))
    found = check(made)
    (finding,) = found.findings
    assert (finding.path, finding.field) == (path, "file")
    assert "changed after it was written" in finding.message
    assert (found.code, len(found.outcomes)) == (1, 2)
    assert path.name in summary.as_text(found, made)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a loss": (setter("curve.loss.2", lambda x: x + 1e-6), "curve.loss[2]"),
    "the last digit of a loss": (setter("curve.loss.5", lambda x: x * (1 + 2**-52)), "curve.loss[5]"),
    "a size": (setter("parameters.trainable", 15), "parameters.trainable"),
    "a validation score, twice": (
        lambda b: (setter("curve.validation.0.accuracy", 0.6)(b), setter("metrics.validation.accuracy", 0.6)(b)),  # type: ignore[func-returns-value, list-item]
        "curve.validation[0].accuracy",
    ),
    "the majority class": (setter("metrics.majority", 0.4), "metrics.majority"),
    "the peak and a part of it": (
        lambda b: (setter("memory.peak_bytes", 4900)(b), setter("memory.at_peak.adapter", 0)(b)),  # type: ignore[func-returns-value, list-item]
        "memory.peak_bytes",
    ),
    "two predictions that leave the score as it was": (lambda b: swap(b), "predictions.values[0]"),
}


def swap(body: dict[str, Any]) -> None:
    """One right answer made wrong, and one wrong one right."""
    values, labels = body["predictions"]["values"], body["predictions"]["labels"]
    right = [i for i, (v, y) in enumerate(zip(values, labels, strict=True)) if v == y]
    wrong = [i for i, (v, y) in enumerate(zip(values, labels, strict=True)) if v != y]
    for i in (right[0], wrong[0]):
        values[i] = 1 - values[i]


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_a_number_changed_under_a_new_checksum_differs_from_the_repeat(
    made: Path, tmp_path: Path, check: Callable[..., Verification], what: str
) -> None:
    change, field = CHANGES[what]
    found = check(forged(made, tmp_path / "forged", change))
    (wrong,) = [o for o in found.outcomes if o.status == "differs"]
    fields = [d.field for d in wrong.differences]
    assert field in fields or (field.startswith("predictions.values") and fields[0].startswith("predictions.values"))
    assert Counter(o.status for o in found.outcomes) == {"differs": 1, "identical": 2}
    assert found.code == 1
    printed = summary.as_text(found, tmp_path / "forged")
    assert wrong.record.path.name in printed
    assert f"{fields[0]}: " in printed


def nudged(by: float) -> Callable[[dict[str, Any]], None]:
    """The validation score, which stands twice, a little higher."""

    def change(body: dict[str, Any]) -> None:
        for place in ("curve.validation.0.accuracy", "metrics.validation.accuracy"):
            setter(place, lambda x: x + by)(body)

    return change


def test_the_last_digits_of_a_score_are_no_difference_and_the_text_says_that_they_are_not_equal(
    made: Path, tmp_path: Path, check: Callable[..., Verification]
) -> None:
    folder = forged(made, tmp_path / "nudged", nudged(2 * 2**-52))
    found = check(folder)
    assert ([o.status for o in found.outcomes], found.code) == (["identical"] * 3, 0)
    printed = summary.as_text(found, folder)
    assert (
        "verified, bit for bit but for the last digits of scores (at most 2 ulp apart; 16 allowed) (3 identical)"
        in printed
    )
    (row,) = [r for r in summary.as_dict(found)["repeats"] if r["differences"]]
    assert [d["within"] for d in row["differences"]] == [True, True]


def test_a_score_1e_9_away_is_a_difference(made: Path, tmp_path: Path, check: Callable[..., Verification]) -> None:
    found = check(forged(made, tmp_path / "nudged", nudged(1e-9)))
    assert Counter(o.status for o in found.outcomes) == {"differs": 1, "identical": 2}
    assert found.code == 1


SELF_CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a score": (setter("metrics.test.accuracy", 0.99), "metrics.test.accuracy"),
    "a prediction": (setter("predictions.values.3", lambda v: 1 - v), "metrics.test.accuracy"),
    "a label and the score": (lambda b: relabel(b), "predictions.ids, predictions.labels"),
    "the rate in the spec": (setter("spec.train.lr", 0.5), "spec_id"),
    "the peak": (setter("memory.peak_bytes", 1), "memory.peak_bytes"),
    "a step left out": (lambda b: b["curve"]["loss"].pop(), "curve.loss"),
    "a validation score": (setter("metrics.validation.accuracy", 0.6), "metrics.validation"),
    "which way is better": (setter("metrics.direction", "min"), "metrics.direction"),
    "an example left out": (lambda b: b["predictions"]["values"].pop(), "predictions"),
    "a primary metric that was not scored": (setter("metrics.primary", lambda _: "nope"), "metrics.primary"),
    "no test scores": (setter("metrics.test", lambda _: {}), "metrics.primary"),
}


def test_a_finished_run_without_predictions_is_found_and_the_other_records_are_still_checked(
    made: Path, tmp_path: Path
) -> None:
    (tmp_path / "r" / record.FOLDER).mkdir(parents=True)
    paths = sorted((made / record.FOLDER).glob("*.json"))
    for path in paths:
        body = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "checksum"}
        if path == paths[0]:
            del body["predictions"]
        (tmp_path / "r" / record.FOLDER / path.name).write_bytes(files.encode(body))
    records, findings = audit.audit(tmp_path / "r")
    assert len(records) == len(paths)
    assert [(f.path.name, f.field) for f in findings] == [(paths[0].name, "predictions")]


def relabel(body: dict[str, Any]) -> None:
    """A label changed with the score that follows from it: only another record of the task tells."""
    told = body["predictions"]
    told["labels"][0] = 1 - told["labels"][0]
    pairs = list(zip(told["values"], told["labels"], strict=True))
    body["metrics"]["test"]["accuracy"] = sum(v == y for v, y in pairs) / len(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("what", SELF_CONTRADICTIONS)
def test_a_record_that_contradicts_itself_is_found_without_training_it(
    made: Path, tmp_path: Path, check: Callable[..., Verification], what: str
) -> None:
    change, place = SELF_CONTRADICTIONS[what]
    found = check(forged(made, tmp_path / "forged", change))
    assert {f.field for f in found.findings} == {place}
    (path,) = {f.path for f in found.findings}
    assert (found.code, len(found.outcomes)) == (1, 2)
    assert record.read(path, consistent=False).spec_id not in repeated(tmp_path)


def test_a_renamed_file_and_a_foreign_environment_id_are_found(made: Path, check: Callable[..., Verification]) -> None:
    path = sorted(made.rglob("*.json"))[0]
    path.rename(path.with_name("lora--best--s0--1.json"))
    assert [f.field for f in check(made).findings] == ["file name"]


def elsewhere(body: dict[str, Any]) -> None:
    body["env"]["cpu"]["capability"] = "NONE"


def moved(folder: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """All records of the directory with the same change."""
    for r in record.read_all(folder):
        body = r.raw()
        change(body)
        record.write(out, body)
    return out


def test_on_another_machine_small_differences_are_within_the_tolerance_and_the_machine_is_named(
    made: Path, tmp_path: Path, check: Callable[..., Verification]
) -> None:
    folder = moved(made, tmp_path / "moved", elsewhere)
    found = check(folder, shift=1e-6, flip=1)
    assert {o.status for o in found.outcomes} == {"within tolerance"}
    assert found.code == 0
    printed = summary.as_text(found, folder)
    assert "not the same here: cpu.capability: 'NONE' recorded" in printed
    assert "within the tolerance for another machine or version" in printed


@pytest.mark.parametrize("session", [{"shift": 0.2}, {"flip": 15}])
def test_on_another_machine_large_differences_differ(
    made: Path, tmp_path: Path, check: Callable[..., Verification], session: Mapping[str, Any]
) -> None:
    found = check(moved(made, tmp_path / "moved", elsewhere), **session)
    assert {o.status for o in found.outcomes} == {"differs"}
    assert found.code == 1


def test_a_size_has_no_tolerance_on_any_machine(made: Path, tmp_path: Path, check: Callable[..., Verification]) -> None:
    folder = moved(made, tmp_path / "moved", elsewhere)
    found = check(forged(folder, tmp_path / "forged", setter("parameters.trainable", 17)))
    assert Counter(o.status for o in found.outcomes) == {"differs": 1, "identical": 2}


def test_other_code_is_named_but_excuses_no_difference(
    made: Path, tmp_path: Path, check: Callable[..., Verification]
) -> None:
    def older(body: dict[str, Any]) -> None:
        body["env"]["code"]["source"] = "0" * 16

    folder = moved(made, tmp_path / "older", older)
    assert check(folder).code == 0
    found = check(folder, shift=1e-9)
    assert {o.status for o in found.outcomes} == {"differs"}
    assert "not the same here: code.source: '0000000000000000' recorded" in summary.as_text(found, folder)


def without_blas(body: dict[str, Any]) -> None:
    """As records were before they named the BLAS."""
    del body["env"]["blas"], body["env"]["packages"]["scipy"], body["env"]["packages"]["threadpoolctl"]


def test_an_older_record_that_names_no_blas_is_no_record_of_another_machine(
    made: Path, tmp_path: Path, check: Callable[..., Verification]
) -> None:
    folder = moved(made, tmp_path / "older", without_blas)
    found = check(folder)
    assert ([o.status for o in found.outcomes], found.code) == (["identical"] * 3, 0)
    printed = summary.as_text(found, folder)
    assert f"not recorded, so not compared: packages.scipy (here {version('scipy')}), packages.threadpoolctl" in printed
    assert "not the same here" not in printed
    assert summary.as_dict(found)["repeats"][0]["not_recorded"]["packages.scipy"] == version("scipy")
    assert {o.status for o in check(folder, shift=1e-9).outcomes} == {"differs"}, "what is not recorded excuses nothing"


def test_another_kernel_of_the_blas_is_named(made: Path, tmp_path: Path, check: Callable[..., Verification]) -> None:
    folder = moved(made, tmp_path / "moved", setter("env.blas", {"numpy": "OpenBLAS 0.3.30 Prescott"}))
    found = check(folder, shift=1e-6)
    assert {o.status for o in found.outcomes} == {"within tolerance"}
    assert "not the same here: blas.numpy: 'OpenBLAS 0.3.30 Prescott' recorded" in summary.as_text(found, folder)


def test_a_record_of_an_older_version_is_said_to_be_one_and_not_repeated(
    made: Path, tmp_path: Path, check: Callable[..., Verification]
) -> None:
    old = verify_session.spec("full", seed=7)
    old = replace(old, method=replace(old.method, version=old.method.version - 1))
    body = {**record.read_all(made)[0].raw(), **verify_session.body(old)}
    record.write(made, {**body, "spec": json.loads(json.dumps(spec_dict(old))), "spec_id": old.id, "slug": old.slug})
    found = check(made)
    assert (found.code, found.repeatable, len(found.outcomes)) == (0, 3, 3)
    assert list(found.other_version.values()) == [1]
    assert old.id not in repeated(tmp_path)
    assert "other version: 1 of method full" in summary.as_text(found, made)


def spec_dict(asked: Any) -> dict[str, Any]:
    from peftbench.records.spec import as_dict

    return as_dict(asked)


def test_only_records_of_older_versions_verify_nothing(made: Path, tmp_path: Path, check: Callable) -> None:
    out = tmp_path / "old"
    for r in record.read_all(made):
        asked = verify_session.spec(r.spec.method.name, seed=r.spec.seed)
        asked = replace(asked, method=replace(asked.method, version=asked.method.version - 1))
        changed = {**verify_session.body(asked), "spec": spec_dict(asked), "spec_id": asked.id, "slug": asked.slug}
        record.write(out, {**r.raw(), **changed})
    found = check(out)
    assert (found.code, found.outcomes) == (1, [])
    assert "NOT verified: there was nothing that could be repeated" in summary.as_text(found, out)


def test_data_that_are_not_the_same_here_are_named(made: Path, tmp_path: Path, check: Callable) -> None:
    asked = verify_session.spec("full", seed=3)
    asked = replace(asked, task=replace(asked.task, fingerprint="0" * 64))
    body = {**record.read_all(made)[0].raw(), **verify_session.body(asked), "spec": spec_dict(asked)}
    record.write(made, {**body, "spec_id": asked.id, "slug": asked.slug})
    found = check(made)
    (other,) = [o for o in found.outcomes if o.status == "not repeated"]
    assert other.message.startswith("data: synthetic/classification is 000000000000 there")
    assert found.code == 1
    done = len(found.outcomes) - 1
    assert f"repeated {done} of {done + 1} runs that this version can repeat" in summary.as_text(found, made)


def test_a_repeat_that_fails_is_a_difference(made: Path, check: Callable[..., Verification]) -> None:
    found = check(made, number=1, fail=True)
    assert [o.status for o in found.outcomes] == ["differs"]
    assert "the repeat ended as error: ZeroDivisionError: a bug" in summary.as_text(found, made)


def test_a_sample_takes_every_method_and_task_before_any_twice_and_does_not_depend_on_order(
    tmp_path: Path,
) -> None:
    asked = [
        verify_session.spec(method, task, seed)
        for method in ("full", "bitfit", "adapter")
        for task in ("synthetic/classification", "synthetic/regression", "synthetic/generation")
        for seed in range(2)
    ]
    records = [planning.recorded(s) for s in asked]
    for seed in range(5):
        chosen = repeat.sample(records, 3, seed)
        assert len({r.spec.method.name for r in chosen}) == 3
        assert len({r.spec.task.name for r in chosen}) == 3
        random.Random(seed).shuffle(records)
        assert repeat.sample(records, 3, seed) == chosen
    assert len({tuple(r.path for r in repeat.sample(records, 3, seed)) for seed in range(5)}) > 1
    assert len(repeat.sample(records, None, 0)) == len(repeat.sample(records, 99, 0)) == 18


def test_a_run_is_repeated_with_the_threads_of_its_record(made: Path, tmp_path: Path, check: Callable) -> None:
    def wider(body: dict[str, Any]) -> None:
        body["env"]["threads"] = 3

    folder = forged(made, tmp_path / "wide", wider)
    found = check(folder, jobs=2)
    assert found.code == 0
    threads = Counter(line.split()[0] for line in (tmp_path / "journal").read_text().splitlines())
    assert threads == {"1": 2, "3": 1}


def test_what_stood_in_place_of_the_files_values_is_no_result(made: Path, tmp_path: Path, check: Callable) -> None:
    folder = forged(made, tmp_path / "set", lambda body: body.update(overrides=["budget.steps=5"]))
    assert [o.status for o in check(folder).outcomes] == ["identical"] * 3


def test_what_an_experiment_asks_of_its_comparison_is_no_result(made: Path, tmp_path: Path, check: Callable) -> None:
    asked = {"margin": 0.02, "looks": [3, 5], "claims": [{"method": "lora", "against": "full", "relation": "equal"}]}
    folder = forged(made, tmp_path / "asked", lambda body: body.update(design=asked))
    assert [o.status for o in check(folder).outcomes] == ["identical"] * 3


def test_stale_repeats_in_the_directory_do_not_count(made: Path, check: Callable[..., Verification]) -> None:
    assert check(made).code == 0
    assert {o.status for o in check(made, shift=0.5).outcomes} == {"differs"}


def test_nothing_to_verify_is_the_users_mistake(tmp_path: Path, made: Path, check: Callable[..., Verification]) -> None:
    with pytest.raises(UserError, match="no records here"):
        check(tmp_path / "nowhere")
    with pytest.raises(UserError, match="the repeats need a directory of their own"):
        repeat.verify(made, made, RepeatRequest())


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_real_run_is_verified_and_a_forged_one_is_not(call: Call, tiny: str, tmp_path: Path) -> None:
    assert call("run", tiny, "--set", "profile=false", "--results", "r", "-q").code == 0
    done = call("verify", "r", "--keep", "kept", "-q")
    assert done.code == 0, done.out
    assert "verified, bit for bit (4 identical)" in done.out
    assert len(list((tmp_path / "kept").rglob("*.json"))) == 4
    forged(tmp_path / "r", tmp_path / "f", setter("curve.loss.0", lambda x: x + 1e-4))
    done = call("verify", "f", "--json")
    assert done.code == 1
    told = json.loads(done.out)
    (wrong,) = [r for r in told["repeats"] if r["status"] != "identical"]
    assert [d["field"] for d in wrong["differences"]] == ["curve.loss[0]"]
    assert call("verify", "nowhere").code == 2


def test_committed_records_of_generation_agree_with_themselves() -> None:
    results = Path(__file__).parents[2] / "results" / "reference" / "nlg_small"
    records, findings = audit.audit(results)
    assert len(records) > 5
    assert not findings
