"""What a step does not reach: layers that no step uses are refused, layers that only some steps use are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import Zoo, save
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from peftbench.backbones.configuration import check_layers_stay, load_config
from peftbench.backbones.in_memory import wrap
from peftbench.backbones.load import load
from peftbench.backbones.source import origin
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.method.registry import discover, make
from peftbench.records.spec import TrainSpec
from peftbench.run.train import Trainer

LAYER = "model.layers.*"
ROLES = {"q": f"{LAYER}.self_attn.q_proj", "up": f"{LAYER}.mlp.up_proj", "down": f"{LAYER}.mlp.extra"}
BATCH = {
    "input_ids": torch.arange(5, 17).view(2, 6),
    "attention_mask": torch.ones(2, 6, dtype=torch.long),
    "labels": torch.arange(5, 17).view(2, 6),
}


def _net() -> Any:
    torch.manual_seed(0)
    facts = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=261, **facts))


class _Experts(nn.Module):
    """Four experts of which a batch uses those in `used`."""

    def __init__(self, used: tuple[int, ...]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        return sum((self.experts[i](x) for i in self.used), torch.zeros_like(x))


def _step(net: Any, table: dict[str, Any], roles: str) -> Trainer:
    """Two steps of LoRA at these roles."""
    edit, made = Edit(wrap(net, None, table)), make(discover()["lora"], {"rank": 2, "roles": roles})
    made.attach(edit)
    trainer = Trainer.start(edit, made, TrainSpec(1e-3, 2, 2, 6), "float32")
    for done in (0.5, 1.0):
        trainer.step(BATCH, done)
    return trainer


def test_layers_that_the_network_has_and_does_not_use_are_refused_at_the_first_step() -> None:
    with pytest.raises(UserError, match=r"no gradient reaches the down sites model.layers.\*.mlp.extra: Llama"):
        _step(_with_extra(), ROLES, "q down")
    _step(_with_extra(), ROLES, "q up")


def _with_extra() -> Any:
    net = _net()
    for layer in net.model.layers:
        layer.mlp.extra = nn.Linear(32, 64)
    return net


@pytest.mark.parametrize(("used", "taken"), [((0, 2), True), ((3,), True), ((), False)])
def test_experts_without_tokens_are_taken_if_others_have_some(used: tuple[int, ...], taken: bool) -> None:
    net = _net()
    for layer in net.model.layers:
        layer.mlp = _Experts(used)
    roles = {"q": ROLES["q"], "up": f"{LAYER}.mlp.experts.*"}
    if not taken:
        with pytest.raises(UserError, match=r"up sites model.layers.\*.mlp.experts.\*"):
            _step(net, roles, "q up")
        return
    trainer = _step(net, roles, "q up")
    moved = {site.path: bool(adapter.B.count_nonzero()) for site, adapter in trainer.edit.placed() if site.role == "up"}
    assert moved == {f"model.layers.{i}.mlp.experts.{e}": e in used for i in range(2) for e in range(4)}


@pytest.fixture
def opt(tmp_path: Path) -> Path:
    facts = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    more = {"word_embed_proj_dim": 32, "max_position_embeddings": 64, "layerdrop": 0.5}
    return save(tmp_path / "opt", "opt", "generation", {**facts, **more})


def test_a_network_that_skips_layers_is_refused_with_the_key_that_helps(opt: Path) -> None:
    message = r"skips whole layers at random in training \(layerdrop = 0.5.*give backbone_dropout"
    with pytest.raises(UserError, match=message):
        load(str(opt), "generation")
    with pytest.raises(UserError, match=message):
        check_layers_stay(origin(str(opt), None), load_config(origin(str(opt), None), 1, "generation"))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_with_a_dropout_given_no_layer_is_skipped(opt: Path, dropout: float) -> None:
    net = load(str(opt), "generation", dropout=dropout).net
    assert net.config.layerdrop == net.model.decoder.layerdrop == 0
    assert net.config.dropout == dropout


@pytest.mark.parametrize("key", ["encoder_layerdrop", "decoder_layerdrop"])
def test_each_stack_of_an_encoder_decoder_is_asked(zoo: Zoo, tmp_path: Path, key: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(zoo["t5"].folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: 0.1}))
    with pytest.raises(UserError, match=f"{key} = 0.1"):
        load(str(folder), "generation")
