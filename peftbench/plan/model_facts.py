"""Facts about a base model that planning needs: its fingerprint and its sites.

The sites come from the model's configuration on the meta device: no weights are loaded. The cache keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbench import cache
from peftbench.backbones import source
from peftbench.backbones.sites import Sites
from peftbench.cache import Stores
from peftbench.records.spec import BackboneSpec, digest


def fingerprint(model: str, revision: str | None = None) -> str:
    """Return the sha256 that identifies the weights of a base model.

    Args:
        model: a preset, a directory or a hub id.
        revision: a commit or tag on the hub.

    Raises:
        UserError: the model is not available.
    """
    return source.fingerprint(model, revision)


def sites(
    stores: Stores,
    model: str,
    labels: int,
    causal: bool,
    revision: str | None = None,
    roles: Mapping[str, Any] | None = None,
) -> Sites:
    """Return the sites of a base model.

    Args:
        stores: the stores of cached answers.
        model: a preset, a directory or a hub id.
        labels: the number of outputs of the task head; unused with `causal`.
        causal: whether the model generates text and so has no task head.
        revision: a commit or tag on the hub.
        roles: module paths by role, for an unknown architecture.

    Raises:
        UserError: the model is not available or its roles are unknown.
    """
    question = {"model": fingerprint(model, revision), "roles": roles, "labels": labels, "causal": causal}

    def build() -> dict[str, Any]:
        from peftbench.backbones.load import load_sites  # torch

        return load_sites(model, "generation" if causal else "classification", labels, revision, roles).as_dict()

    return Sites.from_dict(stores.open("sites", _code()).get(digest(question), build))


def dropouts(stores: Stores, backbone: BackboneSpec) -> dict[str, float]:
    """Return the dropout probabilities of a base model, by the configuration's keys.

    Args:
        stores: the stores of cached answers.
        backbone: the base model and the value for every probability, if one is given.

    Raises:
        UserError: the model is not available.
    """

    def build() -> dict[str, float]:
        from peftbench.backbones import configuration  # transformers

        return configuration.dropouts_of(backbone)

    question = {"model": backbone.fingerprint, "dropout": backbone.dropout}
    found: dict[str, float] = stores.open("dropouts", _code()).get(digest(question), build)
    return found


def _code() -> str:
    """Return what an answer about networks depends on besides the question."""
    return digest({"code": cache.code_key("backbones"), "packages": cache.versions("torch", "transformers")})
