"""A merged model is a transformers model like any other, and the way back from normalising is exact."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ALL, Model, Zoo, auto, batch, logits
from test_interop import agree, moved
from transformers import AutoTokenizer

from peftbench.backbones.denormalise import plain_state
from peftbench.errors import UserError
from peftbench.method.interop import to_transformers
from peftbench.method.interop.trained_adapter import open_trained
from peftbench.method.layers.nf4 import NF4Linear


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_weights_go_back_to_where_they_came_from_to_the_bit(zoo: Zoo, name: str) -> None:
    theirs, ours = zoo[name].untouched.state_dict(), plain_state(zoo[name].load().net)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"rank": 3, "roles": "q k v o up down"}),
    ("dora", {"rank": 2}),
    ("ia3", {}),
    ("qlora", {"roles": "q v"}),
    ("vera", {"rank": 5}),
    ("layernorm", {}),
    ("full", {}),
    ("galore", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "hyper"), METHODS)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gpt-neox", "gpt2-classifier"])
def test_a_merged_model_loads_without_this_project_and_computes_the_same(
    zoo: Zoo, tmp_path: Path, name: str, method: str, hyper: dict[str, Any]
) -> None:
    backbone, _ = moved(zoo[name], method, hyper, tmp_path / "a.safetensors")
    to_transformers.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    net = auto(zoo[name].kind).from_pretrained(tmp_path / "out").eval()
    inputs = batch()
    ours = logits(backbone.net, inputs)
    assert not torch.allclose(ours, logits(zoo[name].untouched, inputs), rtol=1e-3)
    agree(backbone.net, net)
    assert not any(isinstance(m, NF4Linear) for m in net.modules())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == 0
    if zoo[name].kind == "classification":
        assert net.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}


@pytest.mark.parametrize(("method", "hyper"), [("adapter", {}), ("prefix", {"length": 3})])
def test_what_does_not_merge_is_refused_with_the_reason(
    zoo: Zoo, tmp_path: Path, method: str, hyper: dict[str, Any]
) -> None:
    moved(zoo["bert"], method, hyper, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"{method} cannot be merged"):
        to_transformers.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merged_model_has_the_generation_settings_of_its_checkpoint(zoo: Zoo, tmp_path: Path) -> None:
    """Even those that transformers would not write: some published checkpoints have a temperature without sampling."""
    folder = tmp_path / "base"
    shutil.copytree(zoo["llama"].folder, folder)
    (folder / "generation_config.json").write_text('{"forced_bos_token_id": 7, "temperature": 0.6, "min_length": 3}')
    moved(Model(folder, "generation"), "lora", {"rank": 2}, tmp_path / "a.safetensors")
    to_transformers.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    settings = zoo["llama"].untouched.from_pretrained(tmp_path / "out").generation_config
    assert (settings.forced_bos_token_id, settings.temperature, settings.min_length) == (7, 0.6, 3)
