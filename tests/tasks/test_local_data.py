"""A user's own files: every mistake is one message with the place and the fix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from peftbench import tasks
from peftbench.errors import UserError
from peftbench.tasks import local


def _csv(path: Path, rows: list[str], header: str = "body,stars") -> str:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def _good(path: Path, count: int = 60) -> str:
    return _csv(path, [f'"text, number {i}",{"good" if i % 3 else "bad"}' for i in range(count)])


def _open(train: str, **options: Any) -> tasks.Dataset:
    return tasks.open_task("local", {"train": train, "text": "body", "label": "stars", **options})


def test_missing_splits_are_carved_and_the_labels_read_from_train(tmp_path: Path) -> None:
    d = _open(_good(tmp_path / "reviews.csv"))
    assert (d.name, d.kind, d.labels, d.metric) == ("local/reviews", "classification", ("bad", "good"), "accuracy")
    assert (len(d.train), len(d.validation), len(d.test)) == (49, 5, 6)
    assert {(e.text, e.label) for e in d.train} < {(f"text, number {i}", int(i % 3 > 0)) for i in range(60)}
    assert d.notes == ("test: 6 rows carved from train", "validation: 5 rows carved from train")


def test_the_name_may_stand_behind_the_slash(tmp_path: Path) -> None:
    options = {"train": _good(tmp_path / "a.csv"), "text": "body", "label": "stars"}
    assert tasks.open_task("local/mine", options).name == "local/mine"


def test_the_three_formats_give_the_same_data(tmp_path: Path) -> None:
    rows = [(f'he said "{i}', i % 2) for i in range(40)]
    tsv, jsonl, csv = tmp_path / "d.tsv", tmp_path / "d.jsonl", tmp_path / "d.csv"
    tsv.write_text("\ufeffbody\tstars\r\n" + "".join(f"{t}\t{v}\r\n" for t, v in rows), encoding="utf-8")
    jsonl.write_text("".join(json.dumps({"body": t, "stars": v}) + "\n" for t, v in rows))
    doubled = [(t.replace('"', '""'), v) for t, v in rows]
    csv.write_text("body,stars\n" + "".join(f'"{t}",{v}\n' for t, v in doubled))
    assert len({_open(str(p)).fingerprint for p in (tsv, jsonl, csv)}) == 1


def test_number_labels_are_put_in_order_of_size(tmp_path: Path) -> None:
    assert _open(_csv(tmp_path / "a.csv", [f"t{i},{i % 11}" for i in range(99)])).labels[-2:] == ("9", "10")


def test_copies_in_a_given_test_file_leave_train(tmp_path: Path) -> None:
    test = _csv(tmp_path / "test.csv", ['"Text,  NUMBER 1",good', "new,bad"])
    d = _open(_good(tmp_path / "a.csv"), test=test)
    assert len(d.test) == 2
    assert "text, number 1" not in {e.text for e in (*d.train, *d.validation)}
    assert d.notes[0] == "1 rows of train left out: copies of test rows"


def test_copies_do_not_straddle_three_given_files(tmp_path: Path) -> None:
    validation = _csv(tmp_path / "v.csv", ["shared,good", "only validation,bad"])
    test = _csv(tmp_path / "t.csv", ["shared,good", "only test,bad"])
    d = _open(_csv(tmp_path / "a.csv", ["shared,good", "only train,bad"]), validation=validation, test=test)
    assert [[e.text for e in s] for s in (d.train, d.validation, d.test)] == [
        ["only train"],
        ["only validation"],
        ["shared", "only test"],
    ]


def test_regression_and_pairs_are_read(tmp_path: Path) -> None:
    rows = [f"a{i},b{i},{i / 10}" for i in range(50)]
    d = tasks.open_task(
        "local",
        {
            "train": _csv(tmp_path / "a.csv", rows, "x,y,z"),
            "text": "x",
            "pair": "y",
            "label": "z",
            "kind": "regression",
            "metric": "pearson",
        },
    )
    assert (d.kind, d.metric, d.metrics) == ("regression", "pearson", ("pearson", "spearman", "mae", "rmse"))
    assert {(e.text, e.pair, e.label) for e in d.train} < {(f"a{i}", f"b{i}", i / 10) for i in range(50)}


def test_an_answer_column_makes_it_generation(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", [f"q{i},a{i}" for i in range(40)], "q,a")
    d = tasks.open_task("local", {"train": path, "text": "q", "answer": "a", "metric": "rougeL"})
    assert (d.kind, d.metric, d.train[0].label) == ("generation", "rougeL", None)
    assert {(e.text, e.references) for e in d.train} < {(f"q{i}", (f"a{i}",)) for i in range(40)}


def test_a_relative_path_is_found_in_the_data_directory(tmp_path: Path) -> None:
    _good(tmp_path / "reviews.csv")
    d = tasks.open_task("local", {"train": "reviews.csv", "text": "body", "label": "stars"}, tmp_path)
    assert d.name == "local/reviews"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "body,stars\nfine,1\ncut off\n", r"a\.csv, line 3: 1 fields where the header has 2 \(body, stars\)"),
        ("a.csv", 'body,stars\n"one\nrow",1\nfine,2,3\n', "line 4: 3 fields"),
        ("a.csv", 'body,stars\nfine,1\n"never closed,2\nmore,1\n', "line 3: unexpected end of data; check the quotes"),
        ("a.csv", "", "is empty; it needs a header"),
        ("a.csv", "body,stars\n", "a header and no rows; an empty split"),
        ("a.csv", "body,body\na,b\n", "line 1: column 'body' is there twice"),
        ("a.csv", "bodi,stars\na,b\n", "unknown column for text 'body'; did you mean 'bodi'.*Valid: bodi, stars"),
        ("a.csv", "body,stars\na,1\n ,2\n", "line 3: column 'body' is empty"),
        ("a.csv", "body,stars\na,1\nb,\n", "line 3: column 'stars' is empty"),
        ("a.csv", "body,stars\na,1\nb,1\n", "every row of train has the label '1'"),
        ("a.tsv", "body\tstars\na\t1\nb 2\n", "line 3: 1 fields where the header has 2"),
        (
            "a.jsonl",
            '{"body": "a", "stars": 1}\n{"body": "b", "sta',
            "line 2: not JSON.*each line must be one JSON object",
        ),
        ("a.jsonl", '{"body": "a", "stars": 1}\n[1]\n', "line 2: a list; each line must be one JSON object"),
        ("a.jsonl", '{"body": "a", "stars": 1}\n\n{"body": "b"}\n', "line 3: column 'stars' is empty"),
        ("a.jsonl", '{"body": "a", "stars": 1}\n{"body": ["b"], "stars": 2}\n', "line 2: a list in column 'body'"),
        ("a.jsonl", "\n", "is empty"),
        ("a.xlsx", "body,stars\n", r"unknown format '\.xlsx'; valid: \.csv, \.tsv, \.jsonl"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        _open(str(path))
    assert name in str(caught.value) or "every row" in message


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("body,stars\nfine,1\ncafé,2\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.csv, line 3: not UTF-8.*save the file as UTF-8"):
        _open(str(path))


def test_a_label_outside_its_set_is_named_with_file_and_line(tmp_path: Path) -> None:
    test = _csv(tmp_path / "test.csv", ["one,good", "two,goood"])
    with pytest.raises(UserError, match=r"test\.csv, line 3: unknown label 'goood'; did you mean 'good'"):
        _open(_good(tmp_path / "a.csv"), test=test)
    with pytest.raises(UserError, match=r"a\.csv, line 2: unknown label 'bad'"):
        _open(_good(tmp_path / "a.csv"), labels=["good", "awful"])


@pytest.mark.parametrize(
    "value", ["inf", "four", "1_000", "1e400", "-Infinity", "٣", "１２", "0x10", "1e", ".", "1 000", "true"]
)
def test_a_regression_label_that_is_no_finite_number_is_named(tmp_path: Path, value: str) -> None:
    path = _csv(tmp_path / "a.csv", ["one,1.5", f"two,{value}"])
    with pytest.raises(UserError, match=rf"a\.csv, line 3: label '{re.escape(value)}' is not a finite number"):
        _open(path, kind="regression")


@pytest.mark.parametrize(
    ("value", "reach"),
    [("1e39", "larger than"), ("-1e39", "larger"), ("1e20", "larger"), ("1e-50", "nearer to 0"), ("-1e-300", "nearer")],
)
def test_a_regression_label_outside_float32_is_named(tmp_path: Path, value: str, reach: str) -> None:
    path = _csv(tmp_path / "a.csv", ["one,1.5", f"two,{value}"])
    with pytest.raises(UserError, match=rf"a\.csv, line 3: label '{value}' is {reach}.*float32"):
        _open(path, kind="regression")


def test_every_way_to_write_a_number_is_a_regression_label(tmp_path: Path) -> None:
    written = ["1", "-1", "+1", "1.", ".5", "1.5e3", "1E-3", "0", "-0.0", "007", "1e18", "0e999"]
    d = _open(_csv(tmp_path / "a.csv", [f"text {i},{v}" for i, v in enumerate(written)]), kind="regression")
    assert sorted(float(e.label or 0) for s in (d.train, d.validation, d.test) for e in s) == sorted(
        map(float, written)
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([False, True], r"unknown label 'no'.*YAML takes true and false .* in quotes"),
        ([False, "yes"], "unknown label 'no'.*in quotes"),
        ([False, False], "two different names, not .*in quotes"),
        (["no", None], 'an entry of labels is empty.*in quotes: "null"'),
        (["no", 1.5], "unknown label 'yes'.*YAML reads numbers"),
        (["no", ["yes"]], r"\['yes'\] in labels names no class"),
        (["no", {"yes": 1}], "in labels names no class"),
        (["no", "  "], "'  ' in labels names no class"),
        (["no", " no "], "two different names"),
        ("no", "must be a list"),
    ],
)
def test_labels_that_yaml_reads_as_something_else_are_named(tmp_path: Path, labels: Any, message: str) -> None:
    path = _csv(tmp_path / "a.csv", [f"text {i},{'yes' if i % 2 else 'no'}" for i in range(40)])
    with pytest.raises(UserError, match=message):
        _open(path, labels=labels)


@pytest.mark.parametrize(("written", "read"), [("010", 10), ("1_000", 1000), ("1.50", 1.5)])
def test_a_number_that_yaml_rewrites_is_to_be_quoted(tmp_path: Path, written: str, read: float) -> None:
    path = _csv(tmp_path / "a.csv", [f"text {i},{written if i % 2 else 'other'}" for i in range(40)])
    with pytest.raises(UserError, match="write names in quotes, as the file has them"):
        _open(path, labels=["other", read])
    assert _open(path, labels=["other", written]).labels == ("other", written)


def test_listed_labels_are_read_as_cells_are(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", [f"text {i},{' b' if i % 2 else 'a '}" for i in range(40)])
    assert _open(path, labels=[" b ", "a"]).labels == ("b", "a")
    objects = tmp_path / "a.jsonl"
    objects.write_text("".join(json.dumps({"body": f"text {i}", "stars": i % 2 > 0}) + "\n" for i in range(40)))
    assert _open(str(objects), labels=[True, False]).labels == ("true", "false")


def test_names_that_look_the_same_are_told_apart_by_code_points(tmp_path: Path) -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    train = _csv(tmp_path / "a.csv", [f"text {i},{one if i % 2 else 'bar'}" for i in range(40)])
    test = _csv(tmp_path / "t.csv", [f"new,{two}"])
    with pytest.raises(UserError, match=r"t\.csv, line 2: label .*U\+0065 U\+0301\) looks like .*U\+00E9\)"):
        _open(train, test=test)
    with pytest.raises(UserError, match=r"line 3: label .*U\+00E9\) looks like .*U\+0065 U\+0301\)"):
        _open(train, labels=["bar", two])
    with pytest.raises(UserError, match=r"column for pair .*U\+0065 U\+0301\) looks like .*U\+00E9\)"):
        _open(_csv(tmp_path / "b.csv", ["a,1,2"], f"body,stars,{one}"), pair=two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "clasification"}, "did you mean 'classification'"),
        ({"metric": "pearson"}, "unknown metric for classification 'pearson'.*Valid: accuracy, f1, f1_macro, mcc"),
        ({"labels": ["good"]}, "labels must be a list of at least two different names"),
        ({"label": None}, "option label is missing"),
        ({"train": 5}, "option train must be text, not 5"),
        ({"answer": "stars"}, "takes the option answer, not label"),
        ({"colum": "x"}, "unknown option 'colum'"),
        ({"kind": "regression", "labels": ["a", "b"]}, "has no labels"),
        ({"test": "nowhere.csv"}, r"there is no file .*nowhere\.csv"),
        ({"pair": "title"}, r"unknown column for pair 'title'.*Valid: body, stars"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_valid(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _open(**{"train": _good(tmp_path / "a.csv"), **options})


def test_f1_is_not_offered_for_three_classes(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", [f"text {i},{i % 3}" for i in range(60)])
    assert "f1" not in _open(path).metrics
    with pytest.raises(UserError, match=r"unknown metric for classification 'f1'\. Valid: accuracy, f1_macro"):
        _open(path, metric="f1")


def test_numbers_taken_for_classes_are_pointed_at_regression(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"600 different labels in train.*kind: regression"):
        _open(_csv(tmp_path / "a.csv", [f"text {i},{i / 7}" for i in range(600)]))


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        (["a,1", "b,2"], "2 different texts"),
        (["same,1", "same,2"], "1 different text"),
        (["Same ,1", "same,2"] * 30, "1"),
    ],
)
def test_a_set_too_small_to_split_says_how_many_rows_it_needs(tmp_path: Path, rows: list[str], count: str) -> None:
    carved = rf"validation and test are carved from train \(.*a\.csv\), whose rows have {count}.*at least 3 rows"
    path = _csv(tmp_path / "a.csv", rows)
    with pytest.raises(UserError, match=carved):
        _open(path)
    with pytest.raises(UserError, match=carved):
        _open(path, kind="regression")
    other = _csv(tmp_path / "other.csv", ["new,1", "newer,2"])
    for split, missing in (("validation", "test"), ("test", "validation")):
        if count.startswith("2"):
            assert _open(path, **{split: other}).train
            continue
        with pytest.raises(UserError, match=rf"{missing} is carved .* at least 2 rows.*name a file for {missing}"):
            _open(path, **{split: other})


def test_rows_with_one_first_text_are_too_few_to_split(tmp_path: Path) -> None:
    path = _csv(tmp_path / "a.csv", [f"same,second {i},{i % 2}" for i in range(40)], "body,more,stars")
    with pytest.raises(UserError, match=r"have 1 different first text\. Rows with one first text stay in one split"):
        _open(path, pair="more")


def test_three_texts_are_enough_to_split(tmp_path: Path) -> None:
    for classes in ("121", "112", "122"):
        d = _open(_csv(tmp_path / "a.csv", [f"{t},{c}" for t, c in zip("abc", classes, strict=True)]))
        assert [len(d.split(s)) for s in ("train", "validation", "test")] == [1, 1, 1]


def test_what_the_card_calls_required_is_refused_by_name_where_it_is_missing(tmp_path: Path) -> None:
    given = {"train": str(_good(tmp_path / "a.csv")), "text": "body", "label": "stars"}
    required = [o.name for o in local.CARD.options if o.required == "yes"]
    assert required == ["train", "text"]
    for name in required:
        with pytest.raises(UserError, match=f"option {name} is missing"):
            local.open_local(local.CARD, {k: v for k, v in given.items() if k != name}, None)
    for kind, name in (("classification", "label"), ("regression", "label"), ("generation", "answer")):
        with pytest.raises(UserError, match=f"option {name} is missing"):
            local.open_local(local.CARD, {"kind": kind, "train": given["train"], "text": "body"}, None)


def test_the_content_alone_decides_the_splits(tmp_path: Path) -> None:
    rows = [f'"text, number {i}",{"good" if i % 3 else "bad"}' for i in range(200)]
    plain = _open(_csv(tmp_path / "a.csv", rows), name="one")
    for path, options in (
        (_csv(tmp_path / "a.csv", rows), {"name": "two"}),
        (_csv(tmp_path / "elsewhere.csv", rows), {}),
        (_csv(tmp_path / "b.csv", rows, "words,mark"), {"text": "words", "label": "mark"}),
    ):
        assert _open(path, **options).fingerprint == plain.fingerprint
    curve = [_open(str(tmp_path / "a.csv"), name=f"n{n}", limit_train=n) for n in (20, 60, 180)]
    assert {d.test for d in curve} == {plain.test}
    assert {d.validation for d in curve} == {plain.validation}
    assert len({d.fingerprint for d in curve}) == 3 - (len(plain.train) < 60), "another amount of data is another task"


@pytest.mark.parametrize("other", ["same", "link", "copy", "format", "shuffled", "part"])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_one_data_set_as_two_splits_is_refused_for_that_reason(tmp_path: Path, split: str, other: str) -> None:
    rows = [f"text {i},{i % 2}" for i in range(60)]
    path = _csv(tmp_path / "a.csv", rows)
    second = tmp_path / f"{other}.csv"
    if other == "link":
        second.symlink_to(path)
    elif other == "format":
        second = tmp_path / "b.jsonl"
        second.write_text("".join(json.dumps({"body": f"text {i}", "stars": i % 2}) + "\n" for i in range(60)))
    elif other == "same":
        second = Path(path)
    else:
        _csv(second, {"copy": rows, "shuffled": rows[::-1], "part": [*rows, "another,1"]}[other])
    reason = "overlap: every text of the first" if other == "part" else "are the same data"
    with pytest.raises(
        UserError, match=rf"train \(.*a\.csv\) and {split} \(.*\) {reason}.*leave out the option {split}"
    ):
        _open(path, **{split: str(second)})


def test_validation_and_test_may_not_be_the_same_data(tmp_path: Path) -> None:
    test = _csv(tmp_path / "t.csv", ["new,good", "newer,bad"])
    with pytest.raises(UserError, match=r"validation \(.*\) and test \(.*\) are the same data"):
        _open(_good(tmp_path / "a.csv"), test=test, validation=test)


def test_the_second_text_of_a_prompt_follows_the_first_and_may_be_empty(tmp_path: Path) -> None:
    rows = [f"do {i},{'' if i % 2 else f'with {i}'},done {i}" for i in range(40)]
    path = _csv(tmp_path / "a.csv", rows, "instruction,input,output")
    d = tasks.open_task("local", {"train": path, "text": "instruction", "pair": "input", "answer": "output"})
    prompts = {e.text for s in (d.train, d.validation, d.test) for e in s}
    assert prompts == {f"do {i}" if i % 2 else f"do {i}\nwith {i}" for i in range(40)}


def test_references_of_one_prompt_are_one_test_example_and_an_example_each_in_train(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[dict[str, Any]] = [{"q": f"q{i}", "a": [f"a{i}", f"b{i} "]} for i in range(40)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    listed = tasks.open_task("local", {"train": str(path), "text": "q", "answer": "a"})
    assert all(e.references == (f"a{e.text[1:]}", f"b{e.text[1:]}") for e in (*listed.validation, *listed.test))
    assert all(len(e.references) == 1 for e in listed.train)
    assert len(listed.train) == 2 * (40 - len(listed.validation) - len(listed.test))
    repeated = _csv(tmp_path / "b.csv", [f"q{i},{x}{i}" for i in range(40) for x in "ab"], "q,a")
    assert tasks.open_task("local", {"train": repeated, "text": "q", "answer": "a"}).fingerprint == listed.fingerprint


def test_the_notes_of_references_count_prompts(tmp_path: Path) -> None:
    options = {"text": "q", "answer": "a"}
    path = _csv(tmp_path / "a.csv", [f"q{i},{x}{i}" for i in range(40) for x in "ab"], "q,a")
    d = tasks.open_task("local", {"train": path, **options})
    assert (len(d.train), len(d.validation), len(d.test)) == (64, 4, 4)
    assert d.notes == (
        "test: 4 prompts carved from train",
        "validation: 4 prompts carved from train",
        "train: an example for each of the 64 references of 32 prompts",
    )
    test = _csv(tmp_path / "t.csv", ["q1,c", "q1,d", "q2,c", "new,c"], "q,a")
    d = tasks.open_task("local", {"train": path, "test": test, **options})
    assert (len(d.test), d.notes[0]) == (3, "2 prompts of train left out: copies of test prompts")
    once = _csv(tmp_path / "b.csv", [f"q{i},a{i}" for i in range(40)], "q,a")
    assert not [n for n in tasks.open_task("local", {"train": once, **options}).notes if "references" in n]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "line 1: column 'a' is empty"),
        (["fine", ""], "line 1: column 'a' is empty"),
        (["fine", None], "line 1: column 'a' is empty"),
        (["fine", ["nested"]], "line 1: a list in column 'a'"),
        (["fine", {"text": "x"}], "line 1: a dict in column 'a'"),
        (["half \ud83d"], "line 1: column 'a' has half a character"),
    ],
)
def test_a_bad_list_of_references_is_named(tmp_path: Path, answers: list[Any], message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"q": "q", "a": answers}) + '\n{"q": "other", "a": "b"}\n')
    with pytest.raises(UserError, match=message):
        tasks.open_task("local", {"train": str(path), "text": "q", "answer": "a"})


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"text {i},{'yes' if i % 2 else 'no'}" for i in range(40)]
    options = {"train": str(path), "text": "text", "label": "label"}
    path.write_text("\n".join(["text,label", *rows]))
    first = tasks.open_task("local", options)
    assert tasks.open_task("local", options) is first
    assert tasks.open_task(first.name, {**options, "name": first.name.removeprefix("local/")}) is first
    path.write_text("\n".join(["text,label", *rows, "text 40,no"]))
    assert tasks.open_task("local", options).fingerprint != first.fingerprint
