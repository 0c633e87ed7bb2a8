"""Published architectures by name, without weights: for counting and estimating; free of torch.

`architectures.json` holds for each the facts of its published configuration that decide a size, with their source, and
the hub id of weights of that architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any


@lru_cache
def known() -> Mapping[str, Mapping[str, Any]]:
    """Every architecture by name: `config`, `source`, and `weights`, which is None where none are published."""
    text = files("peftbench.backbones").joinpath("architectures.json").read_text(encoding="utf-8")
    return json.loads(text)


def config(name: str) -> Any:
    """The transformers configuration of architecture `name`."""
    from transformers import AutoConfig

    facts = dict(known()[name]["config"])
    return AutoConfig.for_model(facts.pop("model_type"), **facts)


def hint(name: str) -> str:
    """What to say where weights were asked for by the name of an architecture; empty for any other name."""
    if name not in known():
        return ""
    weights = known()[name]["weights"]
    where = f"its weights may be at {weights}" if weights else "its weights are not published"
    return f"{name!r} names an architecture without weights, for `peftbench count`; {where}."
