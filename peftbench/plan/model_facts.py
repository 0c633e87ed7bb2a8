"""What a plan asks about a base model: its identity and its sites. No weights are read and no network is loaded.

The sites come from the configuration on the meta device, once; the answer is kept in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbench import cache
from peftbench.backbones import source
from peftbench.backbones.sites import Sites
from peftbench.cache import Stores
from peftbench.records.spec import digest


def fingerprint(model: str, revision: str | None = None) -> str:
    """The sha256 that identifies a base model's weights. Raises UserError where the model cannot be had."""
    return source.fingerprint(model, revision)


def sites(
    stores: Stores,
    model: str,
    labels: int,
    causal: bool,
    revision: str | None = None,
    roles: Mapping[str, Any] | None = None,
) -> Sites:
    """The sites of a base model with a head of `labels` outputs, or as a causal model.

    Raises UserError where the model cannot be had or its roles are unknown.
    """
    key = {"code": cache.code_key("backbones"), "packages": cache.versions("torch", "transformers")}
    asked = {"model": fingerprint(model, revision), "roles": roles, "labels": labels, "causal": causal}

    def build() -> dict[str, Any]:
        from peftbench.backbones.load import load_sites  # torch

        return load_sites(model, "generation" if causal else "classification", labels, revision, roles).as_dict()

    return Sites.from_dict(stores.open("sites", digest(key)).get(digest(asked), build))
