"""What a prepared task is: examples in three splits, a fingerprint of their content, and the facts that plans need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, unknown

SPLITS = ("train", "validation", "test")
KINDS = ("classification", "regression", "generation")

Options = Mapping[str, Any]


class TaskUnavailable(UserError):
    """The task's data cannot be had on this machine; the message names the remedies. A stand-in may run instead."""


@dataclass(frozen=True)
class Example:
    """One input and its answer.

    label: class index, or the value of a regression; None for generation, where `text` is the prompt, `references[0]`
    the answer trained on, and all references count for BLEU and ROUGE-L.
    """

    id: str  # first 16 hex digits of the sha256 of the content; unique within its split
    text: str
    pair: str | None = None
    label: int | float | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A task, ready to be tokenised. `labels` are the classes' names in index order (empty otherwise)."""

    name: str
    kind: str
    labels: tuple[str, ...]
    metric: str  # the primary one
    metrics: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    fingerprint: str  # sha256 of kind, labels and all examples in order
    licence: str
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[Example, ...]:
        """The examples of "train", "validation" or "test"."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


@dataclass(frozen=True)
class TaskOption:
    """A key of a task in an experiment file: what it means, what holds where it is left out, and whether it may be."""

    name: str
    what: str
    default: str = ""  # in words; empty where the option is required or nothing takes its place
    required: str = "no"  # "yes", "no", or for what: "for generation"


ROW_LIMITS = tuple(
    TaskOption(f"limit_{split}", f"rows of the {split} split that are used, chosen by hash", "all rows")
    for split in SPLITS
)
LIMITS = tuple(o.name for o in ROW_LIMITS)  # options that every task takes


@dataclass(frozen=True)
class TaskCard:
    """What is known about a task before its data is opened."""

    name: str
    kind: str
    metrics: tuple[str, ...]  # the primary one first
    licence: str
    source: str
    what: str
    labels: tuple[str, ...] = ()
    version: int = 1  # raised when the preparation changes, so that old records are not taken for the new task's
    options: tuple[TaskOption, ...] = ROW_LIMITS
    metrics_by_kind: Mapping[str, Sequence[str]] = field(default_factory=dict)  # where the options choose the kind

    @property
    def metric(self) -> str:
        return self.metrics[0]


Opener = Callable[[TaskCard, Options, Path | None], Dataset]


def example(
    text: str, pair: str | None = None, label: int | float | None = None, references: Sequence[str] = ()
) -> Example:
    """An Example whose id is the hash of its content."""
    return Example(_hash([text, pair, label, list(references)])[:16], text, pair, label, tuple(references))


def dataset(
    card: TaskCard,
    splits: Mapping[str, Sequence[Example]],
    options: Options,
    *,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """The finished Dataset: limits applied, ids made unique, no split empty, fingerprint taken."""
    named = name or card.name
    final: dict[str, tuple[Example, ...]] = {}
    for split in SPLITS:
        rows = _limited(splits[split], _limit(options, f"limit_{split}", named))
        if not rows:
            raise UserError(f"task {named}: the {split} split is empty; give it at least one row")
        final[split] = _unique(rows)
    names = tuple(card.labels if labels is None else labels)
    content = hashlib.sha256(json.dumps([card.kind, names, card.metrics]).encode())
    for split in SPLITS:
        content.update(split.encode())
        for e in final[split]:
            content.update(_canonical([e.id, e.text, e.pair, e.label, list(e.references)]))
    return Dataset(
        name=named,
        kind=card.kind,
        labels=names,
        metric=card.metric,
        metrics=card.metrics,
        fingerprint=content.hexdigest(),
        licence=card.licence,
        notes=tuple(notes),
        **final,
    )


def check_options(name: str, options: Options, valid: Sequence[str] = ()) -> None:
    """Raise UserError for an option that the task does not have."""
    for key in options:
        if key not in (*valid, *LIMITS):
            raise unknown("option", key, (*valid, *LIMITS), where=f"task {name}")


def facts(prepared: Dataset) -> dict[str, Any]:
    """What planning needs to know, as plain JSON values; words are counted by white space over all splits."""
    examples = [e for split in SPLITS for e in prepared.split(split)]
    words = sum(len(s.split()) for e in examples for s in (e.text, e.pair or "", *e.references[:1]))
    return {
        "name": prepared.name,
        "kind": prepared.kind,
        "labels": list(prepared.labels),
        "metric": prepared.metric,
        "metrics": list(prepared.metrics),
        "rows": {split: len(prepared.split(split)) for split in SPLITS},
        "mean_words": round(words / len(examples), 2),
        "fingerprint": prepared.fingerprint,
        "licence": prepared.licence,
        "notes": list(prepared.notes),
    }


def _limit(options: Options, key: str, name: str) -> int | None:
    value = options.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"task {name}: {key} must be a whole number of at least 1, not {value!r}")
    return value


def _limited(rows: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """At most `limit` rows, chosen by hash (smaller limits choose subsets of larger ones), in their own order."""
    if limit is None or limit >= len(rows):
        return rows
    chosen = sorted(range(len(rows)), key=lambda i: (_hash(["limit", rows[i].id]), i))[:limit]
    return [rows[i] for i in sorted(chosen)]


def _unique(rows: Sequence[Example]) -> tuple[Example, ...]:
    """Give the second and further copies of an example ids of their own: predictions are stored by id."""
    seen: dict[str, int] = {}
    out = []
    for e in rows:
        copy = seen.get(e.id, 0)
        seen[e.id] = copy + 1
        out.append(replace(e, id=_hash([e.id, copy])[:16]) if copy else e)
    return tuple(out)


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def _hash(value: Any) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()
