"""docs/fidelity.md: the tests that it names exist, and what it says of `peft` is so in the installed version."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import Zoo
from torch import Tensor, nn

from peftbench.backbones.modules import SiteLinear
from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.methods.dora import DoRALinear

peft = pytest.importorskip("peft")
ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "fidelity.md"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_every_test_that_the_document_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text(encoding="utf-8")))
    defined = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert len(named) > 20
    assert not named - defined


def test_every_entry_of_the_document_names_a_test() -> None:
    entries = re.split(r"^- \*\*", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(entries) > 20
    assert [entry.split("**")[0] for entry in entries if not re.search(r"`test_\w+`", entry)] == []


def test_peft_rescales_other_layers_than_keys_and_values_by_default() -> None:
    """IA3 on Qwen2 takes q in place of k, on OPT q and k, on GPT-2 and GPT-NeoX the fused q, k and v."""
    from peft.utils import constants

    table = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    assert table["qwen2"] == ["q_proj", "v_proj", "down_proj"]
    assert table["opt"] == ["q_proj", "k_proj", "fc2"]
    assert table["gpt2"] == ["c_attn", "mlp.c_proj"]
    assert table["gpt_neox"] == ["query_key_value", "dense_4h_to_h"]
    assert table["llama"] == ["k_proj", "v_proj", "down_proj"]


def test_peft_rescales_the_input_of_berts_attention_output_by_default(zoo: Zoo) -> None:
    """ "output.dense" ends the names of both output layers of a BERT layer; the paper has the FFN's only."""
    twin = peft.get_peft_model(zoo["bert"].load().net, peft.IA3Config())
    names = [n for n, _ in twin.named_parameters() if "ia3_l" in n]
    assert any("attention.output.dense" in n for n in names)
    ours = Edit(zoo["bert"].load())
    make(find("ia3"), {}).attach(ours)
    assert not any("attention.output.dense" in n for n in ours.state())


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_peft_trains_fewer_norms_than_there_are_by_default(zoo: Zoo) -> None:
    twin = peft.get_peft_model(zoo["qwen2"].load().net, peft.LNTuningConfig())
    names = [n for n, p in twin.named_parameters() if p.requires_grad]
    assert names
    assert all("post_attention_layernorm" in n for n in names)
    with pytest.raises(ValueError, match="target_modules"):
        peft.get_peft_model(zoo["bert"].load().net, peft.LNTuningConfig())
    ours = Edit(zoo["qwen2"].load())
    make(find("layernorm"), {}).attach(ours)
    assert {"input_layernorm", "post_attention_layernorm", "norm"} == {n.split(".")[-2] for n in ours.state()}


def test_peft_makes_the_reparametrised_prefix_as_narrow_as_grouped_keys(zoo: Zoo) -> None:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7
    )
    twin: Any = peft.get_peft_model(zoo["llama"].load().net, config)
    assert twin.prompt_encoder["default"].embedding.weight.shape == (3, 32)
    ours = Edit(zoo["llama"].load())
    make(find("prefix"), {"length": 3, "reparametrise": True, "hidden": 7}).attach(ours)
    assert next(t for n, t in ours.state().items() if n.endswith("shared.P")).shape == (3, 64)


def _dora_pair(dropout: float) -> tuple[nn.Module, nn.Module, Tensor]:
    """Ours and `peft`'s DoRA over one layer, B zero, magnitudes doubled: the update is the base's own output."""
    torch.manual_seed(0)
    dense = nn.Linear(8, 6).double()
    ours = DoRALinear(SiteLinear.of(dense.weight.data, dense.bias.data), 2, 4.0, dropout).double()
    twin: Any = peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"], use_dora=True, lora_dropout=dropout),
        nn.Sequential(dense),
    ).double()
    with torch.no_grad():
        ours.m.mul_(2)
        twin[0].lora_magnitude_vector["default"].weight.mul_(2)
    return ours.train(), twin.train(), torch.randn(5, 8, dtype=torch.float64)


def test_pefts_dora_drops_inputs_of_the_frozen_weight_too() -> None:
    ours, theirs, x = _dora_pair(0.0)
    torch.testing.assert_close(ours(x), theirs(x))
    expected = ours(x)
    ours, theirs, x = _dora_pair(0.5)
    assert torch.equal(ours(x), ours(x))
    torch.testing.assert_close(ours(x), expected)
    assert not torch.allclose(theirs(x), expected)


def test_pefts_pissa_takes_no_double_precision() -> None:
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights="pissa")
    with pytest.raises(TypeError, match="float32"):
        peft.inject_adapter_in_model(config, nn.Sequential(nn.Linear(8, 6).double()))


def test_pefts_adalora_averages_norms_that_are_not_squared(zoo: Zoo) -> None:
    """Held to its formula as the document has it; ours is section 3.1's sum of squares."""
    sizes = {"init_r": 3, "target_r": 2, "total_step": 10, "orth_reg_weight": 0.7}
    config = peft.AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **sizes)
    twin: Any = peft.get_peft_model(zoo["opt"].load().net, config).eval()
    ids = torch.tensor([[7, 8, 9]])
    plain = twin.base_model.model(input_ids=ids, labels=ids).loss
    norms, count = torch.zeros(()), 0
    for name, p in twin.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            norms, count = norms + (gram - torch.eye(3)).square().sum().sqrt(), count + 1
    torch.testing.assert_close(twin(input_ids=ids, labels=ids).loss - plain, 0.7 * norms / count)
    config = peft.AdaLoraConfig(target_modules=["q_proj"], **sizes)
    twin = peft.get_peft_model(zoo["opt"].load().net, config).eval()
    assert twin(input_ids=ids, labels=ids).loss == plain  # without a task type it is left out in silence
