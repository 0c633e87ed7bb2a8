"""What a tokenizer makes of many texts: in parts, and with one first and one last token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from peftbench.backbones import panics
from peftbench.errors import UserError
from peftbench.tasks import progress

AT_ONCE = 1024  # texts that are tokenised together: all at once would need gigabytes for a large task
Array = np.ndarray[Any, Any]


def framed(
    name: str, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> tuple[list[Array], list[Array] | None, int]:
    """Tokenise texts with the special tokens of the tokenizer, but not with two of the first one.

    Args:
        name: the task's name, for the progress bar.
        tokenizer: a tokenizer of transformers.
        texts: n texts.
        pairs: the n second texts, if there are any.
        max_length: the largest number of tokens of a text with its pair.

    Returns:
        The ids of each text, the segment numbers of each pair if the network has any, and how many texts began with the
        tokenizer's first token.
    """
    paired = pairs is not None and "token_type_ids" in tokenizer.model_input_names
    types: list[Array] | None = [] if paired else None
    ids = list[Array]()
    own, first = 0, begin(tokenizer)
    adds = adds_first(tokenizer, first)
    options = {"truncation": True, "return_token_type_ids": paired}
    for i, out in enumerate(tokenised(name, tokenizer, texts, pairs, max_length=max_length, **options)):
        keep = slice(None)
        if adds and out["input_ids"][:2] == [first, first]:
            own, keep = own + 1, slice(1, None)
            pair = None if pairs is None else pairs[i]
            out = called(tokenizer, texts[i], pair, max_length=max_length + 1, padding=False, **options)
        ids.append(np.asarray(out["input_ids"][keep], dtype=np.int32))
        if types is not None:
            types.append(np.asarray(out["token_type_ids"][keep], dtype=np.int32))
    return ids, types, own


def lost(
    name: str, tokenizer: Any, ids: Sequence[Array], texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> Array:
    """Count the tokens that truncation took from texts. Only a text that fills the length can have lost any.

    Args:
        name: the task's name, for the progress bar.
        tokenizer: the tokenizer.
        ids: the n truncated texts, as `framed` returns them.
        texts: the n texts.
        pairs: their second texts, if there are any.
        max_length: the largest number of tokens of a text with its pair.

    Returns:
        (n,) int64.
    """
    taken = np.zeros(len(ids), dtype=np.int64)
    full = [i for i, row in enumerate(ids) if len(row) >= max_length]
    first = begin(tokenizer)
    adds = bool(full) and adds_first(tokenizer, first)
    second = None if pairs is None else [pairs[i] for i in full]
    whole = tokenised(name, tokenizer, [texts[i] for i in full], second, verbose=False, return_token_type_ids=False)
    for i, out in zip(full, whole, strict=True):
        own = adds and out["input_ids"][:2] == [first, first]
        taken[i] = len(out["input_ids"]) - own - len(ids[i])
    return taken


def tokenised(
    name: str, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None = None, **options: Any
) -> Iterator[dict[str, list[int]]]:
    """Yield what the tokenizer makes of each text, by the name of the network's input.

    Args:
        name: the task's name, for the progress bar.
        tokenizer: a tokenizer of transformers.
        texts: n texts.
        pairs: the n second texts, if there are any.
        options: further arguments of the tokenizer.

    Raises:
        UserError: the tokenizer cannot read a text.
    """
    starts = range(0, len(texts), AT_ONCE)
    for start in progress.shown(starts, f"encoding {name}", each=AT_ONCE):
        part = slice(start, start + AT_ONCE)
        both = [list(texts[part]), None if pairs is None else list(pairs[part])]
        settings = {"padding": False, "return_attention_mask": False, **options}
        # one row alone first: a tokenizer that panics in a batch does so at every row before it is heard of
        lengths = [sum(map(len, row)) for row in zip(*filter(None, both), strict=True)]
        longest = lengths.index(max(lengths))
        called(tokenizer, *(column and column[longest] for column in both), **settings)
        out = called(tokenizer, *both, **settings)
        for values in zip(*out.values(), strict=True):
            yield dict(zip(out, values, strict=True))


def called(tokenizer: Any, *texts: Any, **options: Any) -> Any:
    """Return what a tokenizer makes of texts.

    Args:
        tokenizer: a tokenizer of transformers.
        texts: a text or a list of them, and the second ones, if there are any.
        options: further arguments of the tokenizer.

    Raises:
        UserError: its compiled part panics.
    """
    try:
        with panics.caught():
            return tokenizer(*texts, **options)
    except panics.PanicError as error:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        raise UserError(
            f"the tokenizer of backbone {name!r} cannot read the texts: {error}; simplify the patterns in its "
            "tokenizer.json, or give a model with another tokenizer"
        ) from error


def begin(tokenizer: Any) -> int | None:
    """Return the token that the tokenizer may put before a text; None if it has none."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    return None if token is None else int(token)


def adds_first(tokenizer: Any, first: int | None) -> bool:
    """Whether the tokenizer itself puts its first token before a text."""
    return first is not None and called(tokenizer, "")["input_ids"][:1] == [first]


def end_of_text(tokenizer: Any) -> int:
    """Return the token that ends an answer.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"{type(tokenizer).__name__} has no end-of-text token, which generation needs; set eos_token")
    return int(tokenizer.eos_token_id)


def ended(answer: list[int], end: int) -> list[int]:
    """Return the answer with the token that ends it, once."""
    return answer if answer[-1:] == [end] else [*answer, end]
