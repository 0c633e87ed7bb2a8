"""What a model's tokenizer makes of a task's texts, from the tokenizer alone; no network is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from peftbench import cache, tasks
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.records.data_summary import DataSummary
from peftbench.records.spec import BackboneSpec, TaskSpec, digest
from peftbench.tasks import Dataset, tokens
from peftbench.tasks.tokens import Encoded

Read = tuple[Dataset, dict[str, Encoded], Any]  # the dataset, its splits as token ids, the tokenizer


def mean_tokens(
    stores: Stores, backbone: BackboneSpec, task: TaskSpec, max_length: int, data_dir: Path | None = None
) -> float:
    """Return the mean number of tokens of a training example, without padding.

    Args:
        stores: The cache's stores.
        backbone: The backbone whose tokenizer counts.
        task: The task.
        max_length: Number of tokens at which texts are truncated.
        data_dir: Directory of the data sets, if given.

    Raises:
        UserError: The data changed since the plan was made, or the tokenizer does not load.
    """

    def count(read: Read) -> float:
        return float(read[1]["train"].lengths.mean())

    return float(_answer(stores, backbone, task, max_length, data_dir, "mean", count))


def data_summary(
    stores: Stores, backbone: BackboneSpec, task: TaskSpec, max_length: int, data_dir: Path | None = None
) -> DataSummary:
    """Return what is done to a task's data before training. Arguments and errors are those of `mean_tokens`."""
    from peftbench.tasks.summary import summarise

    def summary(read: Read) -> Any:
        return msgspec.to_builtins(summarise(*read))

    return msgspec.convert(_answer(stores, backbone, task, max_length, data_dir, "summary", summary), DataSummary)


def _answer(
    stores: Stores,
    backbone: BackboneSpec,
    task: TaskSpec,
    max_length: int,
    data_dir: Path | None,
    question: str,
    of: Callable[[Read], Any],
) -> Any:
    """Return the stored answer to a question about the texts; read and encode them first if there is none."""
    code = cache.code_key("tasks", "backbones", "records")
    store = stores.open("tokens", digest({"code": code, "packages": cache.versions("transformers", "tokenizers")}))
    key = digest([question, backbone.fingerprint, task.fingerprint, task.version, dict(task.options), max_length])
    return store.get(key, lambda: of(_read(backbone, task, max_length, data_dir)))


def _read(backbone: BackboneSpec, task: TaskSpec, max_length: int, data_dir: Path | None) -> Read:
    from peftbench.backbones.tokenizers import tokenizer_and_start  # torch

    dataset = tasks.open_task(task.name, task.options, data_dir)
    if dataset.fingerprint != task.fingerprint:
        raise UserError(f"the data of {task.name} changed since the plan was made; run again")
    tokenizer, start = tokenizer_and_start(backbone.model, dataset.kind, backbone.revision)
    return dataset, tokens.encode(dataset, tokenizer, max_length, cache.root() / "tokens", start), tokenizer
