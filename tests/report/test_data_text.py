"""What a report and a plan say of a task's data: facts in few lines, and mistakes that a user likely made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import factories
import msgspec
import pytest

from peftbench.records import record
from peftbench.records.data_summary import DataSummary, SplitSummary
from peftbench.report import assemble
from peftbench.report.data import data_text
from peftbench.report.data.average import averages
from peftbench.report.data.collect import compare
from peftbench.report.figures import plots
from peftbench.report.media import terminal


def split(rows: int = 100, per_class: Any = (), **changes: Any) -> SplitSummary:
    fields = {"copies": 0, "contradictory": 0, "tokens": 10 * rows, "longest": 20, "cut_texts": 0, "cut_tokens": 0}
    return SplitSummary(rows=rows, per_class=list(per_class), **{**fields, **changes})


def of(*classes: str, doubled: Any = (), notes: Any = (), cut_from: Any = "end", **changes: Any) -> DataSummary:
    each = {
        name: split(10 * max(1, len(classes)), [10] * len(classes), **changes)
        for name in ("test", "train", "validation")
    }
    return DataSummary(list(classes), each, cut_from, dict(doubled), list(notes))


def warned(data: DataSummary) -> str:
    return "\n".join(data_text.warnings(data, 16))


def test_the_facts_of_a_task_are_few_lines() -> None:
    data = of("good", "bad", notes=["2 rows left out"], copies=3, cut_texts=1, cut_tokens=4)
    assert list(data_text.facts(data, 16)) == [
        "Examples: 20 train, 20 validation, 20 test.",
        "Prepared: 2 rows left out.",
        "Classes, train/validation/test: good 10/10/10, bad 10/10/10.",
        "Copies: 3 examples of train, 3 examples of validation, 3 examples of test repeat an earlier one of "
        "their split, and stay there.",
        "Texts: at most 20 tokens, and max_length is 16; 5 % are cut.",
    ]


def test_many_classes_are_named_by_size_and_counted() -> None:
    data = of(*(f"c{i}" for i in range(100)))
    (line,) = [f for f in data_text.facts(data, 16) if f.startswith("Classes")]
    assert line.endswith("c11 10/10/10 and 88 more.")


LONG = "Customer Service / Billing and Payments / "


@pytest.mark.parametrize(
    "classes",
    [
        [f"{LONG}{end}" for end in ("Refund requested", "Refund refused", "Card declined")],
        [
            f"{LONG}{middle} / closed within a week"
            for middle in ("Refund requested", "Refund refused", "Card declined")
        ],
        [f"{LONG}{i} {LONG}{j} / all of it" for i in range(5) for j in range(5)],
        [f"{'漢字' * 20}{end}" for end in "abc"],
        ["a" * n for n in range(28, 60)],
        [f"{'a' * 50}  {end}" for end in "xyz"],
    ],
)
def test_long_names_of_classes_are_told_apart(classes: list[str]) -> None:
    shown = data_text.names(classes)
    assert len(set(shown.values())) == len(classes)
    assert all(terminal.width(name) <= data_text.NAME_WIDTH for name in shown.values())
    (line,) = [f for f in data_text.facts(of(*classes), 16) if f.startswith("Classes")]
    assert all(shown[name] in line for name in classes[: data_text.SHOWN])
    whole = data_text.names(classes, longest=None)
    assert all(shown.strip("'") == name for name, shown in whole.items()), "whole in tables"


@pytest.mark.parametrize(
    "name", ["می\u200cشود", "ක්\u200dෂ", "👩\u200d💻", "\u05d0\u200f", "a b", "déjà", "it's", "a\\nb"]
)
def test_a_name_is_written_as_it_is_where_every_character_shows_or_joins(name: str) -> None:
    assert data_text.names([name]) == {name: name}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "''"),
        (" a", "' a'"),
        ("a  b", "'a  b'"),
        ("a\nb", r"'a\nb'"),
        ("a\x1b[31m", r"'a\x1b[31m'"),
        ("a\u202eb", r"'a\u202eb'"),
        ("a\xa0b", r"'a\xa0b'"),
        ("it's ", '"it\'s "'),
    ],
)
def test_a_name_is_quoted_where_blanks_or_control_characters_would_not_show(name: str, shown: str) -> None:
    assert data_text.names([name]) == {name: shown}


@pytest.mark.parametrize("c", ["\u200c", "\u200d", "\u200e", "\xad"])
def test_names_that_look_alike_but_for_a_format_character_show_it(c: str) -> None:
    shown = data_text.names([f"a{c}b", "ab", f"c{c}d"])
    assert list(shown.values()) == [f"'a{c.encode('unicode_escape').decode()}b'", "ab", f"c{c}d"]


@pytest.mark.parametrize(
    "classes",
    [
        ("good", "bad"),
        ("0", "1"),
        ("-1", "0", "1"),
        ("1", "2", "3.5"),
        ("true", "false"),
        ("entailment", "not_entailment"),
        ("C", "C++", "C#"),
        ("ABBR", "DESC", "ENTY"),
        ("é", "e"),
        (".", "#", "!", "value"),
    ],
)
def test_usual_classes_are_no_mistake(classes: tuple[str, ...]) -> None:
    assert warned(of(*classes)) == ""


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("billing", "Billing", "BILLING", "tech"), "only in case, blanks or hyphens: billing = Billing = BILLING."),
        (("tech support", "tech-support", "Tech_Support"), "tech support = tech-support = Tech_Support"),
        (("a b", "a  b"), "a b = 'a  b'"),
        (("straße", "STRASSE"), "straße = STRASSE"),
        (("ﬁne", "fine"), "ﬁne = fine"),
        (("0", "0.0", "1"), "one number, written in several ways: 0 = 0.0."),
        (("1", "01", "2"), "1 = 01"),
        (("1", "1e0", "2"), "1 = 1e0"),
        (("0", "1", "true"), "mixed type: numbers (0, 1) and truth values (true)"),
        (("0", "1", "yes", "no"), "mixed type: numbers (0, 1) and words (yes, no)"),
        (("good", "N/A"), "look like missing values: N/A."),
        (("1", "nan", "2"), "look like missing values: nan."),
        (("good", "None", "bad"), "look like missing values: None."),
        (("good", "#N/A", "NIL"), "look like missing values: #N/A, NIL."),
        (("good", "(null)", "n.a.", "--", "#REF!"), "look like missing values: (null), n.a., --, #REF!."),
        (("caf\u00e9", "cafe\u0301"), "caf\u00e9 (U+00E9) = cafe\u0301 (U+0065 U+0301)."),
        (("caf\u00e9", "cafe\u0301", "Caf\u00e9"), "(U+00E9) = cafe\u0301 (U+0065 U+0301) = Caf\u00e9."),
    ],
)
def test_a_likely_mistake_in_the_labels_is_named(classes: tuple[str, ...], said: str) -> None:
    assert said in warned(of(*classes))


def test_rare_classes_are_named_with_their_rows() -> None:
    splits = {"train": split(96, [90, 4, 2]), "validation": split(10, [9, 0, 1]), "test": split(10, [8, 1, 1])}
    text = warned(DataSummary(["a", "b", "c"], splits, "end", {}))
    assert text == "Classes with fewer than 5 examples of train, or without one of another split: b 4/0/1, c 2/1/1."


def test_texts_in_several_classes_are_counted() -> None:
    assert "several classes: 2 examples of train, 2 examples of validation" in warned(of("a", "b", contradictory=2))


def test_truncation_says_how_many_texts_lose_what() -> None:
    data = of(cut_texts=8, cut_tokens=50, cut_from="beginning")
    assert warned(data) == (
        "Texts over 16 tokens lose their beginning: 80 % of every split, with 50 % of all tokens. "
        "Raise max_length, or shorten the texts."
    )
    assert warned(of(cut_texts=1, cut_tokens=5)) == "", "a tenth of the texts is no warning"


def test_a_cut_answer_and_a_doubled_token_are_named() -> None:
    assert "Answers lose their end: 50 % of every split" in warned(of(cut_answers=5, cut_answer_tokens=9))
    assert "40 texts begin or end with <s> twice" in warned(of(doubled={"<s>": 40}))


@pytest.mark.parametrize(
    ("texts", "answers", "said"),
    [
        (0, 0, "; none is cut."),
        (2, 0, "; 20 % are cut."),
        (0, 10, "; no prompt is cut; 100 % of the answers are."),
        (1, 5, "; 10 % of the prompts are cut; 50 % of the answers are."),
    ],
)
def test_the_facts_on_length_agree_with_the_warnings(texts: int, answers: int, said: str) -> None:
    data = of(cut_texts=texts, cut_tokens=5 * texts, cut_answers=answers, cut_answer_tokens=answers)
    assert list(data_text.facts(data, 16))[-1].endswith(said)
    assert ("Answers lose their end" in warned(data)) is (answers > 0)


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    data = DataSummary([], {"train": split(1000, cut_texts=999), "test": split(1000, cut_texts=1)}, "end", {})
    assert "> 99 % of train, < 1 % of test" in warned(data)


# In reports


def bodies(data: DataSummary | None, **changes: Any) -> list[dict[str, Any]]:
    made = factories.grid(["full", "lora"], **changes)
    return made if data is None else [{**body, "data": msgspec.to_builtins(data)} for body in made]


def test_what_was_not_learned_names_truncation_where_many_texts_are_cut(tmp_path: Path) -> None:
    for name, cut, named in (("much", 9, True), ("little", 2, False)):
        folder = tmp_path / name
        factories.write_all(folder, bodies(of(cut_texts=cut, cut_tokens=9), score=0.5, majority=0.5))
        (c,) = compare(record.read_all(folder))
        assert c.learned is False
        assert ("A likely cause: 90 % of the texts are cut." in " ".join(c.notes)) is named
        assert ("cause" in assemble.text_table(folder)) is named


def test_an_average_that_leaves_a_task_out_names_truncation(tmp_path: Path) -> None:
    cut = of(cut_texts=9, cut_tokens=9)
    factories.write_all(tmp_path, bodies(cut, score=0.5, majority=0.5, tasks={"x": None}))
    factories.write_all(tmp_path, bodies(None, majority=0.1, tasks=dict.fromkeys("yz")))
    (a,) = averages(compare(record.read_all(tmp_path)))
    assert "not learned at this budget (90 % of the texts are cut)" in " ".join(a.notes)


def test_a_learned_task_names_no_cause(tmp_path: Path) -> None:
    factories.write_all(tmp_path, bodies(of(cut_texts=9, cut_tokens=9), majority=0.1))
    text = assemble.text_table(tmp_path)
    assert "cause" not in text
    assert "Texts over 96 tokens lose their end" in text


def test_the_page_lists_the_data_and_an_older_record_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "figures", lambda comparison, looks: iter(()))
    for data in (of("good", "bad"), None):
        folder = tmp_path / str(data is None)
        factories.write_all(folder, bodies(data))
        page = assemble.write(folder)[0].read_text()
        assert ("The data:\n\n- Examples: 20 train" in page) is (data is not None)
        assert ("<summary>The classes</summary>" in page) is (data is not None)


def test_a_long_sample_is_short_in_the_terminal_and_whole_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "figures", lambda comparison, looks: iter(()))
    prompt = f"begin {'word ' * 200}end"
    sample = {"prompt": prompt, "prediction": "yes", "reference": "no"}
    factories.write_all(tmp_path, [factories.run("full", samples=[sample])])
    terminal = " ".join(assemble.text_table(tmp_path).split())
    assert "A sample of full: 'begin word" in terminal
    assert "word end' -> 'yes'; reference 'no'" in terminal
    assert len(terminal) < len(prompt)
    assert prompt in assemble.write(tmp_path)[0].read_text()
