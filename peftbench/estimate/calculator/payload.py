"""Everything that the page computes with, as one JSON object."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import asdict
from typing import Any

from peftbench.estimate.calculator import facts, packed
from peftbench.estimate.card import fits, step_seconds
from peftbench.estimate.card.cards import cards


def payload() -> dict[str, Any]:
    """Return models, methods, cards and the constants of the time, without the recordings."""
    read = facts.read()
    known = {path.name.removesuffix(".json.gz") for path in packed.FOLDER.glob("*.json.gz")}
    return {
        "models": [model for model in read["models"] if model["family"] in known],
        "methods": read["methods"],
        "cards": {
            name: {**asdict(card), "memory": card.memory_bytes, "cache": card.cache} for name, card in cards().items()
        },
        "constants": asdict(step_seconds.constants()),
        "limits": step_seconds.LIMITS,
        "currency": fits.CURRENCY,
    }


def families() -> dict[str, str]:
    """Return the recordings of each family as base64 of gzipped JSON, as the page unpacks them."""
    return {
        path.name.removesuffix(".json.gz"): b64encode(path.read_bytes()).decode()
        for path in sorted(packed.FOLDER.glob("*.json.gz"))
    }


def unpacked() -> dict[str, Any]:
    """Return the payload with the recordings, for a program that computes without a page."""
    recordings = {
        path.name.removesuffix(".json.gz"): packed.read(path) for path in sorted(packed.FOLDER.glob("*.json.gz"))
    }
    return {**payload(), "families": recordings}
