"""Adapters that travel, method by method: LoRA's relatives, random pairs, norms, and prompts in front of the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LABELS, Model, Zoo, batch, complete, logits
from safetensors.torch import load_file, save_file
from test_interop import _own_cache, agree, command, moved, plain, same_to_the_bit, theirs
from torch import Tensor, nn

from peftbench.backbones import prompt
from peftbench.backbones.denormalise import plain_state
from peftbench.backbones.load import Backbone
from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.method.edit import Edit
from peftbench.method.interop import from_peft, to_peft, to_transformers
from peftbench.method.interop.trained_adapter import open_trained
from peftbench.method.layers.nf4 import NF4Linear

peft = pytest.importorskip("peft")
__all__ = ["_own_cache"]  # the fixture, which is used without being asked for
THREE = ["bert", "gpt2", "llama"]
LOW_RANK: list[tuple[str, dict[str, Any]]] = [
    ("rslora", {"rank": 3, "alpha": 7.0}),
    ("lora_plus", {"rank": 3, "alpha": 7.0}),
    ("pissa", {"rank": 3, "roles": "q v down"}),
    ("adalora", {"rank": 2, "initial_rank": 3, "roles": "q k v o"}),
]


def exported(zoo: Zoo, name: str, method: str, hyper: dict[str, Any], where: Path) -> Backbone:
    """The network with its adapter, which lies at a.safetensors and, for peft, in out/."""
    backbone, _ = moved(zoo[name], method, hyper, where / "a.safetensors")
    to_peft.write(open_trained(where / "a.safetensors"), where / "out")
    return backbone


@pytest.mark.slow
@pytest.mark.parametrize(("method", "hyper"), LOW_RANK)
@pytest.mark.parametrize("name", THREE)
def test_peft_computes_the_same_from_a_relative_of_lora_and_so_does_what_is_read_back(
    zoo: Zoo, tmp_path: Path, name: str, method: str, hyper: dict[str, Any]
) -> None:
    backbone = exported(zoo, name, method, hyper, tmp_path)
    twin = peft.PeftModel.from_pretrained(plain(zoo[name]), tmp_path / "out").eval()
    from_peft.read(tmp_path / "out", str(zoo[name].folder), tmp_path / "back.safetensors")
    back = open_trained(tmp_path / "back.safetensors")
    assert back.method == ("rslora" if method == "rslora" else "lora")
    agree(backbone.net, twin)
    agree(backbone.net, back.backbone.net)


def in_four_bits(model: Model) -> nn.Module:
    """The plain model with every linear layer of the base rounded to NormalFloat and dense again."""
    backbone = model.load()
    edit = Edit(backbone)
    edit.swap(edit.linear_roles, lambda base: NF4Linear.from_dense(base, double=True))
    net = plain(model)
    net.load_state_dict({name: t.clone() for name, t in plain_state(backbone.net).items()})
    return net


@pytest.mark.slow
@pytest.mark.parametrize("roles", [None, "q v"])
@pytest.mark.parametrize("method", ["qlora", "qdora"])
@pytest.mark.parametrize("name", THREE)
def test_peft_computes_the_same_over_the_same_four_bit_base(
    zoo: Zoo, tmp_path: Path, name: str, method: str, roles: str | None
) -> None:
    backbone = exported(zoo, name, method, {"rank": 2, "roles": roles}, tmp_path)
    net = in_four_bits(zoo[name])
    assert not torch.allclose(logits(net, batch()), logits(zoo[name].untouched, batch()), rtol=1e-3)
    agree(backbone.net, peft.PeftModel.from_pretrained(net, tmp_path / "out").eval())


def test_a_random_pair_is_loaded_and_not_drawn_again(zoo: Zoo, tmp_path: Path) -> None:
    backbone = exported(zoo, "gpt2", "vera", {"rank": 4, "projection_seed": 3}, tmp_path)
    file = tmp_path / "out" / "adapter_config.json"
    config = json.loads(file.read_text())
    assert config["projection_prng_key"] == 3
    file.write_text(json.dumps({**config, "projection_prng_key": 8}))
    agree(backbone.net, peft.PeftModel.from_pretrained(plain(zoo["gpt2"]), tmp_path / "out").eval())


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("bert", "VeraConfig", {"r": 6, "target_modules": ["query", "value"]}),
        ("bert", "VeraConfig", {"r": 6, "target_modules": ["query"], "save_projection": False}),
        ("llama", "VeraConfig", {"r": 6, "target_modules": "all-linear", "projection_prng_key": 5}),
        ("bert", "LNTuningConfig", {"target_modules": ["LayerNorm"]}),
        ("gpt2", "LNTuningConfig", {}),
        ("llama", "LNTuningConfig", {"target_modules": ["post_attention_layernorm"]}),
    ],
)
def test_what_peft_made_computes_the_same_here(
    zoo: Zoo, tmp_path: Path, name: str, kind: str, settings: dict[str, Any]
) -> None:
    twin = theirs(zoo, name, tmp_path / "theirs", getattr(peft, kind)(**settings))
    from_peft.read(tmp_path / "theirs", str(zoo[name].folder), tmp_path / "a.safetensors")
    agree(twin, open_trained(tmp_path / "a.safetensors").backbone.net)


@pytest.mark.parametrize(
    ("name", "kind", "settings", "reason"),
    [
        ("gpt2", "VeraConfig", {"r": 6, "target_modules": ["c_attn"]}, "frozen pair .* for the fused layers"),
        ("bert", "VeraConfig", {"r": 6, "target_modules": ["query"], "bias": "all"}, "trains biases"),
        ("bert", "VeraConfig", {"r": 6, "target_modules": ["pooler.dense"]}, "has no role here"),
        ("bert", "LNTuningConfig", {"target_modules": ["query"]}, "is no norm"),
        ("bert", "PromptTuningConfig", {"num_virtual_tokens": 3}, r"the encoder bert: .*cannot be merged"),
        ("gpt2-classifier", "PromptTuningConfig", {"num_virtual_tokens": 3}, "gpt2 classifier: .*padded text ends"),
    ],
)
def test_what_cannot_be_represented_exactly_is_refused_by_name(
    zoo: Zoo, tmp_path: Path, name: str, kind: str, settings: dict[str, Any], reason: str
) -> None:
    theirs(zoo, name, tmp_path / "theirs", getattr(peft, kind)(**settings))
    with pytest.raises(UserError, match=reason):
        from_peft.read(tmp_path / "theirs", str(zoo[name].folder), tmp_path / "a.safetensors", LABELS)
    assert not (tmp_path / "a.safetensors").exists()


def test_a_pair_from_elsewhere_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    exported(zoo, "bert", "vera", {"rank": 4}, tmp_path)
    file = tmp_path / "out" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.vera_B"][0, 0] += 1e-3
    save_file(tensors, file)
    with pytest.raises(UserError, match="not the one that peftbench draws from its seed 0; "):
        from_peft.read(tmp_path / "out", str(zoo["bert"].folder), tmp_path / "back.safetensors")


def with_prompt(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    """The logits of the text's own tokens, with our prompt in place."""
    net, first = backbone.net, backbone.net.get_input_embeddings().num_embeddings
    longer = complete(net, prompt.insert(inputs, backbone.virtual_tokens, first, net.config))
    if net.config.is_encoder_decoder:
        longer["decoder_input_ids"] = complete(net, inputs)["decoder_input_ids"]
    with torch.no_grad():
        return prompt.remove(net(**longer).logits, longer, first)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["vocabulary", "random"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gpt-neox", "opt", "t5"])
def test_a_prompt_in_front_of_the_text_travels_and_comes_back_to_the_bit(
    zoo: Zoo, tmp_path: Path, name: str, init: str
) -> None:
    backbone = exported(zoo, name, "prompt", {"length": 4, "init": init}, tmp_path)
    twin = peft.PeftModel.from_pretrained(plain(zoo[name]), tmp_path / "out").eval()
    twin.save_pretrained(tmp_path / "theirs")
    inputs = batch()
    text = inputs["attention_mask"].bool()
    ours = with_prompt(backbone, inputs)[text]
    assert not torch.allclose(ours, logits(zoo[name].untouched, inputs), rtol=1e-3)
    with torch.no_grad():
        out = twin.double()(**complete(zoo[name].untouched, inputs)).logits
    other = (out if name == "t5" else out[:, 4:])[text]
    backbone.net.double()
    ours = with_prompt(backbone, inputs)[text]
    torch.testing.assert_close(other, ours, rtol=1e-6, atol=1e-6 * float(ours.abs().max()))
    from_peft.read(tmp_path / "theirs", str(zoo[name].folder), tmp_path / "back.safetensors")
    assert adapter_file.load(tmp_path / "back.safetensors")[1]["hyper"] == {"length": 4, "init": init}
    same_to_the_bit(tmp_path / "a.safetensors", tmp_path / "back.safetensors")


@pytest.mark.parametrize(
    ("name", "method", "hyper", "reason"),
    [
        ("bert", "prompt", {"length": 3}, r"pools \(\[CLS\]\); .* cannot be merged"),
        ("gpt2-classifier", "prompt", {"length": 3}, "classifier: .* reads the padding"),
        ("bert", "bitfit", {}, "'bitfit' has no counterpart in peft: .* biases alone; .* --to merged"),
        ("bert", "full", {}, "'full' has no counterpart in peft: .* --to merged"),
        ("bert", "adapter", {}, "'adapter' has no counterpart in peft: .* keep the adapter file"),
    ],
)
def test_what_peft_has_not_is_refused_with_the_reason(
    zoo: Zoo, tmp_path: Path, name: str, method: str, hyper: dict[str, Any], reason: str
) -> None:
    moved(zoo[name], method, hyper, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=reason):
        to_peft.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "method"), [("bert", "bitfit"), ("gpt2", "bitfit"), ("bert", "linear_probe")])
