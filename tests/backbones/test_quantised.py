"""A checkpoint that is quantised already is refused from its configuration or its headers, before weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import Zoo
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from peftbench.backbones import in_memory, quantised
from peftbench.backbones.load import load, load_sites
from peftbench.errors import UserError
from peftbench.estimate.count import ModelQuery, count

SAID = {  # quantization_config -> what the message names
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "weight_block_size": [32, 32]},
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes, 8 bits": {"load_in_8bit": True, "quant_method": "bitsandbytes"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "mxfp4": {"quant_method": "mxfp4"},
}


@pytest.fixture
def copy(zoo: Zoo, tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo["llama"].folder, tmp_path / "llama"))


@pytest.mark.parametrize(("method", "said"), SAID.items(), ids=SAID)
def test_a_configuration_that_names_a_method_of_quantisation_is_refused(
    copy: Path, method: str, said: dict[str, Any]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    for ask in (lambda: load_sites(str(copy), "generation"), lambda: count(ModelQuery(str(copy)), "lora")):
        with pytest.raises(UserError, match=f"quantised already: config.json says {method}.*use the method qlora"):
            ask()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.1.mlp.up_proj.weight", torch.int8),
        ("model.layers.1.mlp.up_proj.weight", torch.uint8),
        ("model.layers.1.mlp.up_proj.qweight", torch.int32),
        ("model.layers.1.mlp.up_proj.weight_packed", torch.int32),
        ("model.layers.1.mlp.up_proj.weight", torch.float8_e4m3fn),
        ("model.layers.1.mlp.experts.gate_up_proj_blocks", torch.uint8),
    ],
)
def test_weights_in_codes_are_refused_by_the_headers_where_the_configuration_says_nothing(
    copy: Path, name: str, dtype: torch.dtype
) -> None:
    weights = load_file(copy / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file({**weights, name: torch.zeros(192, 64).to(dtype)}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"model.safetensors holds {name} as "):
        load_sites(str(copy), "generation")
    with pytest.raises(UserError, match="not quantised"):
        load(str(copy), "generation")


def test_masks_and_positions_in_whole_numbers_are_no_quantised_weights(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    others = {
        "model.embeddings.position_ids": torch.arange(8)[None],
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "transformer.h.0.attn.mask": torch.ones(4, 4, dtype=torch.bool),
    }
    save_file({**weights, **others}, copy / "model.safetensors", {"format": "pt"})
    assert load_sites(str(copy), "generation").of("q")


def test_a_quantised_network_in_memory_is_refused(zoo: Zoo) -> None:
    net = zoo["llama"].load().net
    net.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), False)
    with pytest.raises(UserError, match=r"mlp.up_proj.weight is int8"):
        in_memory.wrap(net)


def test_a_method_is_found_in_a_configuration_inside_another() -> None:
    config = AutoConfig.for_model("gemma3")
    config.text_config.quantization_config = {"quant_method": "awq", "bits": 4}
    assert quantised.method_of(config) == "awq, 4 bits"


@pytest.mark.parametrize("model_type", ["gemma3", "llama4", "t5gemma", "qwen2_audio"])
def test_a_language_model_inside_a_larger_network_is_refused_with_what_to_do(tmp_path: Path, model_type: str) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{model_type}\\) consists of several networks .*save that one by itself"):
        load_sites(str(tmp_path), "generation")
