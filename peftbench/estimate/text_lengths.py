"""A task's texts in a model's tokens, from the configuration and the tokenizer alone; no weights are read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from peftbench import cache, tasks
from peftbench.backbones.limits import Limits
from peftbench.cache import Stores
from peftbench.errors import UserError
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
    packages = cache.versions("torch", "transformers", "tokenizers")
    store = stores.open("texts", digest({"code": cache.code_key("tasks", "backbones"), "packages": packages}))
    key = digest([backbone.fingerprint, task.fingerprint, task.version, max_length, backbone.roles])

    def read() -> dict[str, object]:
        from peftbench.backbones import limits, source  # torch
        from peftbench.backbones.load import load_on_meta
        from peftbench.backbones.tokenizers import tokenizer_and_start

        dataset = tasks.open_task(task.name, task.options, data_dir)
        if dataset.fingerprint != task.fingerprint:
            raise UserError(f"the data of {task.name} changed since the plan was made; run again")
        tokenizer, start = tokenizer_and_start(backbone.model, dataset.kind, backbone.revision)
        origin = source.origin(backbone.model, backbone.revision)
        network = load_on_meta(origin, dataset.kind, len(dataset.labels) or 1, backbone.roles)
        known = limits.of(network.net, dataset.kind)
        encoded = tokens.encode(dataset, tokenizer, max_length, cache.root() / "tokens", start)
        examples = {split: dataset.split(split) for split in encoded}
        found = text_limits.read(dataset.name, max_length, encoded, examples, tokenizer, known.counted_token)
        return {"texts": asdict(found), "network": asdict(known)}

    answer = store.get(key, read)
    return TextFacts(**answer["texts"]), Limits(**answer["network"])
