"""Published architectures by name, without weights, for counting and estimating. Imports no torch.

`architectures.json` holds, for each, the size-related values of its published configuration, their source, and the
hub id of weights of that architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any


@lru_cache
def known() -> Mapping[str, Mapping[str, Any]]:
    """Return every architecture by name: `config`, `source`, and `weights` (None if none are published)."""
    text = files("peftbench.backbones").joinpath("architectures.json").read_text(encoding="utf-8")
    return json.loads(text)


def config(name: str) -> Any:
    """Return the transformers configuration of architecture `name`."""
    from transformers import AutoConfig

    facts = dict(known()[name]["config"])
    return AutoConfig.for_model(facts.pop("model_type"), **facts)


def hint(name: str) -> str:
    """Return what an error adds if `name` is an architecture without weights; empty for any other name."""
    if name not in known():
        return ""
    weights = known()[name]["weights"]
    where = f"its weights may be at {weights}" if weights else "its weights are not published"
    return f"{name!r} names an architecture without weights, for `peftbench count`; {where}."
