"""A task's texts in a model's tokens, from the configuration and the tokenizer alone; no weights are read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from peftbench import cache, tasks
from peftbench.backbones.limits import Limits
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.records.data_summary import DataSummary
from peftbench.records.spec import BackboneSpec, TaskSpec, digest
from peftbench.tasks import text_limits, tokens
from peftbench.tasks.text_limits import TextFacts


def mean_tokens(
    stores: Stores, backbone: BackboneSpec, task: TaskSpec, max_length: int, data_dir: Path | None = None
) -> float:
    """Return the mean number of tokens of a training example, without padding.

    The arguments and errors are those of `facts`.
    """
    return facts(stores, backbone, task, max_length, data_dir)[0].mean


def facts(
    stores: Stores, backbone: BackboneSpec, task: TaskSpec, max_length: int, data_dir: Path | None = None
) -> tuple[TextFacts, Limits]:
    """Return the facts about a task's encoded texts, and the limits of the network that reads them.

    Args:
        stores: The cache's stores.
        backbone: The backbone whose tokenizer encodes.
        task: The task.
        max_length: Number of tokens at which texts are truncated.
        data_dir: Directory of the data sets, if given.

    Raises:
        UserError: The data changed since the plan was made, or the tokenizer does not load.
    """
    answer = _answer(stores, backbone, task, max_length, data_dir)
    return TextFacts(**answer["texts"]), Limits(**answer["network"])


def data_summary(
    stores: Stores, backbone: BackboneSpec, task: TaskSpec, max_length: int, data_dir: Path | None = None
) -> DataSummary:
    """Return what is done to a task's data before training. Arguments and errors are those of `facts`."""
    return msgspec.convert(_answer(stores, backbone, task, max_length, data_dir)["summary"], DataSummary)


def _answer(
    stores: Stores, backbone: BackboneSpec, task: TaskSpec, max_length: int, data_dir: Path | None
) -> dict[str, Any]:
    """Return all that is known of the texts, from one reading of them, which the stores keep."""
    code = cache.code_key("tasks", "backbones", "records")
    packages = cache.versions("torch", "transformers", "tokenizers")
    store = stores.open("texts", digest({"code": code, "packages": packages}))
    options = dict(task.options)
    key = digest([backbone.fingerprint, task.fingerprint, task.version, options, max_length, backbone.roles])
    answer: dict[str, Any] = store.get(key, lambda: _read(stores, backbone, task, max_length, data_dir))
    return answer


def _read(
    stores: Stores, backbone: BackboneSpec, task: TaskSpec, max_length: int, data_dir: Path | None
) -> dict[str, Any]:
    from peftbench.backbones.tokenizers import tokenizer_and_start  # transformers
    from peftbench.tasks.summary import summarise

    dataset = tasks.open_task(task.name, task.options, data_dir)
    if dataset.fingerprint != task.fingerprint:
        raise UserError(f"the data of {task.name} changed since the plan was made; run again")
    tokenizer, start = tokenizer_and_start(backbone.model, dataset.kind, backbone.pinned_revision)
    known = _limits(stores, backbone, dataset.kind, len(dataset.labels) or 1)
    encoded = tokens.encode(dataset, tokenizer, max_length, cache.root() / "tokens", start)
    examples = {split: dataset.split(split) for split in encoded}
    return {
        "texts": asdict(text_limits.read(dataset.name, max_length, encoded, examples, tokenizer, known.counted_token)),
        "network": asdict(known),
        "summary": msgspec.to_builtins(summarise(dataset, encoded, tokenizer)),
    }


def _limits(stores: Stores, backbone: BackboneSpec, kind: str, labels: int) -> Limits:
    """Return the limits of a network, which the stores keep: another data set needs no network."""
    packages = cache.versions("torch", "transformers")
    store = stores.open("limits", digest({"code": cache.code_key("backbones"), "packages": packages}))
    key = digest([backbone.fingerprint, kind, labels, backbone.roles])
    return Limits(**store.get(key, lambda: _limits_on_meta(backbone, kind, labels)))


def _limits_on_meta(backbone: BackboneSpec, kind: str, labels: int) -> dict[str, Any]:
    from peftbench.backbones import limits, source  # torch
    from peftbench.backbones.load import load_on_meta

    origin = source.origin(backbone.model, backbone.pinned_revision)
    return asdict(limits.of(load_on_meta(origin, kind, labels, backbone.roles).net, kind))
