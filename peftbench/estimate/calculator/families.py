"""The models of the page: those that differ in sizes only share a family, whose step is recorded once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.backbones import architectures
from peftbench.estimate.calculator.dimensions import VALUES
from peftbench.estimate.simulate.extrapolation import rounds_of

MODELS: tuple[str, ...] = (
    *("llama-3.1-8b", "llama-3.1-70b", "llama-3.3-70b", "llama-3-8b", "llama-3-70b", "llama-3.2-1b", "llama-3.2-3b"),
    *("llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-7b", "llama-13b", "llama-65b"),
    *("mistral-7b", "mistral-7b-v0.3", "mistral-nemo-12b", "tinyllama-1.1b", "yi-6b", "yi-34b"),
    *("smollm2-135m", "smollm2-360m", "smollm2-1.7b", "smollm3-3b"),
    *(f"qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b")),
    *(f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "32b")),
    *("gemma-2-2b", "gemma-2-9b", "gemma-2-27b", "phi-3-mini", "phi-3-medium", "phi-4"),
)
TYPES = {"mistral": "llama"}  # same layers, other name


@dataclass(frozen=True)
class Dimensions:
    """A model of the page.

    Attributes:
        name: As `estimate` takes it.
        family: Models whose step differs in sizes only.
        layers: Number of layers.
        period: Layers after which their kinds repeat.
        sizes: The dimensions of the network: h, i, V, K, G, D.
        tied: Whether head and embedding are one matrix.
        positions: Tokens of the longest text; None for any.
        window: Tokens that a layer attends to; None for all. From that length on, the step has a mask of its own.
    """

    name: str
    family: str
    layers: int
    period: int
    sizes: Mapping[str, int]
    tied: bool
    positions: int | None
    window: int | None


def configuration(name: str) -> Any:
    """Return the configuration of a model, with its defaults."""
    from transformers import AutoConfig

    raw = dict(architectures.known()[name]["config"])
    return AutoConfig.for_model(raw.pop("model_type"), **raw)


def dimensions(name: str) -> Dimensions:
    """Return the family and the dimensions of a model."""
    config = configuration(name)
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    sizes = {
        "h": config.hidden_size,
        "i": config.intermediate_size,
        "V": config.vocab_size,
        "K": keys,
        "G": heads // keys,
        "D": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }
    return Dimensions(
        name,
        family_of(config),
        config.num_hidden_layers,
        period_of(config),
        sizes,
        bool(config.tie_word_embeddings),
        getattr(config, "max_position_embeddings", None),
        None if getattr(config, "use_sliding_window", None) is False else getattr(config, "sliding_window", None),
    )


def period_of(config: Any) -> int:
    """Return the layers after which their kinds repeat, such as 2 where windowed and full attention alternate."""
    rounds = rounds_of(config)
    if rounds is None or rounds.layers % rounds.period:
        raise ValueError(f"the layers of a {config.model_type} network are no whole number of equal rounds")
    return rounds.period


def family_of(config: Any) -> str:
    """Return the family: the kind of the network, and whether several query heads share a key head."""
    kind = TYPES.get(config.model_type, config.model_type)
    keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return kind if keys < config.num_attention_heads else f"{kind}-mha"


def first_of(family: str) -> str:
    """Return the first model of a family."""
    return next(name for name in MODELS if family_of(configuration(name)) == family)


def readable(family: str, tied: bool, folder: Path) -> dict[str, int]:
    """Write the configuration of a family's recorded network into a folder; return its dimensions.

    Args:
        family: The family.
        tied: Whether head and embedding are one matrix.
        folder: An existing folder.
    """
    raw = dict(architectures.known()[first_of(family)]["config"])
    grouped = not family.endswith("-mha")
    values = {**VALUES, **({} if grouped else {"K": 10 * VALUES["K"], "G": 1, "g": 3})}
    changed = {
        "hidden_size": values["h"],
        "intermediate_size": values["i"],
        "vocab_size": values["V"],
        "num_attention_heads": values["K"] * values["G"],
        "num_key_value_heads": values["K"],
        "head_dim": values["D"],
        "tie_word_embeddings": tied,
        "num_hidden_layers": 64,  # at least those of any recording
        "max_position_embeddings": 8192,
    }
    for listed in ("layer_types", "no_rope_layers"):  # the network makes them for its depth
        raw.pop(listed, None)
    tokens = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos"))}
    (folder / "config.json").write_text(json.dumps({**raw, **tokens, **changed}), encoding="utf-8")
    return values
