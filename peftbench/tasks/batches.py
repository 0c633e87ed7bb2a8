"""Batches of examples of similar length, in an order that depends only on the seed.

Plain shuffling pads each batch to its longest example: on RTE at batch size 16, to about twice the real tokens. Here
the shuffled examples are cut into pools of 20 batches. Each pool is sorted by length and cut into batches, which are
shuffled again. So the members of a pool and the order of its batches stay random, with little padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from peftbench.tasks.tokens import Array, Encoded

if TYPE_CHECKING:
    from torch import Tensor

POOL = 20  # batches in a pool
IGNORE = -100  # a label that the loss skips


def order(lengths: Sequence[int] | Array, batch_size: int, count: int, seed: int) -> list[Array]:
    """Return the first training batches.

    The epochs follow each other without a gap, so that every batch is full. Apart from the sorting within a pool, each
    example occurs once in an epoch. A larger `count` continues the same sequence.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch.
        count: the number of batches.
        seed: decides the order.

    Returns:
        `count` arrays of indices into `lengths`, each (batch_size,).

    Raises:
        ValueError: the count or the batch size is too small, or there are no examples.
    """
    if count < 0:
        raise ValueError(f"order needs a number of batches, not {count}")
    return list(islice(endless(lengths, batch_size, seed), count))


def endless(lengths: Sequence[int] | Array, batch_size: int, seed: int) -> Iterator[Array]:
    """Yield the endless sequence of batches that `order` begins. The arguments are those of `order`."""
    sizes = np.asarray(lengths)
    if batch_size < 1 or not len(sizes):
        raise ValueError(f"order needs examples and a batch size, not {len(sizes)} and {batch_size}")
    draw = np.random.Generator(np.random.PCG64(seed))
    left = np.empty(0, dtype=np.int64)
    while True:
        while len(left) < POOL * batch_size:
            left = np.concatenate([left, draw.permutation(len(sizes))])
        pool, left = left[: POOL * batch_size], left[POOL * batch_size :]
        rows = pool[np.argsort(sizes[pool], kind="stable")].reshape(POOL, batch_size)
        yield from rows[draw.permutation(POOL)]


def evaluation(lengths: Sequence[int] | Array, batch_size: int) -> list[Array]:
    """Return batches with each index once, longest examples first.

    With the longest examples first, a lack of memory shows at the first batch.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch; the last batch may have fewer.
    """
    by_length = np.argsort(-np.asarray(lengths), kind="stable")
    return [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]


def widest(lengths: Sequence[int] | Array, batches: Sequence[Array]) -> int:
    """Return the index of the batch with the most tokens, padding included, without the first batch.

    The memory tracker follows the step on this batch. The first step would miss the optimiser state, which it creates.
    The first batch is the result only if it is the only one.

    Args:
        lengths: tokens of each example.
        batches: batches of indices into `lengths`.
    """
    sizes = np.asarray(lengths)
    return max(range(len(batches)), key=lambda i: (i > 0, len(batches[i]) * int(sizes[batches[i]].max())))


def padded(lengths: Sequence[int] | Array, batches: Sequence[Array]) -> tuple[int, int]:
    """Count the tokens of batches.

    Args:
        lengths: tokens of each example.
        batches: batches of indices into `lengths`.

    Returns:
        The number of real tokens, and the number with padding.
    """
    sizes = np.asarray(lengths)
    return sum(int(sizes[b].sum()) for b in batches), sum(int(sizes[b].max()) * len(b) for b in batches)


def collate(encoded: Encoded, indices: Sequence[int] | Array, pad_id: int, side: str = "right") -> dict[str, Tensor]:
    """Pad the chosen examples to a batch of tensors.

    Args:
        encoded: a split as token ids.
        indices: the B examples of the batch.
        pad_id: the token id of padding.
        side: "right" or "left", where the padding goes.

    Returns:
        `input_ids` and `attention_mask`, each (B, L) int64; `token_type_ids` (B, L) if the split has segment numbers;
        `labels`: (B,) classes or values, or for generation (B, L) with the answer's ids and IGNORE elsewhere. For an
        encoder-decoder network, `input_ids` holds the prompt, and `decoder_input_ids` and `labels` (B, L') the answer.
    """
    import torch

    if encoded.decoder_start is not None:
        return prompts(encoded, indices, pad_id) | _answers(encoded, indices, pad_id)
    rows = [encoded.ids[i] for i in indices]
    batch = _padded(rows, pad_id, side)
    if encoded.types is not None:
        batch["token_type_ids"] = _padded([encoded.types[i] for i in indices], 0, side)["input_ids"]
    if encoded.answer_start is not None:
        answers = [
            np.where(np.arange(len(row)) < encoded.answer_start[i], IGNORE, row)
            for i, row in zip(indices, rows, strict=True)
        ]
        batch["labels"] = _padded(answers, IGNORE, side)["input_ids"]
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    if encoded.labels is not None:
        tensors["labels"] = torch.from_numpy(encoded.labels[np.asarray(indices)])
    return tensors


def prompts(encoded: Encoded, indices: Sequence[int] | Array, pad_id: int) -> dict[str, Tensor]:
    """Pad the prompts of the chosen examples to a batch of tensors, without the answers.

    A causal model generates from prompts that are padded on the left; an encoder reads prompts padded on the right.

    Args:
        encoded: a split of a generation task as token ids.
        indices: the B examples of the batch.
        pad_id: the token id of padding.

    Returns:
        `input_ids` and `attention_mask`, each (B, L) int64.

    Raises:
        ValueError: the split is not of a generation task.
    """
    import torch

    if encoded.answer_start is None:
        raise ValueError("only generation tasks have prompts")
    rows = [encoded.ids[i][: encoded.answer_start[i]] for i in indices]
    side = "left" if encoded.decoder_start is None else "right"
    return {name: torch.from_numpy(value) for name, value in _padded(rows, pad_id, side).items()}


def _answers(encoded: Encoded, indices: Sequence[int] | Array, pad_id: int) -> dict[str, Tensor]:
    """Return `decoder_input_ids` and `labels`, each (B, L) int64, of an encoder-decoder network.

    The decoder is treated as a causal model whose prompt is its first token. Each label has the position of its own
    token, as for a causal model, so that one loss serves both. The last position predicts nothing.
    """
    import torch

    first, starts = encoded.decoder_start, encoded.answer_start
    assert first is not None
    assert starts is not None  # a generation task
    rows = [np.append(first, encoded.ids[i][starts[i] :]) for i in indices]
    labels = [np.append(IGNORE, row[1:]) for row in rows]
    return {
        "decoder_input_ids": torch.from_numpy(_padded(rows, pad_id, "right")["input_ids"]),
        "labels": torch.from_numpy(_padded(labels, IGNORE, "right")["input_ids"]),
    }


def _padded(rows: Sequence[Array], fill: int, side: str) -> dict[str, Any]:
    """Pad rows to the longest one: `input_ids` and `attention_mask`, each (rows, longest) int64."""
    if side not in ("left", "right"):
        raise ValueError(f"side must be left or right, not {side!r}")
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), fill, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where], mask[i, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}
