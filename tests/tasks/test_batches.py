"""Tokens and batches: cached once, cut without losing the answer, padded little, the same order for every method."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbench import tasks
from peftbench.errors import UserError
from peftbench.tasks import batches, tokenizing, tokens
from peftbench.tasks.dataset import example

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def _tokenizer(**special: str | None) -> Any:
    """A byte-level tokenizer without merges: one token a byte, so that lengths can be counted."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {t: i for i, t in enumerate(["<pad>", "<end>", "<begin>", *alphabet])}
    rules = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rules.decoder = decoders.ByteLevel()
    given: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "<end>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=rules, **{k: v for k, v in given.items() if v})


def _generation(prompt: str, answer: str) -> tasks.Dataset:
    d = tasks.open_task("synthetic/generation")
    return dataclasses.replace(d, train=(example(prompt, references=[answer]),), fingerprint=prompt + answer)


def test_order_depends_on_the_seed_alone_and_continues_the_same_sequence() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 500)
    short, long = batches.order(lengths, 8, 30, seed=7), batches.order(lengths, 8, 90, seed=7)
    assert all(np.array_equal(a, b) for a, b in zip(short, long, strict=False))
    other = batches.order(lengths, 8, 30, seed=8)
    assert not all(np.array_equal(a, b) for a, b in zip(short, other, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=150), st.integers(1, 17), st.integers(0, 2**63 - 1))
def test_every_batch_is_full_and_epochs_use_every_example_equally(lengths: list[int], size: int, seed: int) -> None:
    made = batches.order(lengths, size, 2 * batches.POOL, seed)
    assert [len(b) for b in made] == [size] * 2 * batches.POOL
    counts = Counter(np.concatenate(made).tolist())
    uses = [counts.get(i, 0) for i in range(len(lengths))]
    assert max(uses) - min(uses) <= 1


def test_batches_come_in_no_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 4000)
    widths = [int(lengths[b].max()) for b in batches.order(lengths, 8, 200, seed=0)]
    assert abs(np.corrcoef(np.arange(200), widths)[0, 1]) < 0.2


def test_pools_of_similar_length_pad_little_where_plain_shuffling_pads_much() -> None:
    lengths = np.random.default_rng(1).lognormal(4, 0.6, 2500).astype(int).clip(1, 128)
    real, pooled = batches.padded(lengths, batches.order(lengths, 16, 150, seed=0))
    plain = [np.random.default_rng(i).choice(2500, 16, replace=False) for i in range(150)]
    shuffled = batches.padded(lengths, plain)
    assert pooled / real < 1.12
    assert shuffled[1] / shuffled[0] > 1.8


@pytest.mark.shared_data
@pytest.mark.embedded
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_rte_is_padded_by_a_few_percent_and_by_most_of_it_when_shuffled(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from peftbench.backbones import embedded

    tokenizer = AutoTokenizer.from_pretrained(embedded.model_dir("minilm-l6"))
    rte = tasks.open_task("glue/rte", {"limit_test": 1, "limit_validation": 1}, SHARED)
    lengths = tokens.encode(rte, tokenizer, 128, tmp_path)["train"].lengths
    real, pooled = batches.padded(lengths, batches.order(lengths, 16, 60, seed=0))
    draw = np.random.default_rng(0).permutation(len(lengths))[: 60 * 16].reshape(60, 16)
    shuffled = batches.padded(lengths, list(draw))
    assert 60_000 < real < 70_000
    assert pooled / real < 1.06  # measured: 64.7 k to 67.1 k
    assert shuffled[1] / shuffled[0] > 1.7  # measured: 64.7 k to 119 k


def test_evaluation_takes_every_example_once_longest_first() -> None:
    lengths = np.array([3, 9, 1, 7, 9])
    made = batches.evaluation(lengths, 2)
    assert [b.tolist() for b in made] == [[1, 4], [3, 0], [2]]


def test_the_second_encoding_comes_from_the_cache_and_is_equal(tmp_path: Path) -> None:
    d = tasks.open_task("synthetic/pair")
    first = tokens.encode(d, _tokenizer(), 40, tmp_path)

    tokenizer = _tokenizer()
    tokenizer("leave truncation state behind", truncation=True, max_length=5)
    again = tokens.encode(d, tokenizer, 40, tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 1
    for split, encoded in first.items():
        assert all(np.array_equal(a, b) for a, b in zip(encoded.ids, again[split].ids, strict=True))
        assert np.array_equal(encoded.labels, again[split].labels)  # type: ignore[arg-type]
    tokens.encode(d, _tokenizer(), 24, tmp_path)
    tokens.encode(d, _tokenizer(sep_token="<end>"), 40, tmp_path)
    tokens.encode(tasks.open_task("synthetic/pair", {"limit_train": 9}), _tokenizer(), 40, tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:200],
        lambda b: b"",
        lambda b: b"garbage" * 100,
        lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :],
    ],
    ids=["cut off", "empty", "garbage", "one bit"],
)
def test_a_damaged_token_cache_is_made_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    d = tasks.open_task("synthetic/pair")
    first = tokens.encode(d, _tokenizer(), 40, tmp_path)
    path = next(tmp_path.glob("*.npz"))
    path.write_bytes(damage(path.read_bytes()))
    again = tokens.encode(d, _tokenizer(), 40, tmp_path)
    for split, encoded in first.items():
        assert all(np.array_equal(a, b) for a, b in zip(encoded.ids, again[split].ids, strict=True))
    assert tokens._read(path, {split: len(d.split(split)) for split in first}).keys() == first.keys()


