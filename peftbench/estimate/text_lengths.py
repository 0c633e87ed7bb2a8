"""The lengths of a task's texts in a model's tokens, from the tokenizer alone; no network is loaded."""

from __future__ import annotations

from pathlib import Path

from peftbench import cache, tasks
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.records.spec import BackboneSpec, TaskSpec, digest
from peftbench.tasks import tokens


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
    code = cache.code_key("tasks", "backbones")
    store = stores.open("tokens", digest({"code": code, "packages": cache.versions("transformers", "tokenizers")}))
    key = digest([backbone.fingerprint, task.fingerprint, task.version, max_length])

    def count() -> float:
        from peftbench.backbones.tokenizers import tokenizer_and_start  # torch

        dataset = tasks.open_task(task.name, task.options, data_dir)
        if dataset.fingerprint != task.fingerprint:
            raise UserError(f"the data of {task.name} changed since the plan was made; run again")
        tokenizer, start = tokenizer_and_start(backbone.model, dataset.kind, backbone.revision)
        encoded = tokens.encode(dataset, tokenizer, max_length, cache.root() / "tokens", start)
        return float(encoded["train"].lengths.mean())

    return float(store.get(key, count))
