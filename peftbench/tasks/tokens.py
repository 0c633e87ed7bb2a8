"""Encode texts as token ids. The cache key is the fingerprints of dataset and tokenizer and the maximal length.

- Classification and regression: one or two texts with the tokenizer's special tokens. The tokenizer truncates the
  longer text.
- Generation: prompt + answer + end-of-text. The beginning of the prompt is truncated first; the answer keeps at least
  half of the length. At test the prompt keeps the whole length whatever its answer, because what the network reads must
  not depend on a reference; the answer that is scored stands behind it. The prompt keeps less where the tokenizer names
  the longest input of the model: then the longest answer of train has room behind it.
- Generation with an encoder and a decoder: the prompt as the tokenizer frames and truncates it, and answer +
  end-of-text. Each may have the whole length.

A text that begins with the tokenizer's own first token, as chat templates write it, does not get a second one; nor does
an answer get a second end-of-text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from peftbench import cache
from peftbench.errors import UserError
from peftbench.tasks import tokenizing
from peftbench.tasks.dataset import SPLITS, Dataset, Example

VERSION = 3  # part of the cache key; raise it when the same input is encoded differently
Array = np.ndarray[Any, Any]
_ARRAYS = (
    "labels",
    "answer_start",
    "lost",
    "lost_answer",
)  # optional fields of `Encoded` with a number for each example


@dataclass(frozen=True)
class Encoded:
    """A split of n examples as token ids, in the dataset's order.

    Attributes:
        ids: one int32 array of token ids for each example.
        types: one int32 array of segment numbers for each example; None if the network has none or there is one text.
        labels: (n,) int64 classes or float32 values; None for generation.
        answer_start: (n,) int64 index of the answer's first token; None except for generation.
        lengths: (n,) int64 tokens of each example.
        decoder_start: the first token of the decoder; None without a decoder of its own.
        own_begin: the number of texts that begin with the tokenizer's first token themselves.
        lost: (n,) int64 tokens that truncation took from each text; of a generation task, from its prompt. None if the
            ids do not come from texts.
        lost_answer: (n,) int64 tokens that truncation took from each answer; None except for generation.
    """

    ids: list[Array]
    types: list[Array] | None
    labels: Array | None
    answer_start: Array | None
    lengths: Array
    decoder_start: int | None = None
    own_begin: int = 0
    lost: Array | None = None
    lost_answer: Array | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest_answer(self) -> int:
        """The most tokens of an answer, its end included; 0 except for generation."""
        return 0 if self.answer_start is None else int((self.lengths - self.answer_start).max())


def encode(
    dataset: Dataset, tokenizer: Any, max_length: int, cache_dir: Path, decoder_start: int | None = None
) -> dict[str, Encoded]:
    """Encode the three splits of a dataset, or read them from the cache.

    Args:
        dataset: the dataset.
        tokenizer: a tokenizer of transformers.
        max_length: the largest number of tokens of an example.
        cache_dir: the folder of the token cache.
        decoder_start: the network's `Backbone.decoder_start`.

    Returns:
        The encoded splits by name.

    Raises:
        UserError: the length or the tokenizer is not suitable, or the cache cannot be written. A damaged file is made
            anew.
    """
    most = getattr(tokenizer, "model_max_length", None)
    if max_length < 8 or (most is not None and max_length > most):
        raise UserError(f"max_length must be from 8 to {most or 'the longest input of the model'}, not {max_length}")
    key = [VERSION, dataset.fingerprint, fingerprint(tokenizer), max_length, most]
    if decoder_start is not None:
        key.append("encoder and decoder")
    path = cache_dir / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz"

    def encode_split(split: str, prompt_length: int | None = None) -> Encoded:
        examples = dataset.split(split)
        return encode_examples(
            dataset.name, dataset.kind, examples, tokenizer, max_length, decoder_start, prompt_length
        )

    def encode_all() -> dict[str, Encoded]:
        train = encode_split("train")
        room = max_length if most is None else min(max_length, max(most - train.longest_answer, max_length // 2))
        return {"train": train, "validation": encode_split("validation"), "test": encode_split("test", room)}

    read: dict[str, Encoded] = {}

    def check(stored: Path) -> None:
        read.update(_read(stored, {split: len(dataset.split(split)) for split in SPLITS}))

    cache.file(path, lambda part: _save(part, encode_all()), check)
    return {split: replace(encoded, decoder_start=decoder_start) for split, encoded in read.items()}


def encode_examples(
    name: str,
    kind: str,
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    decoder_start: int | None = None,
    prompt_length: int | None = None,
) -> Encoded:
    """Encode examples of one kind of task.

    Args:
        name: the task's name, for messages.
        kind: "classification", "regression" or "generation".
        examples: the examples.
        tokenizer: a tokenizer of transformers.
        max_length: the largest number of tokens of an example.
        decoder_start: the network's `Backbone.decoder_start`.
        prompt_length: tokens kept of a prompt of a causal model, whatever its answer, which stands behind it; None:
            prompt and answer share `max_length`.

    Raises:
        UserError: the tokenizer is not suitable, or a text has no tokens.
    """
    if kind != "generation":
        return _encode_classified(name, kind, examples, tokenizer, max_length)
    if decoder_start is None:
        return _encode_causal(name, examples, tokenizer, max_length, prompt_length)
    encoded = _encode_seq2seq(name, examples, tokenizer, max_length)
    return replace(encoded, decoder_start=decoder_start)


def fingerprint(tokenizer: Any) -> str:
    """Return the sha256 of what determines the ids: rules, vocabulary, special tokens and library versions."""
    import tokenizers
    import transformers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # they depend on the last call
            rules.pop(state, None)
    else:
        rules = sorted(tokenizer.get_vocab().items())
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    settings = [type(tokenizer).__name__, rules, special, list(tokenizer.model_input_names)]
    versions = [tokenizers.__version__, transformers.__version__]
    return hashlib.sha256(json.dumps([settings, versions], sort_keys=True).encode()).hexdigest()


def remarks(splits: Mapping[str, Encoded], tokenizer: Any) -> list[str]:
    """Return what a user should know of the encoding of a task's splits, as sentences."""
    own, total = sum(e.own_begin for e in splits.values()), sum(map(len, splits.values()))
    if not own:
        return []
    token = tokenizer.convert_ids_to_tokens(tokenizing.begin(tokenizer))
    return [f"{own} of {total} texts begin with {token} themselves; the tokenizer's own is not put before it"]


