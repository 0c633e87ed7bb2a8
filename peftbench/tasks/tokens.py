"""Texts -> token ids, once: cached by the fingerprints of dataset and tokenizer and by the maximal length.

Classification and regression: one or two texts with the tokenizer's own special tokens, cut by the tokenizer from the
longer text. Generation: prompt + answer + end-of-text; the prompt loses its beginning before the answer loses
anything, and the answer always keeps at least half of the room. Generation by an encoder and a decoder: the prompt as
the tokenizer frames and cuts it, and answer + end-of-text, each with the whole length for itself.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from peftbench import cache
from peftbench.errors import UserError
from peftbench.tasks.dataset import SPLITS, Dataset, Example

VERSION = 1  # raise when the same input would be encoded differently: it is part of the cache's key
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Encoded:
    """One split as token ids, in the dataset's order; lists have one int32 array an example."""

    ids: list[Array]
    types: list[Array] | None  # segment numbers, where the tokenizer's model has them and there are two texts
    labels: Array | None  # (n,) int64 classes or float32 values; None for generation
    answer_start: Array | None  # (n,) generation: index of the first token of the answer
    lengths: Array  # (n,) int64
    decoder_start: int | None = (
        None  # the decoder's first token, where prompts go to an encoder and answers to a decoder
    )

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    dataset: Dataset, tokenizer: Any, max_length: int, cache_dir: Path, decoder_start: int | None = None
) -> dict[str, Encoded]:
    """The three splits, by name; from `cache_dir` where they were encoded before.

    tokenizer: any transformers tokenizer; decoder_start: the network's `Backbone.decoder_start`. Raises UserError for a
    length or a tokenizer that cannot serve.
    """
    most = getattr(tokenizer, "model_max_length", None)
    if max_length < 8 or (most is not None and max_length > most):
        raise UserError(f"max_length must be from 8 to {most or 'the longest input of the model'}, not {max_length}")
    asked = [VERSION, dataset.fingerprint, fingerprint(tokenizer), max_length]
    if decoder_start is not None:
        asked.append("encoder and decoder")
    path = cache_dir / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}.npz"

    def write(part: Path) -> None:
        arrays: dict[str, Array] = {}
        for split in SPLITS:
            examples = dataset.split(split)
            encoded = encode_examples(dataset.name, dataset.kind, examples, tokenizer, max_length, decoder_start)
            arrays |= {f"{split}.{key}": value for key, value in _packed(encoded).items()}
        with part.open("wb") as f:
            np.savez(f, allow_pickle=False, **arrays)

    cache.file(path, write)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {split: replace(_unpacked(stored, split), decoder_start=decoder_start) for split in SPLITS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"the token cache {path} is damaged ({error}); delete it and run again") from error


def encode_examples(
    name: str,
    kind: str,
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    decoder_start: int | None = None,
) -> Encoded:
    """Examples of a task of this kind as token ids. `name` is what messages call the task."""
    if kind != "generation":
        return _classified(name, kind, examples, tokenizer, max_length)
    if decoder_start is None:
        return _prompted(examples, tokenizer, max_length)
    found = _prompted_apart(name, examples, tokenizer, max_length)
    return replace(found, decoder_start=decoder_start)


def fingerprint(tokenizer: Any) -> str:
    """sha256 of all that decides the ids: the tokenizer's rules, vocabulary, special tokens, library versions."""
    import tokenizers
    import transformers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # left over from the last call
            rules.pop(state, None)
    else:
        rules = sorted(tokenizer.get_vocab().items())
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    settings = [type(tokenizer).__name__, rules, special, list(tokenizer.model_input_names)]
    versions = [tokenizers.__version__, transformers.__version__]
    return hashlib.sha256(json.dumps([settings, versions], sort_keys=True).encode()).hexdigest()


