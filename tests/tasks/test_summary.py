"""What the summary of a task's data counts: classes, copies, and the tokens that truncation takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftbench.backbones.tokenizers import tokenizer_and_start
from peftbench.records.data_summary import DataSummary
from peftbench.tasks import tokens
from peftbench.tasks.dataset import Dataset, Example, TaskCard, example, make_dataset
from peftbench.tasks.summary import summarise

LONG = " ".join(["the man and the dog saw a house in the old town and they went there by car one day"] * 3)


def dataset(train: Sequence[Example], kind: str = "classification", labels: Sequence[str] = ("a", "b")) -> Dataset:
    one = [example("a short text", label=0, references=["yes"])]
    card = TaskCard("mine", kind, ("accuracy",), "own", "here", "what?")
    names = labels if kind == "classification" else ()
    return make_dataset(
        card, {"train": train, "validation": one, "test": one}, {}, labels=names, notes=["two left out"]
    )


def summary(d: Dataset, folder: Path, model: str, length: int, side: str = "right") -> tuple[DataSummary, Any]:
    tokenizer, start = tokenizer_and_start(model, d.kind)
    tokenizer.truncation_side = side
    encoded = tokens.encode(d, tokenizer, length, folder / f"{model}{side}", start)
    return summarise(d, encoded, tokenizer), tokenizer


def test_rows_copies_and_contradictions_are_counted_by_split_and_class(tmp_path: Path) -> None:
    rows = [example(*r) for r in [("one", None, 0), ("ONE ", None, 1), ("two", None, 1), ("two", None, 1)]]
    found, _ = summary(dataset(rows), tmp_path, "tiny-encoder", 32)
    train = found.splits["train"]
    assert (train.rows, train.per_class, train.copies, train.contradictory) == (4, [1, 3], 2, 2)
    assert (found.classes, found.notes) == (["a", "b"], ["two left out"])
    assert (train.cut_texts, train.cut_tokens, train.cut_answers, found.doubled) == (0, 0, 0, {})


def test_a_second_text_makes_another_row(tmp_path: Path) -> None:
    rows = [example("premise", "one", 0), example("premise", "two", 1), example("premise", "two", 0)]
    train = summary(dataset(rows), tmp_path, "tiny-encoder", 32)[0].splits["train"]
    assert (train.copies, train.contradictory) == (1, 2)


def test_a_copy_of_a_generation_task_has_the_prompt_and_the_reference_of_another(tmp_path: Path) -> None:
    pairs = [("one", "a"), ("one", "b"), ("One", "B "), ("two", "a"), ("two", "a")]
    rows = [example(prompt, references=[reference]) for prompt, reference in pairs]
    train = summary(dataset(rows, "generation"), tmp_path, "tiny-decoder", 32)[0].splits["train"]
    assert (train.rows, train.copies, train.contradictory) == (5, 2, 0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pair", [None, LONG])
def test_a_text_loses_what_the_tokenizer_would_have_made_of_it(tmp_path: Path, pair: str | None, side: str) -> None:
    rows = [example("short", "one" if pair else None, 0), example(LONG, pair, 1)]
    found, tokenizer = summary(dataset(rows), tmp_path, "tiny-encoder", 16, side)
    whole = len(tokenizer(LONG, pair)["input_ids"])
    train = found.splits["train"]
    assert (train.cut_texts, train.cut_tokens, train.longest) == (1, whole - 16, whole)
    assert found.cut_from == ("end" if side == "right" else "beginning")


def test_a_text_that_just_fits_is_not_cut(tmp_path: Path) -> None:
    tokenizer, _ = tokenizer_and_start("tiny-encoder", "classification")
    whole = len(tokenizer(LONG)["input_ids"])
    train = summary(dataset([example(LONG, label=0)]), tmp_path, "tiny-encoder", whole)[0].splits["train"]
    assert (train.cut_texts, train.longest) == (0, whole)


def test_a_prompt_loses_its_beginning_and_an_answer_its_end(tmp_path: Path) -> None:
    rows = [example(LONG, references=["yes"]), example("short", references=[LONG])]
    found, tokenizer = summary(dataset(rows, "generation"), tmp_path, "tiny-decoder", 32)
    train = found.splits["train"]
    whole = {
        text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (LONG, " yes", "short", f" {LONG}")
    }
    assert found.cut_from == "beginning"
    assert (train.cut_texts, train.cut_answers) == (1, 1)
    assert train.cut_tokens + train.cut_answer_tokens == train.tokens - 64
    assert train.tokens == sum(whole.values()) + 2, "with an end of text for each answer"


def test_prompt_and_answer_of_an_encoder_and_decoder_are_cut_apart(tmp_path: Path) -> None:
    rows = [example(LONG, references=["yes"]), example("short", references=[LONG])]
    found, tokenizer = summary(dataset(rows, "generation"), tmp_path, "tiny-t5", 32)
    train, whole = found.splits["train"], len(tokenizer(LONG)["input_ids"])
    assert found.cut_from == "end"
    assert (train.cut_texts, train.cut_tokens) == (1, whole - 32)
    assert (train.cut_answers, train.cut_answer_tokens) == (1, whole - 32)
    assert train.longest == whole


def test_what_is_lost_is_kept_in_the_token_cache(tmp_path: Path) -> None:
    d = dataset([example(LONG, label=0)])
    first, again = (summary(d, tmp_path, "tiny-encoder", 16)[0] for _ in range(2))
    assert first == again
    assert first.splits["train"].cut_texts == 1


@pytest.mark.parametrize(
    ("text", "doubled"), [("[CLS] hello", 0), ("hello [SEP]", 1), ("[CLS] a [SEP]", 1), ("☃ ☃ x", 0)]
)
def test_a_special_token_that_template_and_tokenizer_both_add_is_counted(
    tmp_path: Path, text: str, doubled: int
) -> None:
    found = summary(dataset([example(text, label=0)]), tmp_path, "tiny-encoder", 32)[0]
    assert sum(found.doubled.values()) == doubled
    assert set(found.doubled) <= {"[SEP]"}
    assert any("begin with [CLS] themselves" in note for note in found.notes) is text.startswith("[CLS]")


def test_a_first_token_that_a_text_brings_is_not_counted_as_lost(tmp_path: Path) -> None:
    both = [summary(dataset([example(t, label=0)]), tmp_path, "tiny-encoder", 16)[0] for t in (LONG, f"[CLS]{LONG}")]
    assert both[0].splits["train"] == both[1].splits["train"]


def test_a_split_without_token_ids_is_left_out(tmp_path: Path) -> None:
    d = dataset([example("one", label=0)])
    tokenizer, start = tokenizer_and_start("tiny-encoder", "classification")
    encoded = tokens.encode(d, tokenizer, 16, tmp_path, start)
    del encoded["test"]
    assert set(summarise(replace(d, test=()), encoded, tokenizer).splits) == {"train", "validation"}
