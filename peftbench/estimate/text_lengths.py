"""How long a task's texts are in a model's tokens: by the tokenizer alone, no network is loaded."""

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
    """The mean number of tokens of a training example, padding left out; texts are cut at `max_length` tokens.

    Raises UserError where the data changed since the plan was made, or the tokenizer cannot serve.
    """
    code = cache.code_key("tasks", "backbones")
    store = stores.open("tokens", digest({"code": code, "packages": cache.versions("transformers", "tokenizers")}))
    asked = [backbone.fingerprint, task.fingerprint, task.version, max_length]

    def count() -> float:
        from peftbench.backbones.tokenizers import tokenizer_and_start  # torch

        dataset = tasks.open_task(task.name, task.options, data_dir)
        if dataset.fingerprint != task.fingerprint:
            raise UserError(f"the data of {task.name} changed since the plan was made; run again")
        tokenizer, start = tokenizer_and_start(backbone.model, dataset.kind, backbone.revision)
        encoded = tokens.encode(dataset, tokenizer, max_length, cache.root() / "tokens", start)
        return float(encoded["train"].lengths.mean())

    return float(store.get(digest(asked), count))