def test_trained_biases_and_heads_merge_exactly(zoo: Zoo, tmp_path: Path, name: str, method: str) -> None:
    backbone, _ = moved(zoo[name], method, {}, tmp_path / "a.safetensors")
    to_transformers.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    net = type(plain(zoo[name])).from_pretrained(tmp_path / "out").eval()
    assert not torch.allclose(logits(net, batch()), logits(zoo[name].untouched, batch()), rtol=1e-3)
    agree(backbone.net, net)


def test_an_encoder_decoder_is_told_as_one(zoo: Zoo, tmp_path: Path) -> None:
    backbone = exported(zoo, "t5", "lora", {"rank": 2}, tmp_path)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    agree(backbone.net, peft.PeftModel.from_pretrained(plain(zoo["t5"]), tmp_path / "out").eval())
    from_peft.read(tmp_path / "out", str(zoo["t5"].folder), tmp_path / "back.safetensors")
    same_to_the_bit(tmp_path / "a.safetensors", tmp_path / "back.safetensors")


def test_a_revision_is_asked_of_the_hub_and_kept(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(zoo, "bert", "lora", {}, tmp_path)
    asked: list[Any] = []
    usual = from_peft.load

    def load(model: str, kind: str, labels: int, revision: str | None = None) -> Backbone:
        asked.append(revision)
        return usual(model, kind, labels, revision=revision)

    monkeypatch.setattr(from_peft, "load", load)
    words = ("import", tmp_path / "out", "--backbone", zoo["bert"].folder, "--out", tmp_path / "b.safetensors")
    assert command(monkeypatch, *words, "--revision", "v1.0") == 0
    assert asked == ["v1.0"]
    assert adapter_file.load(tmp_path / "b.safetensors")[1]["base"]["revision"] == "v1.0"