def _encode_classified(name: str, kind: str, examples: Sequence[Example], tokenizer: Any, max_length: int) -> Encoded:
    texts = [e.text for e in examples]
    pairs = None
    if any(e.pair is not None for e in examples):
        # a tokenizer without a separator token would join the two texts without a gap
        separator = "" if tokenizer.sep_token else "\n"
        pairs = [separator + (e.pair or "") for e in examples]
    ids, types, own = tokenizing.framed(name, tokenizer, texts, pairs, max_length)
    _check_not_empty(ids, examples, name)
    has_types = pairs is not None and tokenizer.sep_token and types is not None
    dtype = np.float32 if kind == "regression" else np.int64
    labels = np.asarray([e.label for e in examples], dtype=dtype)
    lost = tokenizing.lost(name, tokenizer, ids, texts, pairs, max_length)
    return Encoded(ids, types if has_types else None, labels, None, _lengths(ids), own_begin=own, lost=lost)


def _encode_seq2seq(name: str, examples: Sequence[Example], tokenizer: Any, max_length: int) -> Encoded:
    """Encode prompts for an encoder and answers for a decoder. `ids` holds each prompt followed by its answer."""
    end = tokenizing.end_of_text(tokenizer)
    texts = [e.text for e in examples]
    prompts, _, own = tokenizing.framed(name, tokenizer, texts, None, max_length)
    _check_not_empty(prompts, examples, name)
    references = tokenizing.tokenised(name, tokenizer, [e.references[0] for e in examples], add_special_tokens=False)
    ids, lost_answer = list[Array](), list[int]()
    for prompt, out in zip(prompts, references, strict=True):
        answer = tokenizing.ended(out["input_ids"], end)
        ids.append(np.concatenate([prompt, np.asarray(answer[:max_length], dtype=np.int32)]))
        lost_answer.append(max(0, len(answer) - max_length))
    lost = tokenizing.lost(name, tokenizer, prompts, texts, None, max_length)
    return Encoded(
        ids, None, None, _lengths(prompts), _lengths(ids), own_begin=own, lost=lost, lost_answer=_integers(lost_answer)
    )