def _classified(name: str, kind: str, examples: Sequence[Example], tokenizer: Any, max_length: int) -> Encoded:
    texts = [e.text for e in examples]
    pairs = None
    if any(e.pair is not None for e in examples):
        # a tokenizer without a separator would glue the two texts together
        mark = "" if tokenizer.sep_token else "\n"
        pairs = [mark + (e.pair or "") for e in examples]
    out = tokenizer(texts, pairs, truncation=True, max_length=max_length, padding=False)
    ids = [np.asarray(row, dtype=np.int32) for row in out["input_ids"]]
    _nothing_empty(ids, examples, name)
    types = None
    if pairs is not None and tokenizer.sep_token and "token_type_ids" in tokenizer.model_input_names:
        types = [np.asarray(row, dtype=np.int32) for row in out["token_type_ids"]]
    dtype = np.float32 if kind == "regression" else np.int64
    labels = np.asarray([e.label for e in examples], dtype=dtype)
    return Encoded(ids, types, labels, None, _lengths(ids))


def _end(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError(f"{type(tokenizer).__name__} has no end-of-text token, which generation needs; set eos_token")
    return int(tokenizer.eos_token_id)


def _prompted_apart(name: str, examples: Sequence[Example], tokenizer: Any, max_length: int) -> Encoded:
    """Prompts for an encoder, answers for a decoder; one after the other in `ids`."""
    end = _end(tokenizer)
    prompts = tokenizer([e.text for e in examples], truncation=True, max_length=max_length, padding=False)["input_ids"]
    answers = tokenizer([e.references[0] for e in examples], add_special_tokens=False, padding=False)["input_ids"]
    _nothing_empty([np.asarray(prompt) for prompt in prompts], examples, name)
    told = [[*answer, end][:max_length] for answer in answers]
    ids = [np.asarray([*prompt, *answer], dtype=np.int32) for prompt, answer in zip(prompts, told, strict=True)]
    starts = np.asarray([len(prompt) for prompt in prompts], dtype=np.int64)
    return Encoded(ids, None, None, starts, _lengths(ids))


def _prompted(examples: Sequence[Example], tokenizer: Any, max_length: int) -> Encoded:
    end = _end(tokenizer)
    begin = tokenizer.bos_token_id
    # the beginning-of-text token only where the tokenizer itself puts one
    opening = [begin] if begin is not None and tokenizer("")["input_ids"][:1] == [begin] else []
    answers = [e.references[0] if e.text[-1:].isspace() else " " + e.references[0] for e in examples]
    prompt_ids = tokenizer([e.text for e in examples], add_special_tokens=False, padding=False)["input_ids"]
    answer_ids = tokenizer(answers, add_special_tokens=False, padding=False)["input_ids"]
    ids, starts = [], []
    for prompt, answer in zip(prompt_ids, answer_ids, strict=True):
        kept, told = _fit(prompt, [*answer, end], max_length - len(opening))
        ids.append(np.asarray([*opening, *kept, *told], dtype=np.int32))
        starts.append(len(opening) + len(kept))
    return Encoded(ids, None, None, np.asarray(starts, dtype=np.int64), _lengths(ids))


def _fit(prompt: list[int], answer: list[int], room: int) -> tuple[list[int], list[int]]:
    """Prompt and answer cut to `room` tokens together: first the prompt's beginning, down to half of the room."""
    if len(prompt) + len(answer) <= room:
        return prompt, answer
    told = answer[: max(room - len(prompt), room - room // 2)]  # cut short, it has no end-of-text: it has not ended
    return prompt[len(prompt) - min(len(prompt), room - len(told)) :], told


def _nothing_empty(ids: list[Array], examples: Sequence[Example], name: str) -> None:
    for row, e in zip(ids, examples, strict=True):
        if not len(row):
            raise UserError(f"task {name}: the tokenizer makes nothing of the text {e.text[:60]!r}; leave the row out")


def _lengths(ids: list[Array]) -> Array:
    return np.asarray([len(row) for row in ids], dtype=np.int64)


def _packed(encoded: Encoded) -> dict[str, Array]:
    out = {"ids": np.concatenate(encoded.ids), "lengths": encoded.lengths}
    if encoded.types is not None:
        out["types"] = np.concatenate(encoded.types)
    if encoded.labels is not None:
        out["labels"] = encoded.labels
    if encoded.answer_start is not None:
        out["answer_start"] = encoded.answer_start
    return out


def _unpacked(stored: Mapping[str, Array], split: str) -> Encoded:
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
    )