def test_the_token_cache_of_another_task_under_this_name_is_made_anew(tmp_path: Path) -> None:
    d, other = tasks.open_task("synthetic/pair"), tasks.open_task("synthetic/pair", {"limit_train": 9})
    tokens.encode(other, _tokenizer(), 40, tmp_path / "other")
    first = tokens.encode(d, _tokenizer(), 40, tmp_path)
    os.replace(next((tmp_path / "other").glob("*.npz")), next(tmp_path.glob("*.npz")))
    assert len(tokens.encode(d, _tokenizer(), 40, tmp_path)["train"]) == len(first["train"])


def test_a_token_cache_that_cannot_be_read_for_now_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = tasks.open_task("synthetic/pair")
    tokens.encode(d, _tokenizer(), 40, tmp_path)
    before = next(tmp_path.glob("*.npz")).stat().st_ino

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tokens.np, "load", full)
    with pytest.raises(OSError, match="Too many open files"):
        tokens.encode(d, _tokenizer(), 40, tmp_path)
    assert next(tmp_path.glob("*.npz")).stat().st_ino == before


@pytest.mark.parametrize("length", [4, 10_000])
def test_a_length_that_the_model_cannot_take_is_refused(tmp_path: Path, length: int) -> None:
    tokenizer = _tokenizer()
    tokenizer.model_max_length = 512
    with pytest.raises(UserError, match=f"max_length must be from 8 to 512, not {length}"):
        tokens.encode(tasks.open_task("synthetic/pair"), tokenizer, length, tmp_path)


def test_two_texts_are_kept_apart_where_the_tokenizer_has_no_separator(tmp_path: Path) -> None:
    d = tasks.open_task("synthetic/pair")
    tokenizer = _tokenizer()
    encoded = tokens.encode(d, tokenizer, 200, tmp_path)["train"]
    assert tokenizer.decode(encoded.ids[0]) == f"{d.train[0].text}\n{d.train[0].pair}"


def test_an_answer_is_trained_on_with_its_end_and_the_prompt_is_not(tmp_path: Path) -> None:
    d = _generation("what colour :", "red")
    tokenizer = _tokenizer()
    encoded = tokens.encode(d, tokenizer, 64, tmp_path)["train"]
    start = int(encoded.answer_start[0])  # type: ignore[index]
    assert tokenizer.decode(encoded.ids[0][:start]) == "what colour :"
    assert tokenizer.decode(encoded.ids[0][start:]) == " red<end>"
    labels = batches.collate(encoded, [0], pad_id=0)["labels"][0].tolist()
    assert labels[:start] == [batches.IGNORE] * start
    assert labels[start:] == encoded.ids[0][start:].tolist()


