"""Every known architecture has as many parameters as the published network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from peftbench.backbones import architectures

TOTALS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("published_totals.yaml").read_text())
DEEP = 8  # layers; of a deeper network three depths tell the number of parameters


def test_every_architecture_is_held_to_a_published_size_and_names_its_source() -> None:
    assert list(TOTALS.keys() ^ architectures.known().keys()) == []
    assert all(len(facts["source"]) > 20 for facts in architectures.known().values())
    for facts in TOTALS.values():
        assert facts["source"]
        assert ("total" in facts) != ("rounded" in facts)
        assert ("less" in facts) == ("why" in facts)


@pytest.mark.parametrize("name", TOTALS)
def test_an_architecture_has_as_many_parameters_as_is_published(name: str) -> None:
    facts, found = TOTALS[name], parameters(name)
    if "total" in facts:
        assert found == facts["total"] - facts.get("less", 0)
    else:
        low, high = facts["rounded"]
        assert low <= found < high


def parameters(name: str) -> int:
    """The parameters of the published checkpoint's network: the bare encoder, or the language model."""
    config = architectures.config(name)
    layers = config.num_hidden_layers
    if config.is_encoder_decoder or layers < DEEP:
        return built(name, {})
    first, second, third = (built(name, {"num_hidden_layers": n}) for n in (1, 2, 3))
    assert third - second == second - first  # every layer has as many
    return first + (layers - 1) * (second - first)


def built(name: str, changes: dict[str, int]) -> int:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = architectures.config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    auto: Any = {"t5": AutoModelForSeq2SeqLM, "bert": AutoModel, "roberta": AutoModel, "deberta-v2": AutoModel}.get(
        config.model_type, AutoModelForCausalLM
    )
    with torch.device("meta"):
        return sum(p.numel() for p in auto.from_config(config).parameters())
