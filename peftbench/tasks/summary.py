"""Summarise what was done to a task's data: classes, copies, and what truncation took from the texts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftbench.records.data_summary import DataSummary, SplitSummary
from peftbench.tasks import splits, tokens
from peftbench.tasks.dataset import SPLITS, Dataset, Example
from peftbench.tasks.tokens import Array, Encoded


def summarise(dataset: Dataset, encoded: Mapping[str, Encoded], tokenizer: Any) -> DataSummary:
    """Summarise the splits of a dataset as a network reads them.

    Args:
        dataset: the dataset.
        encoded: its splits as token ids. A split that is not among them is left out.
        tokenizer: the tokenizer that encoded them.
    """
    present = [split for split in SPLITS if split in encoded]
    causal = dataset.kind == "generation" and all(e.decoder_start is None for e in encoded.values())
    return DataSummary(
        classes=list(dataset.labels),
        splits={s: _split(dataset.split(s), encoded[s], len(dataset.labels)) for s in present},
        cut_from="beginning" if causal or tokenizer.truncation_side == "left" else "end",
        doubled=_doubled([encoded[s] for s in present], tokenizer),
        notes=[*dataset.notes, *tokens.remarks(encoded, tokenizer)],
    )


def _split(examples: Sequence[Example], encoded: Encoded, classes: int) -> SplitSummary:
    counts = Counter(e.label for e in examples)
    texts = [_read(e) for e in examples]
    labels: dict[tuple[str, ...], set[Any]] = defaultdict(set)
    for text, e in zip(texts, examples, strict=True):
        labels[text].add(e.label)
    lost, lost_answer = _counts(encoded.lost, len(examples)), _counts(encoded.lost_answer, len(examples))
    return SplitSummary(
        rows=len(examples),
        per_class=[counts[i] for i in range(classes)],
        copies=len(examples) - len(labels),
        contradictory=sum(len(labels[text]) > 1 for text in texts) if classes else 0,
        tokens=sum(map(int, encoded.lengths)) + sum(lost) + sum(lost_answer),
        longest=max(_whole(encoded, lost, lost_answer)),
        cut_texts=sum(n > 0 for n in lost),
        cut_tokens=sum(lost),
        cut_answers=sum(n > 0 for n in lost_answer),
        cut_answer_tokens=sum(lost_answer),
    )


def _read(e: Example) -> tuple[str, ...]:
    """Return what an example has in common with its copies: its texts, and its references if it has any."""
    return (splits.by_content(e), *map(splits.normal, e.references))


def _counts(values: Array | None, n: int) -> list[int]:
    return [0] * n if values is None else [int(v) for v in values]


def _whole(encoded: Encoded, lost: Sequence[int], lost_answer: Sequence[int]) -> Iterator[int]:
    """Yield the tokens of each example before truncation; with a decoder, of its prompt or its answer."""
    for i, length in enumerate(encoded.lengths.tolist()):
        if encoded.decoder_start is None or encoded.answer_start is None:
            yield length + lost[i] + lost_answer[i]
        else:
            start = int(encoded.answer_start[i])
            yield max(start + lost[i], length - start + lost_answer[i])


def _doubled(of: Sequence[Encoded], tokenizer: Any) -> dict[str, int]:
    """Count the examples that begin or end with the same frame token twice: a template and the tokenizer add it."""
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    special = {getattr(tokenizer, name) for name in names}
    found: Counter[int] = Counter()
    for encoded in of:
        for parts in _parts(encoded):
            pairs = [pair for ids in parts for pair in (ids[:2].tolist(), ids[-2:].tolist()) if len(ids) > 1]
            found.update({first for first, second in pairs if first == second and first in special})
    return {str(tokenizer.convert_ids_to_tokens(token)): n for token, n in sorted(found.items())}


def _parts(encoded: Encoded) -> Iterator[list[Array]]:
    """Yield what a network reads in one piece: the example, or with a decoder its prompt and its answer."""
    for i, ids in enumerate(encoded.ids):
        if encoded.decoder_start is None or encoded.answer_start is None:
            yield [ids]
        else:
            yield [ids[: encoded.answer_start[i]], ids[encoded.answer_start[i] :]]
