"""Tasks: official files read rightly, copies kept apart, the same data everywhere, clear words where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbench import tasks
from peftbench.backbones import hub
from peftbench.errors import UserError
from peftbench.tasks import glue_hub, splits
from peftbench.tasks.dataset import example

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
SYNTHETIC = {
    "synthetic/classification": "f09c8a34e1ea56a0",
    "synthetic/regression": "26b486dbf12e45ed",
    "synthetic/pair": "3ec0a8a82f5d1669",
    "synthetic/generation": "50883c09508342d4",
}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(names: list[str]) -> list[Path]:
        raise hub.HubError("no network", "Connect it")

    monkeypatch.setattr(glue_hub, "_files", files)


def _tsv(path: Path, rows: list[str], start: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(start + "\n".join(rows) + "\n", encoding="utf-8")


def test_tasks_import_nothing_heavy() -> None:
    code = (
        "import sys; from peftbench import tasks; tasks.open_task('synthetic/pair');"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown task 'glue/sst-2'; did you mean 'glue/sst2'"):
        tasks.open_task("glue/sst-2")


@pytest.mark.parametrize("options", [{"limit_train": 0}, {"limit_test": "5"}, {"limit_train": True}])
def test_a_limit_that_is_no_positive_whole_number_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"limit_\w+ must be a whole number from 1"):
        tasks.open_task("synthetic/pair", options)


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'limit_train'"):
        tasks.open_task("synthetic/pair", {"limit_trian": 5})


@pytest.mark.parametrize("name", sorted(SYNTHETIC))
def test_synthetic_tasks_are_the_same_on_every_machine(name: str) -> None:
    d = tasks.open_task(name)
    assert d.fingerprint[:16] == SYNTHETIC[name]
    texts = [e.text + str(e.pair) for e in (*d.train, *d.validation, *d.test)]
    assert len(set(texts)) == len(texts)


def test_limits_take_nested_subsets_in_order_and_change_the_fingerprint() -> None:
    whole = tasks.open_task("synthetic/classification")
    eight = tasks.open_task("synthetic/classification", {"limit_train": 8, "limit_test": 4})
    four = tasks.open_task("synthetic/classification", {"limit_train": 4})
    assert (len(eight.train), len(eight.test), len(four.test)) == (8, 4, 64)
    assert set(four.train) < set(eight.train) < set(whole.train)
    assert [e for e in whole.train if e in eight.train] == list(eight.train)
    assert len({whole.fingerprint, eight.fingerprint, four.fingerprint}) == 3


def test_facts_are_plain_json_and_name_what_planning_needs() -> None:
    facts = tasks.facts(tasks.open_task("synthetic/pair"))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["rows"] == {"train": 256, "validation": 48, "test": 64}
    assert (facts["kind"], facts["labels"], facts["metric"]) == ("classification", ["different", "same"], "accuracy")
    assert 6 < facts["mean_words"] < 12


def test_ids_are_unique_within_a_split_even_for_copies(tmp_path: Path, no_hub: None) -> None:
    _tsv(tmp_path / "CoLA" / "train.tsv", [f"s\t{i % 2}\t\tsentence {i}" for i in range(40)])
    _tsv(tmp_path / "CoLA" / "dev.tsv", ["s\t1\t\tsame", "s\t1\t\tsame", "s\t0\t\tother"])
    ids = [e.id for e in tasks.open_task("glue/cola", data_dir=tmp_path).test]
    assert len(set(ids)) == 3


def test_cola_is_read_without_a_header_and_rows_copied_from_test_leave_train(tmp_path: Path, no_hub: None) -> None:
    _tsv(tmp_path / "CoLA" / "train.tsv", [f"s\t{i % 2}\t*\tsentence {i}" for i in range(40)])
    _tsv(tmp_path / "CoLA" / "dev.tsv", ["s\t1\t\tSentence  3", "s\t0\t\tnew"])
    d = tasks.open_task("glue/cola", data_dir=tmp_path)
    assert len(d.train) + len(d.validation) == 39
    assert [(e.text, e.label) for e in d.test] == [("Sentence  3", 1), ("new", 0)]
    assert "1 rows of train left out: copies of test rows" in d.notes


def test_mrpc_is_read_with_a_byte_order_mark_and_unbalanced_quotes(tmp_path: Path, no_hub: None) -> None:
    head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = [f'{i % 2}\t1\t2\t" The {i} said\tHe said " no\u2028 {i}' for i in range(30)]
    for name in ("train.tsv", "dev.tsv"):
        _tsv(tmp_path / "glue" / "MRPC" / name, [head, *(r.replace("The", name) for r in rows)])
    d = tasks.open_task("glue/mrpc", data_dir=tmp_path)  # the parent of the GLUE folder
    assert d.test[0].text == '" dev.tsv 0 said'
    assert d.test[0].pair == 'He said " no\u2028 0'
    assert len(d.test) == 30


def test_the_damaged_rows_of_qqp_are_left_out_and_counted(tmp_path: Path, no_hub: None) -> None:
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    for name in ("train.tsv", "dev.tsv"):
        rows = [f"{i}\t1\t2\twhat is {name} {i}\twho is {i}\t{i % 2}" for i in range(20)]
        _tsv(tmp_path / "QQP" / name, [head, *rows, "77\t1\t2\tcut off"])
    d = tasks.open_task("glue/qqp", data_dir=tmp_path)
    assert len(d.test) == 20
    assert "2 damaged rows of the official files left out" in d.notes


def test_mnli_is_tested_on_matched_or_mismatched_genres_after_the_same_training(tmp_path: Path, no_hub: None) -> None:
    classes = ("entailment", "neutral", "contradiction")
    for name in ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"):
        rows = [f"{i}\tpremise {name} {i}\thypothesis\t{classes[i % 3]}" for i in range(30)]
        _tsv(tmp_path / "MNLI" / name, ["index\tsentence1\tsentence2\tgold_label", *rows])
    matched = tasks.open_task("glue/mnli", data_dir=tmp_path)
    mismatched = tasks.open_task("glue/mnli_mismatched", data_dir=tmp_path)
    assert [e.label for e in matched.test[:3]] == [0, 1, 2]
    assert matched.test[0].text == "premise dev_matched.tsv 0"
    assert [e.text for e in mismatched.test] == [f"premise dev_mismatched.tsv {i}" for i in range(30)]
    assert (mismatched.train, mismatched.validation) == (matched.train, matched.validation)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("3\tonly two", "line 3: 2 fields where 4 are needed"),
        ("3\ta\tb\tmaybe", "line 3: label 'maybe' is outside its set: entailment, not_entailment"),
    ],
)
def test_a_bad_glue_row_is_named_with_file_and_line(tmp_path: Path, no_hub: None, row: str, message: str) -> None:
    _tsv(tmp_path / "RTE" / "train.tsv", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment", row])
    _tsv(tmp_path / "RTE" / "dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment"])
    with pytest.raises(UserError, match=message) as caught:
        tasks.open_task("glue/rte", data_dir=tmp_path)
    assert str(tmp_path / "RTE" / "train.tsv") in str(caught.value)


def test_a_missing_glue_file_is_named(tmp_path: Path, no_hub: None) -> None:
    (tmp_path / "RTE").mkdir()
    with pytest.raises(UserError, match=r"RTE.train\.tsv: cannot be read .*check its path"):
        tasks.open_task("glue/rte", data_dir=tmp_path)


def test_without_directory_and_hub_one_error_names_both_remedies(tmp_path: Path, no_hub: None) -> None:
    with pytest.raises(tasks.TaskUnavailable, match=r"no data directory.*hub: no network.*--data-dir"):
        tasks.open_task("glue/rte")
    with pytest.raises(tasks.TaskUnavailable, match="has no RTE in it"):
        tasks.open_task("glue/rte", data_dir=tmp_path)
    with pytest.raises(tasks.TaskUnavailable, match="nowhere does not exist"):
        tasks.open_task("glue/rte", data_dir=tmp_path / "nowhere")


def test_a_hub_that_never_answers_is_given_up_within_the_deadline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    release = threading.Event()
    monkeypatch.setattr(hub.Repository, "cached", lambda *_: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: release.wait(30))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(hub, "QUIET_SECONDS", 0.1)
    start = time.monotonic()
    with pytest.raises(tasks.TaskUnavailable, match=r"no answer from http.* within 1 s.*HF_HUB_ETAG_TIMEOUT"):
        tasks.open_task("glue/rte")
    release.set()
    assert time.monotonic() - start < 10
    assert "waiting for http" in caplog.text


def test_the_hubs_files_give_the_same_task_as_the_official_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = [(f"premise {i}", f"hypothesis {i}", i % 2) for i in range(30)]
    files = {}
    for split, hub_split in (("train", "train"), ("dev", "validation")):
        names = ["entailment", "not_entailment"]
        lines = [f"{i}\t{split} {a} \t{b}\t{names[c]}" for i, (a, b, c) in enumerate(rows)]
        _tsv(tmp_path / "RTE" / f"{split}.tsv", ["index\tsentence1\tsentence2\tlabel", *lines])
        table = {"sentence1": [f"{split} {a}" for a, _, _ in rows], "sentence2": [b for _, b, _ in rows]}
        files[hub_split] = tmp_path / f"{hub_split}.parquet"
        made = datasets.Dataset.from_dict({**table, "label": [c for _, _, c in rows], "idx": list(range(30))})
        made.to_parquet(str(files[hub_split]))
    asked: list[str] = []
    monkeypatch.setattr(glue_hub, "_files", lambda names: asked.extend(names) or list(files.values()))
    from_hub = tasks.open_task("glue/rte")
    assert asked == ["rte/train-00000-of-00001.parquet", "rte/validation-00000-of-00001.parquet"]
    assert from_hub.fingerprint == tasks.open_task("glue/rte", data_dir=tmp_path).fingerprint


def test_e2e_without_a_train_file_splits_dev_by_meaning(tmp_path: Path) -> None:
    dev = [f'"name[N{i}], food[F{i}]","N{i} serves, F{i} no. {j}"' for i in range(40) for j in range(3)]
    test = [f'"name[T{i}]","T{i} no. {j}"' for i in range(5) for j in range(i + 1)]
    _tsv(tmp_path / "e2e_nlg" / "dev.csv", ["mr,ref", *dev])
    _tsv(tmp_path / "e2e_nlg" / "test.csv", ['"mr","ref"', *test])
    d = tasks.open_task("e2e_nlg", data_dir=tmp_path)
    assert [len(e.references) for e in d.test] == [1, 2, 3, 4, 5]
    assert {len(e.references) for e in d.validation} == {3}
    assert {len(e.references) for e in d.train} == {1}
    assert len(d.train) + 3 * len(d.validation) == 120
    assert not {e.text for e in d.train} & {e.text for e in d.validation}
    assert d.test[0].text.startswith("name[T0]")


def test_e2e_with_a_train_file_keeps_the_official_splits(tmp_path: Path) -> None:
    for name, rows in {"trainset.csv": 6, "devset.csv": 3, "testset_w_refs.csv": 2}.items():
        _tsv(tmp_path / name, ["mr,ref", *(f"{name} {i},answer {i}" for i in range(rows))])
    d = tasks.open_task("e2e_nlg", data_dir=tmp_path)
    assert (len(d.train), len(d.validation), len(d.test)) == (6, 3, 2)


def test_e2e_without_its_files_is_unavailable_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(tasks.TaskUnavailable, match=r"has no E2E files.*--data-dir.*stand_in"):
        tasks.open_task("e2e_nlg", data_dir=tmp_path)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=2, max_size=80), st.text(max_size=3))
def test_carving_splits_whole_groups_and_loses_no_row(content: list[tuple[int, int]], salt: str) -> None:
    rows = [example(f"Text {text}", f"pair {i}", label) for i, (text, label) in enumerate(content)]
    rest, carved = splits.carve(rows, salt)
    assert Counter(e.id for e in rest) + Counter(e.id for e in carved) == Counter(e.id for e in rows)
    assert not {splits.by_text(e) for e in rest} & {splits.by_text(e) for e in carved}
    if len({text for text, _ in content}) > 1:
        assert rest
        assert carved


def test_carving_keeps_the_classes_shares_and_does_not_depend_on_the_order() -> None:
    rows = [example(f"text {i}", label=int(i % 10 == 0)) for i in range(1000)]
    _, carved = splits.carve(rows, "salt")
    assert Counter(e.label for e in carved) == {0: 90, 1: 10}
    assert {e.id for e in splits.carve(rows[::-1], "salt")[1]} == {e.id for e in carved}
    assert {e.id for e in splits.carve(rows, "other")[1]} != {e.id for e in carved}


def test_carving_regression_covers_the_whole_range_of_labels() -> None:
    rows = [example(f"text {i}", label=i / 1000) for i in range(1000)]
    carved = [e.label or 0.0 for e in splits.carve(rows, "salt")[1]]
    assert Counter(int(10 * v) for v in carved) == dict.fromkeys(range(10), 10)


@pytest.mark.slow
@pytest.mark.shared_data
@shared_data
@pytest.mark.parametrize(
    ("name", "train", "test", "dropped"),
    [
        ("cola", 8551, 1043, 16),
        ("mrpc", 3667, 408, 0),
        ("rte", 2490, 277, 0),
        ("sst2", 67349, 872, 0),
        ("stsb", 5749, 1500, 6),
        ("wnli", 635, 71, 0),
    ],
)
def test_the_official_glue_files_are_read_whole(name: str, train: int, test: int, dropped: int) -> None:
    d = tasks.open_task(f"glue/{name}", data_dir=SHARED / "glue")
    assert len(d.train) + len(d.validation) == train - dropped
    assert len(d.test) == test
    assert not {e.text for e in d.train} & {e.text for e in d.validation}
    assert all(e.text and e.pair != "" for e in (*d.train, *d.test))


@pytest.mark.shared_data
@shared_data
def test_the_official_e2e_files_are_read_whole() -> None:
    d = tasks.open_task("e2e_nlg", data_dir=SHARED)
    assert len(d.train) + sum(len(e.references) for e in d.validation) == 4672
    assert (len(d.test), sum(len(e.references) for e in d.test)) == (630, 4693)