def _encode_causal(
    name: str, examples: Sequence[Example], tokenizer: Any, max_length: int, prompt_length: int | None
) -> Encoded:
    """Encode prompts and answers for a causal model."""
    end, begin = tokenizing.end_of_text(tokenizer), tokenizer.bos_token_id
    adds, most = tokenizing.adds_first(tokenizer, begin), getattr(tokenizer, "model_max_length", None)
    answers = [e.references[0] if e.text[-1:].isspace() else " " + e.references[0] for e in examples]
    prompts = tokenizing.tokenised(name, tokenizer, [e.text for e in examples], add_special_tokens=False)
    ids, starts, own = list[Array](), list[int](), 0
    lost, lost_answer = list[int](), list[int]()
    for prompted, answered in zip(
        prompts, tokenizing.tokenised(name, tokenizer, answers, add_special_tokens=False), strict=True
    ):
        prompt, answer = prompted["input_ids"], tokenizing.ended(answered["input_ids"], end)
        brings = begin is not None and prompt[:1] == [begin]
        opening = [begin] if adds or brings else []  # it stays where the prompt's beginning is truncated
        own += adds and brings
        own_length = None if prompt_length is None else prompt_length - len(opening)
        kept, kept_answer = _truncate(prompt[brings:], answer, max_length - len(opening), own_length)
        ids.append(np.asarray([*opening, *kept, *kept_answer][:most], dtype=np.int32))
        starts.append(len(opening) + len(kept))
        lost.append(len(prompt[brings:]) - len(kept))
        lost_answer.append(len(answer) - (len(ids[-1]) - starts[-1]))
    start, prompt_lost, answer_lost = map(_integers, (starts, lost, lost_answer))
    return Encoded(ids, None, None, start, _lengths(ids), own_begin=own, lost=prompt_lost, lost_answer=answer_lost)


def _truncate(
    prompt: list[int], answer: list[int], length: int, prompt_length: int | None = None
) -> tuple[list[int], list[int]]:
    """Truncate prompt and answer to `length` tokens in all: first the prompt's beginning, down to half the length.

    With a length of its own, the prompt does not depend on the answer, and both may have more than `length` together.
    """
    if prompt_length is not None:
        prompt = prompt[max(0, len(prompt) - prompt_length) :]
    if len(prompt) + len(answer) <= length:
        return prompt, answer
    # a truncated answer has no end-of-text token, so that the network does not learn to end there
    answer_part = answer[: max(length - len(prompt), length - length // 2)]
    room = len(prompt) if prompt_length is not None else length - len(answer_part)
    return prompt[len(prompt) - min(len(prompt), room) :], answer_part


def _check_not_empty(ids: list[Array], examples: Sequence[Example], name: str) -> None:
    for row, e in zip(ids, examples, strict=True):
        if not len(row):
            raise UserError(f"task {name}: the tokenizer makes nothing of the text {e.text[:60]!r}; leave the row out")


def _lengths(ids: list[Array]) -> Array:
    return _integers([len(row) for row in ids])


def _integers(values: Sequence[int]) -> Array:
    return np.asarray(values, dtype=np.int64)


def _save(path: Path, splits: Mapping[str, Encoded]) -> None:
    arrays: dict[str, Array] = {}
    for split, encoded in splits.items():
        arrays |= {f"{split}.{key}": value for key, value in _packed(encoded).items()}
    with path.open("wb") as f:
        np.savez(f, allow_pickle=False, **arrays)


def _read(path: Path, sizes: Mapping[str, int]) -> dict[str, Encoded]:
    """Read the splits, which have so many examples.

    Raises:
        UserError: the file is damaged. (An OSError says that it could not be read, which is not its fault.)
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            splits = {split: _unpacked(stored, split) for split in sizes}
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"the token cache {path} is damaged: {error}") from error
    for split, encoded in splits.items():
        tokens = sum(len(row) for row in encoded.ids)
        if len(encoded) != sizes[split] or tokens != int(encoded.lengths.sum()):
            raise UserError(f"the token cache {path} is damaged: its split {split} is not that of the task")
    return splits


def _packed(encoded: Encoded) -> dict[str, Array]:
    """Concatenate the arrays of a split, to be stored. Fields that are None are left out."""
    packed: dict[str, Array] = {
        "ids": np.concatenate(encoded.ids),
        "lengths": encoded.lengths,
        "own_begin": np.asarray(encoded.own_begin),
    }
    if encoded.types is not None:
        packed["types"] = np.concatenate(encoded.types)
    fields = {name: getattr(encoded, name) for name in _ARRAYS}
    return packed | {name: value for name, value in fields.items() if value is not None}


def _unpacked(stored: Mapping[str, Array], split: str) -> Encoded:
    """Undo `_packed`."""

    def get(key: str) -> Array | None:
        return stored.get(f"{split}.{key}")

    lengths = stored[f"{split}.lengths"]
    cuts = np.cumsum(lengths)[:-1]
    types = get("types")
    return Encoded(
        ids=np.split(stored[f"{split}.ids"], cuts),
        types=None if types is None else np.split(types, cuts),
        labels=get("labels"),
        answer_start=get("answer_start"),
        lengths=lengths,
        own_begin=int(stored[f"{split}.own_begin"]),
        lost=get("lost"),
        lost_answer=get("lost_answer"),
    )
