"""Which examples go together: batches of similar length, in an order that depends on the seed alone.

Plain shuffling pads every batch to its longest example (on RTE at batch 16: about twice the real tokens). Here the
shuffled stream is cut into pools of 20 batches; each pool is sorted by length, cut into batches, and its batches are
shuffled again. Randomness stays (the pool's members and the batches' order), the padding goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from peftbench.tasks.tokens import Array, Encoded

if TYPE_CHECKING:
    from torch import Tensor

POOL = 20  # batches
IGNORE = -100  # the label that the loss leaves out


def order(lengths: Sequence[int] | Array, batch_size: int, count: int, seed: int) -> list[Array]:
    """The first `count` training batches, each of `batch_size` indices into `lengths`.

    Epochs are chained: every example comes once before any comes again (within the cut into pools), and every batch is
    full. A larger `count` continues the same sequence.
    """
    if count < 0:
        raise ValueError(f"order needs a number of batches, not {count}")
    return list(islice(endless(lengths, batch_size, seed), count))


def endless(lengths: Sequence[int] | Array, batch_size: int, seed: int) -> Iterator[Array]:
    """The sequence that `order` begins, without end."""
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
    """All indices once, longest first, so that a batch that does not fit into memory shows at once."""
    by_length = np.argsort(-np.asarray(lengths), kind="stable")
    return [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]


def widest(lengths: Sequence[int] | Array, batches: Sequence[Array]) -> int:
    """The index of the batch with the most tokens, padding included; not the first one, unless it is alone.

    Its step is the one whose memory is tracked, and the first step still makes the optimiser's state.
    """
    sizes = np.asarray(lengths)
    return max(range(len(batches)), key=lambda i: (i > 0, len(batches[i]) * int(sizes[batches[i]].max())))


def padded(lengths: Sequence[int] | Array, batches: Sequence[Array]) -> tuple[int, int]:
    """(real tokens, tokens with padding) of the batches."""
    sizes = np.asarray(lengths)
    return sum(int(sizes[b].sum()) for b in batches), sum(int(sizes[b].max()) * len(b) for b in batches)


def collate(encoded: Encoded, indices: Sequence[int] | Array, pad_id: int, side: str = "right") -> dict[str, Tensor]:
    """The batch as tensors: input_ids, attention_mask (B, L) int64, token_type_ids where there are any, labels.

    labels: (B,) classes or values; for generation (B, L), the ids of the answer and IGNORE on prompt and padding.
    With a decoder of its own, answers come apart from prompts; see `_answers`.
    """
    import torch

    if encoded.decoder_start is not None:
        return prompts(encoded, indices, pad_id) | _answers(encoded, indices, pad_id)
    rows = [encoded.ids[i] for i in indices]
    batch = _padded(rows, pad_id, side)
    if encoded.types is not None:
        batch["token_type_ids"] = _padded([encoded.types[i] for i in indices], 0, side)["input_ids"]
    if encoded.answer_start is not None:
        told = [
            np.where(np.arange(len(row)) < encoded.answer_start[i], IGNORE, row)
            for i, row in zip(indices, rows, strict=True)
        ]
        batch["labels"] = _padded(told, IGNORE, side)["input_ids"]
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    if encoded.labels is not None:
        tensors["labels"] = torch.from_numpy(encoded.labels[np.asarray(indices)])
    return tensors


def prompts(encoded: Encoded, indices: Sequence[int] | Array, pad_id: int) -> dict[str, Tensor]:
    """The prompts alone: input_ids, attention_mask (B, L) int64; padded on the left, as generation by a causal model
    needs them, or on the right for an encoder.
    """
    import torch

    if encoded.answer_start is None:
        raise ValueError("only generation tasks have prompts")
    rows = [encoded.ids[i][: encoded.answer_start[i]] for i in indices]
    side = "left" if encoded.decoder_start is None else "right"
    return {name: torch.from_numpy(value) for name, value in _padded(rows, pad_id, side).items()}


def _answers(encoded: Encoded, indices: Sequence[int] | Array, pad_id: int) -> dict[str, Tensor]:
    """decoder_input_ids and labels (B, L) int64. A decoder is a causal model whose prompt is its first token.

    So labels lie as a causal model's do, each beside its own token, and the loss need not know which network it is; the
    price is one place more, at the end, from which nothing is predicted.
    """
    import torch

    first, starts = encoded.decoder_start, encoded.answer_start
    assert first is not None
    assert starts is not None  # a generation task
    rows = [np.append(first, encoded.ids[i][starts[i] :]) for i in indices]
    told = [np.append(IGNORE, row[1:]) for row in rows]
    return {
        "decoder_input_ids": torch.from_numpy(_padded(rows, pad_id, "right")["input_ids"]),
        "labels": torch.from_numpy(_padded(told, IGNORE, "right")["input_ids"]),
    }


def _padded(rows: Sequence[Array], fill: int, side: str) -> dict[str, Any]:
    if side not in ("left", "right"):
        raise ValueError(f"side must be left or right, not {side!r}")
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), fill, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where], mask[i, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}
