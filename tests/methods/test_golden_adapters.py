"""Bottleneck adapters and prefixes against values of the library `adapters` (made by scripts/golden_adapters.py)."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import Model, auto
from oracle.compare import CLOSE, distance
from oracle.networks import Ours, logits
from oracle.pairs import positions
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from peftbench.backbones import tiny
from peftbench.methods.adapter import Bottleneck

FILE = Path(__file__).parent / "golden" / "adapters.safetensors"
KINDS = {"bert": "classification", "gpt2": "generation"}
SLOTS = {"bert": "bert.encoder.layer.{}.attention.self.prefix_slot", "gpt2": "transformer.h.{}.attn.prefix_slot"}
SITES = {  # theirs -> ours
    "bert": {"attention.output": "attn_site", "output": "ffn_site"},
    "gpt2": {"attention_adapters": "attn_site", "output_adapters": "ffn_site"},
}
LETTERS = {"adapter_down.0": "D", "adapter_up": "U"}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@cache
def golden() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything in the file, and what it says about itself."""
    with safe_open(FILE, framework="pt") as file:
        about = {key: json.loads(text) if text.startswith("{") else text for key, text in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """The base networks, saved as a user would have them."""
    tensors, about = golden()
    made = {}
    for name, kind in KINDS.items():
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4}
        config = AutoConfig.for_model(name, **ids, **about["configurations"][name])
        net = auto(kind).from_config(config)
        base = {n.removeprefix(f"{name}/base/"): t for n, t in tensors.items() if n.startswith(f"{name}/base/")}
        assert base.keys() == dict(net.named_parameters()).keys()
        net.load_state_dict(base, strict=False)
        folder = tmp_path_factory.mktemp("golden") / name
        net.save_pretrained(folder)
        tiny.tokenizer("tiny-encoder" if kind == "classification" else "tiny-decoder").save_pretrained(folder)
        made[name] = Model(folder, kind)
    return made


def theirs(architecture: str, kind: str, what: str, ours: Ours) -> dict[str, Tensor]:
    """Their adapter or gradient, under our names and in our shapes."""
    tensors, _ = golden()
    here = f"{architecture}/{kind}/{what}/"
    found = {n.removeprefix(here): t for n, t in tensors.items() if n.startswith(here)}
    by_name = _prefixes(architecture, found, ours) if kind.startswith("prefix") else _bottlenecks(architecture, found)
    assert by_name.keys() == ours.trained.keys()
    return by_name


def _bottlenecks(architecture: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    by_name = {}
    for name, t in found.items():
        site, inside = re.sub(r"^.*?\.\d+\.", "", name).split(".adapters.golden.")
        layer = name.removesuffix(f".{site}.adapters.golden.{inside}")
        module, _, kind = inside.rpartition(".")
        by_name[f"{layer}.{SITES[architecture][site]}.{LETTERS[module]}.{kind}"] = t
    return by_name


def _prefixes(architecture: str, found: dict[str, Tensor], ours: Ours) -> dict[str, Tensor]:
    by_end = {name.split(".self_prefix.")[1]: t for name, t in found.items()}
    slots = [SLOTS[architecture].format(layer) for layer in range(2)]
    if "control_trans" in by_end:  # keys and values of the layers in turn, for each position
        flat = by_end["control_trans"]
        rows = positions(flat).reshape(golden()[1]["sizes"]["length"], 4, 2, 8)
        named = [f"{slot}.{part}" for slot in slots for part in "KV"]
        return {name: flat[rows[:, i].transpose(0, 1)] for i, name in enumerate(named)}
    shared = f"{slots[0]}.shared"
    by_name = {f"{shared}.P": by_end["wte.weight"]}
    for kind in ("weight", "bias"):
        by_name[f"{shared}.first.{kind}"] = by_end[f"control_trans.0.{kind}"]
        parts = by_end[f"control_trans.2.{kind}"].chunk(len(slots))
        by_name |= {f"{slot}.last.{kind}": part for slot, part in zip(slots, parts, strict=True)}
    return by_name


def differences(model: Model, architecture: str, kind: str) -> tuple[float, float]:
    """Of the logits, and of all gradients."""
    tensors, about = golden()
    sizes = about["sizes"]
    if kind.startswith("prefix"):
        hyper = {"length": sizes["length"], "hidden": sizes["hidden"], "reparametrise": kind == "prefix-mlp"}
        ours = Ours(model, "prefix", **hyper)
    else:
        ours = Ours(model, "adapter", placement=kind, bottleneck=sizes["bottleneck"], train_norm=False)
    given = theirs(architecture, kind, "adapter", ours)
    with torch.no_grad():
        for name, p in ours.trained.items():
            p.copy_(given[name])
    kept = logits(ours.net, {"input_ids": tensors["ids"], "attention_mask": tensors["mask"]})
    probe = torch.linspace(-1, 1, kept.numel(), dtype=kept.dtype).reshape(kept.shape)
    grads = torch.autograd.grad((kept * probe).sum(), list(ours.trained.values()))
    expected = theirs(architecture, kind, "gradient", ours)
    worst = max(distance(g, expected[name]) for name, g in zip(ours.trained, grads, strict=True))
    return distance(kept.detach(), tensors[f"{architecture}/{kind}/logits"]), worst


ALIKE = [(a, k) for a in KINDS for k in ("houlsby", "pfeiffer", "parallel", "prefix", "prefix-mlp")]
ALIKE.remove(("gpt2", "parallel"))


@pytest.mark.parametrize(("architecture", "kind"), ALIKE)
def test_adapters_agrees(models: dict[str, Model], architecture: str, kind: str) -> None:
    """Prefixes without any shift of positions; Houlsby's with frozen norms, as the library has them."""
    output, gradient = differences(models[architecture], architecture, kind)
    assert output <= CLOSE
    assert gradient <= CLOSE


def test_the_parallel_adapter_of_adapters_sees_the_residual_where_the_network_is_pre_norm(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In GPT-2 it gets the stream before the layer norm; ours gets the input of the sublayer itself."""
    assert min(differences(models["gpt2"], "gpt2", "parallel")) > 1e-2
    forward = Bottleneck.forward
    monkeypatch.setattr(Bottleneck, "forward", lambda self, x, f, r: forward(self, r, f, r))
    assert max(differences(models["gpt2"], "gpt2", "parallel")) <= CLOSE