@pytest.mark.parametrize(
    ("prompt", "answer", "kept", "told"),
    [
        (100, 5, 32 - 7, 7),  # the prompt loses its beginning, the answer nothing (space + 5 + end)
        (5, 100, 5, 27),  # the answer gets all the room that is left
        (100, 100, 16, 16),  # both too long: half each
    ],
)
def test_truncation_never_loses_the_whole_answer(
    tmp_path: Path, prompt: int, answer: int, kept: int, told: int
) -> None:
    d = _generation("p" * (prompt - 1) + ":", "a" * answer)
    encoded = tokens.encode(d, _tokenizer(), 32, tmp_path)["train"]
    start = int(encoded.answer_start[0])  # type: ignore[index]
    assert (start, len(encoded.ids[0]) - start) == (kept, told)
    assert _tokenizer().decode(encoded.ids[0][:start]).endswith(":")


@given(st.integers(0, 60), st.integers(1, 60), st.integers(2, 40))
def test_fitting_keeps_the_answers_beginning_and_the_prompts_end(prompt: int, answer: int, room: int) -> None:
    p, a = list(range(prompt)), list(range(1000, 1000 + answer))
    kept, told = tokens._truncate(p, a, room)
    assert len(kept) + len(told) == min(prompt + answer, room)
    assert kept == p[prompt - len(kept) :]
    assert told == a[: len(told)]
    assert len(told) >= min(answer, room // 2)


def test_a_tokenizer_without_an_end_is_refused_for_generation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no end-of-text token"):
        tokens.encode(_generation("a :", "b"), _tokenizer(eos_token=None), 32, tmp_path)


def test_collating_pads_on_the_side_asked_for_and_masks_the_padding(tmp_path: Path) -> None:
    d = tasks.open_task("synthetic/classification")
    encoded = tokens.encode(d, _tokenizer(), 64, tmp_path)["test"]
    pair = [int(encoded.lengths.argmin()), int(encoded.lengths.argmax())]
    right, left = (batches.collate(encoded, pair, 0, side) for side in ("right", "left"))
    short = int(encoded.lengths[pair[0]])
    assert right["input_ids"].shape == (2, int(encoded.lengths.max()))
    assert right["attention_mask"][0].tolist() == [1] * short + [0] * (right["input_ids"].shape[1] - short)
    assert left["input_ids"][0, -short:].tolist() == right["input_ids"][0, :short].tolist()
    assert left["attention_mask"].sum() == right["attention_mask"].sum()
    assert right["labels"].tolist() == [d.test[i].label for i in pair]
    assert str(right["labels"].dtype) == "torch.int64"
    with pytest.raises(ValueError, match="side must be"):
        batches.collate(encoded, pair, 0, "middle")


def test_regression_labels_are_floats(tmp_path: Path) -> None:
    d = tasks.open_task("synthetic/regression")
    encoded = tokens.encode(d, _tokenizer(), 64, tmp_path)["train"]
    assert str(batches.collate(encoded, [0, 1], 0)["labels"].dtype) == "torch.float32"


def test_prompts_for_generation_end_with_the_prompt_on_the_right(tmp_path: Path) -> None:
    d = tasks.open_task("synthetic/generation")
    encoded = tokens.encode(d, _tokenizer(), 64, tmp_path)["test"]
    batch = batches.prompts(encoded, [0, 1, 2], 0)
    colon = _tokenizer()(":")["input_ids"][0]
    assert batch["input_ids"][:, -1].tolist() == [colon] * 3
    assert batch["attention_mask"][:, -1].tolist() == [1] * 3
    with pytest.raises(ValueError, match="only generation"):
        batches.prompts(tokens.encode(tasks.open_task("synthetic/pair"), _tokenizer(), 40, tmp_path)["test"], [0], 0)


def _with_tests(*examples: tasks.Example) -> tasks.Dataset:
    d = tasks.open_task("synthetic/generation")
    return dataclasses.replace(d, test=examples, fingerprint=repr(examples))


@pytest.mark.parametrize("words", [1, 4, 9, 30])
def test_the_prompt_at_test_does_not_depend_on_the_reference(tmp_path: Path, words: int) -> None:
    prompts = [f"a rule and {'some context ' * words}{i} :" for i in range(3)]
    seen = []
    for reference in ("x", "a longer reference " * 4):
        d = _with_tests(*(example(prompt, references=[reference]) for prompt in prompts))
        test = tokens.encode(d, _tokenizer(bos_token="<begin>"), 64, tmp_path)["test"]
        assert test.answer_start is not None
        seen.append([row[:start].tolist() for row, start in zip(test.ids, test.answer_start, strict=True)])
        assert all(len(row) > start for row, start in zip(test.ids, test.answer_start, strict=True)), "all are scored"
    assert seen[0] == seen[1]
    assert [len(row) for row in seen[0]] == [min(64, len(prompt)) for prompt in prompts]


@pytest.mark.parametrize("most", [64, 70, 90, 1000])
def test_the_prompt_at_test_leaves_the_model_room_for_an_answer(tmp_path: Path, most: int) -> None:
    d = tasks.open_task("synthetic/generation")
    train = tuple(example("a :", references=["x" * n]) for n in (3, 9))  # with the blank and the end: at most 11 tokens
    seen = []
    for reference in ("x", "y" * 200):
        test = tuple(example("some context " * n, references=[reference]) for n in (1, 4, 5, 20))
        changed = dataclasses.replace(d, train=train, test=test, fingerprint=repr(test))
        tokenizer = _tokenizer()
        tokenizer.model_max_length = most
        encoded = tokens.encode(changed, tokenizer, 64, tmp_path / str(len(seen)))["test"]
        assert encoded.answer_start is not None
        seen.append(encoded.answer_start.tolist())
        assert encoded.lengths.max() <= most
    assert seen[0] == seen[1] == [min(13 * n, 64, most - 11) for n in (1, 4, 5, 20)]


def _framing(first: str) -> Any:
    """A tokenizer that puts a first token before a text, as those of BERT and Llama do."""
    from tokenizers import processors

    tokenizer = _tokenizer(**{first: "<begin>"})
    template = processors.TemplateProcessing(
        single="<begin> $A", pair="<begin> $A <end> $B", special_tokens=[("<begin>", 2), ("<end>", 1)]
    )
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


@pytest.mark.parametrize("room", [64, 16])
@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("classification", "bos_token"),
        ("classification", "cls_token"),
        ("generation", "bos_token"),  # causal networks have no class token
        ("encoder and decoder", "bos_token"),
        ("encoder and decoder", "cls_token"),
    ],
)
def test_a_first_token_in_the_text_is_not_doubled_and_is_told(kind: str, first: str, room: int) -> None:
    tokenizer = _framing(first)
    rows = [example(text, None, 0, ["fine"]) for text in ("ask 20 words :", "<begin>ask 20 words :")]
    start = 0 if kind == "encoder and decoder" else None
    encoded = tokens.encode_examples(
        "t", kind.split()[0].replace("encoder", "generation"), rows, tokenizer, room, start
    )
    plain, templated = (row.tolist() for row in encoded.ids)
    assert templated == plain
    assert plain[:2].count(2) == 1
    assert encoded.own_begin == 1
    assert tokens.remarks({"train": encoded}, tokenizer) == [
        "1 of 2 texts begin with <begin> themselves; the tokenizer's own is not put before it"
    ]
    assert tokens.remarks({"train": dataclasses.replace(encoded, own_begin=0)}, tokenizer) == []


def test_an_end_token_in_the_answer_is_not_doubled() -> None:
    for start in (None, 0):
        rows = [example("ask:", references=[answer]) for answer in ("fine", "fine<end>")]
        plain, ended = tokens.encode_examples("t", "generation", rows, _tokenizer(), 64, start).ids
        assert ended.tolist() == plain.tolist()


def test_encoding_in_parts_gives_what_encoding_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    d = tasks.open_task("synthetic/pair")
    whole = tokens.encode_examples("t", d.kind, d.train, _tokenizer(), 40)
    monkeypatch.setattr(tokenizing, "AT_ONCE", 7)
    parts = tokens.encode_examples("t", d.kind, d.train, _tokenizer(), 40)
    assert all(np.array_equal(a, b) for a, b in zip(whole.ids, parts.ids, strict=True))
