"""The dataset of a task: examples in three splits, and a fingerprint of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, shown, unknown

SPLITS = ("train", "validation", "test")
MOST_ROWS = 10**9  # of a split: more than fit into any memory
KINDS = ("classification", "regression", "generation")

Options = Mapping[str, Any]


class TaskUnavailable(UserError):
    """The task's data is not available on this machine. The message names the fixes. A stand-in may run instead."""


@dataclass(frozen=True)
class Example:
    """One input and its answer.

    Attributes:
        id: 16 hex digits of the sha256 of the content; unique within its split.
        text: the text; for generation, the prompt.
        pair: the second text, if the task has two.
        label: the class index or the value of a regression; None for generation.
        references: the answers of a generation task. Training uses the first; BLEU and ROUGE-L use all.
    """

    id: str
    text: str
    pair: str | None = None
    label: int | float | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A prepared task, ready to be tokenised.

    Attributes:
        name: the task's name; "local/NAME" for a user's own data.
        kind: one of `KINDS`.
        labels: the names of the classes in index order; empty without classes.
        metric: the primary metric.
        metrics: all metrics, the primary one first.
        train: the examples to train on.
        validation: the examples that choose checkpoints and tuned values.
        test: the examples of the reported scores.
        fingerprint: sha256 of kind, labels, metrics and all examples in order.
        licence: the licence of the data.
        notes: remarks about the preparation, such as the number of rows left out.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metric: str
    metrics: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    fingerprint: str
    licence: str
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[Example, ...]:
        """Return the examples of "train", "validation" or "test"."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


@dataclass(frozen=True)
class TaskOption:
    """A key of a task in an experiment file.

    Attributes:
        name: the key.
        what: what the key means.
        default: the default in words; empty if the option is required.
        required: "yes", "no", or when it is required, such as "for generation".
    """

    name: str
    what: str
    default: str = ""
    required: str = "no"


ROW_LIMITS = tuple(
    TaskOption(f"limit_{split}", f"rows of the {split} split that are used, chosen by hash", "all rows")
    for split in SPLITS
)
LIMITS = tuple(o.name for o in ROW_LIMITS)  # options that every task takes


@dataclass(frozen=True)
class TaskCard:
    """The description of a task, available without its data.

    Attributes:
        name: the task's name.
        kind: one of `KINDS`.
        metrics: all metrics, the primary one first.
        licence: the licence of the data.
        source: where the data comes from.
        what: the question that the task asks.
        labels: the names of the classes in index order; empty without classes.
        version: raised when the preparation changes, so that old records do not count as done.
        options: the keys that the task takes in an experiment file.
        metrics_by_kind: the metrics of each kind, if an option chooses the kind.
    """

    name: str
    kind: str
    metrics: tuple[str, ...]
    licence: str
    source: str
    what: str
    labels: tuple[str, ...] = ()
    version: int = 1
    options: tuple[TaskOption, ...] = ROW_LIMITS
    metrics_by_kind: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The primary metric."""
        return self.metrics[0]


Opener = Callable[[TaskCard, Options, Path | None], Dataset]


def example(
    text: str, pair: str | None = None, label: int | float | None = None, references: Sequence[str] = ()
) -> Example:
    """Make an `Example` whose id is the hash of its content."""
    return Example(_hash([text, pair, label, list(references)])[:16], text, pair, label, tuple(references))


def make_dataset(
    card: TaskCard,
    splits: Mapping[str, Sequence[Example]],
    options: Options,
    *,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Make a `Dataset`: apply the row limits, make the ids unique and compute the fingerprint.

    Args:
        card: the task's card.
        splits: the examples by split.
        options: the task's options, row limits among them.
        name: the dataset's name, if not the card's.
        labels: the names of the classes, if not the card's.
        notes: remarks about the preparation.

    Raises:
        UserError: a row limit is not valid, or a split is empty.
    """
    dataset_name = name or card.name
    final = {split: _final_rows(splits[split], split, options, dataset_name) for split in SPLITS}
    names = tuple(card.labels if labels is None else labels)
    return Dataset(
        name=dataset_name,
        kind=card.kind,
        labels=names,
        metric=card.metric,
        metrics=card.metrics,
        fingerprint=_fingerprint([card.kind, names, card.metrics], final),
        licence=card.licence,
        notes=tuple(notes),
        **final,
    )


def _final_rows(rows: Sequence[Example], split: str, options: Options, name: str) -> tuple[Example, ...]:
    """Apply the row limit of a split and make its ids unique."""
    limited = _limited(rows, _limit(options, f"limit_{split}", name))
    if not limited:
        raise UserError(f"task {name}: the {split} split is empty; give it at least one row")
    return _unique(limited)


def _fingerprint(header: list[Any], splits: Mapping[str, Sequence[Example]]) -> str:
    content = hashlib.sha256(json.dumps(header).encode())
    for split in SPLITS:
        content.update(split.encode())
        for e in splits[split]:
            content.update(_canonical([e.id, e.text, e.pair, e.label, list(e.references)]))
    return content.hexdigest()


def check_options(name: str, options: Options, valid: Sequence[str] = ()) -> None:
    """Check that a task has all the options that a file gives it.

    Args:
        name: the task's name.
        options: the options of the file.
        valid: the task's own options; the row limits are always valid.

    Raises:
        UserError: the task does not have an option.
    """
    for key in options:
        if key not in (*valid, *LIMITS):
            raise unknown("option", key, (*valid, *LIMITS), where=f"task {name}")


def facts(prepared: Dataset) -> dict[str, Any]:
    """Return the facts about a task that planning needs, as JSON values.

    `mean_words` counts words by white space, over all splits.
    """
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
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_ROWS):
        raise UserError(f"task {name}: {key} must be a whole number from 1 to {MOST_ROWS:,}, not {shown(value)}")
    return value


def _limited(rows: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """Choose at most `limit` rows by hash and keep their order. Smaller limits choose subsets of larger ones."""
    if limit is None or limit >= len(rows):
        return rows
    chosen = sorted(range(len(rows)), key=lambda i: (_hash(["limit", rows[i].id]), i))[:limit]
    return [rows[i] for i in sorted(chosen)]


def _unique(rows: Sequence[Example]) -> tuple[Example, ...]:
    """Give the repeated copies of an example ids of their own, because predictions are stored by id."""
    seen: dict[str, int] = {}
    unique = []
    for e in rows:
        copy = seen.get(e.id, 0)
        seen[e.id] = copy + 1
        unique.append(replace(e, id=_hash([e.id, copy])[:16]) if copy else e)
    return tuple(unique)


_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _canonical(value: Any) -> bytes:
    return _ENCODE(value).encode("utf-8", "surrogatepass")


def _hash(value: Any) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()
