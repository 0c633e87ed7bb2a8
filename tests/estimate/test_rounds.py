"""Networks whose kinds of layers alternate are extrapolated from a few rounds, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from peftbench.backbones import architectures
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.simulate.extrapolation import Rounds, rounds_of
from peftbench.estimate.step_estimate import Setting, estimate

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
NETWORKS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({"model_type": "llama", "num_hidden_layers": 12}, "2, 3, 4 of 12"),
    "phi3": ({"model_type": "phi3", "num_hidden_layers": 10}, "2, 3, 4 of 10"),
    "gemma2": ({"model_type": "gemma2", "num_hidden_layers": 23, "sliding_window": 8}, "5, 7, 9 of 23"),
    "gemma3": ({"model_type": "gemma3_text", "num_hidden_layers": 62, "sliding_window": 8}, "14, 20, 26 of 62"),
    "gpt_oss": ({"model_type": "gpt_oss", "num_hidden_layers": 20, "sliding_window": 8, **EXPERTS}, "4, 6, 8 of 20"),
    "smollm3": ({"model_type": "smollm3", "num_hidden_layers": 40}, "8, 12, 16 of 40"),
    "qwen3_moe": (
        {"model_type": "qwen3_moe", "num_hidden_layers": 10, "moe_intermediate_size": 32, **EXPERTS, "num_experts": 4},
        "2, 3, 4 of 10",
    ),
}


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}), ("full", {"checkpointing": True}), ("adapter", {"dtype": "bf16"}), ("prefix", {}),
]  # fmt: skip
TRIED = {  # each network with LoRA, and each of the other methods on one network
    *((name, "lora") for name in ("llama", "phi3", "gemma2", "gpt_oss", "qwen3_moe")),
    ("llama", "full"),
    ("phi3", "adapter"),
    ("gemma2", "prefix"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "setting"),
    [
        pytest.param(name, method, setting, marks=[] if (name, method) in TRIED else [pytest.mark.full])
        for name in NETWORKS
        for method, setting in METHODS
    ],
)
def test_what_is_told_is_what_all_layers_take(name: str, method: str, setting: dict[str, Any], tmp_path: Path) -> None:
    facts, depths = NETWORKS[name]
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **facts}))
    told, whole = (
        estimate(ModelQuery(str(tmp_path)), method, {}, Setting(2, 16, every_layer=every, **setting))
        for every in (False, True)
    )
    if method == "lora":
        assert told.layers_simulated.startswith(depths)
    assert (told.peak_bytes, told.at_peak, told.peak_phase) == (whole.peak_bytes, whole.at_peak, whole.peak_phase)
    assert (told.held, told.flops, told.trainable) == (whole.held, whole.flops, whole.trainable)


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("llama-2-70b", Rounds(80, 1)),
        ("gemma-2-9b", Rounds(42, 2)),
        ("gemma-3-27b", Rounds(62, 6)),
        ("gpt-oss-120b", Rounds(36, 2)),
        ("smollm3-3b", Rounds(36, 4)),
        ("qwen3-30b-a3b", Rounds(48, 1)),
        ("t5-base", None),
    ],
)
def test_rounds_are_read_from_the_configuration(name: str, rounds: Rounds | None) -> None:
    assert rounds_of(architectures.config(name)) == rounds


def test_layers_without_a_pattern_are_one_round_and_a_network_of_two_kinds_of_feed_forward_parts_has_none() -> None:
    kinds = ["full_attention", *["sliding_attention"] * 9]
    assert rounds_of(AutoConfig.for_model("gemma2", num_hidden_layers=10, layer_types=kinds)) == Rounds(10, 10)
    assert rounds_of(AutoConfig.for_model("qwen3_moe", num_hidden_layers=10, mlp_only_layers=[0])) is None


def test_the_depths_keep_what_remains_and_are_none_where_all_layers_are_fewer() -> None:
    assert Rounds(62, 6).depths(2) == [14, 20, 26]
    assert Rounds(26, 6).depths(2) == []
    assert Rounds(80, 1).depths(3) == [3, 4, 5]
