"""Sizes of any model with any method, without reading a weight: networks are built on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbench.sites import Sites


def sites(
    model: str,
    revision: str | None = None,
    roles: Mapping[str, Any] | None = None,
    labels: int = 2,
    causal: bool = False,
) -> Sites:
    """The sites of `model` with a head of `labels` outputs, or as a causal model."""
    from peftbench.backbones.load import skeleton

    return skeleton(model, "generation" if causal else "classification", labels, revision, roles)
