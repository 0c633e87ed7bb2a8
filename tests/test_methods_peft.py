"""Each method that Hugging Face peft has, against peft's with the same weights: logits and gradients, in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from paper_trial import LAYER, LAYERS, Trial
from torch import Tensor, nn

peft = pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def twin_of(trial: Trial, config: Any) -> nn.Module:
    """The same BERT as transformers makes it, under peft, in float64."""
    transformers = pytest.importorskip("transformers")
    settings = copy.deepcopy(trial.config)
    settings._attn_implementation = "eager"
    plain = transformers.BertForSequenceClassification(settings)
    plain.load_state_dict(trial.base)
    return peft.get_peft_model(plain, config).double().eval()


def their_parameters(twin: nn.Module, names: Mapping[str, str]) -> dict[str, nn.Parameter]:
    """Our state's names -> peft's parameters, by what theirs are called after the path; ours copied in beforehand."""
    theirs = dict(twin.named_parameters())
    return {ours: theirs[name] for ours, name in names.items()}


def compare_with_peft(trial: Trial, twin: nn.Module, names: Mapping[str, str], **more: Tensor) -> None:
    theirs = their_parameters(twin, names)
    assert theirs.keys() == trial.s.keys()
    with torch.no_grad():
        for ours, p in theirs.items():
            p.copy_(trial.s[ours].reshape(p.shape))
    logits = twin(input_ids=trial.ids, attention_mask=trial.mask).logits
    grads = torch.autograd.grad((logits * trial.probe).sum(), list(theirs.values()))
    by_name = {n: g.reshape(trial.s[n].shape) for n, g in zip(theirs, grads, strict=True)}
    trial.agrees(logits, by_name, **more)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_lora_and_dora_agree_with_peft(name: str) -> None:
    trial = Trial(name, rank=3, alpha=12.0)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=12, target_modules=["query", "value"], use_dora=name == "dora"
    )
    ending = {"A": "lora_A.default.weight", "B": "lora_B.default.weight", "m": "lora_magnitude_vector.default.weight"}
    names = {n: f"base_model.model.{n[:-1]}{ending[n[-1]]}" for n in trial.s}
    compare_with_peft(trial, twin_of(trial, config), names)


def test_ia3_agrees_with_peft() -> None:
    trial = Trial("ia3")
    inner = r".*layer\.\d+\.output\.dense"
    config = peft.IA3Config(
        task_type="SEQ_CLS", target_modules=rf"(.*\.(key|value)|{inner})", feedforward_modules=inner
    )
    compare_with_peft(trial, twin_of(trial, config), {n: f"base_model.model.{n[:-1]}ia3_l.default" for n in trial.s})


@pytest.mark.parametrize("reparametrise", [False, True])
def test_prefix_agrees_with_peft_once_positions_are_shifted_as_it_shifts_them(reparametrise: bool) -> None:
    """peft puts the prefix into the cache, so BERT counts positions from its end on; the paper leaves them alone."""
    length, hidden = 5, 7
    trial = Trial("prefix", length=length, reparametrise=reparametrise, hidden=hidden)
    config = peft.PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=length, prefix_projection=reparametrise, encoder_hidden_size=hidden
    )
    twin = twin_of(trial, config)
    prompt = dict(twin.named_parameters())
    inside = "prompt_encoder.default"
    slots = [f"{LAYER}.{i}.attention.self.prefix_slot" for i in LAYERS]
    with torch.no_grad():
        if reparametrise:
            first = f"{slots[0]}.shared"
            prompt[f"{inside}.embedding.weight"].copy_(trial.s[f"{first}.P"])
            for kind in ("weight", "bias"):
                prompt[f"{inside}.transform.0.{kind}"].copy_(trial.s[f"{first}.first.{kind}"])
                prompt[f"{inside}.transform.2.{kind}"].copy_(torch.cat([trial.s[f"{s}.last.{kind}"] for s in slots]))
        else:
            rows = [trial.s[f"{s}.{part}"].transpose(0, 1).flatten(1) for s in slots for part in "KV"]
            prompt[f"{inside}.embedding.weight"].copy_(torch.cat(rows, dim=1))
    own = {n: p for n, p in prompt.items() if n.startswith(inside)}
    logits = twin(input_ids=trial.ids, attention_mask=trial.mask).logits
    theirs = dict(zip(own, torch.autograd.grad((logits * trial.probe).sum(), list(own.values())), strict=True))
    grads: dict[str, Tensor] = {}
    if reparametrise:
        grads[f"{first}.P"] = theirs[f"{inside}.embedding.weight"]
        for kind in ("weight", "bias"):
            grads[f"{first}.first.{kind}"] = theirs[f"{inside}.transform.0.{kind}"]
            parts = theirs[f"{inside}.transform.2.{kind}"].chunk(len(slots))
            grads.update({f"{s}.last.{kind}": g for s, g in zip(slots, parts, strict=True)})
    else:
        parts = theirs[f"{inside}.embedding.weight"].chunk(2 * len(slots), dim=1)
        named = [f"{s}.{part}" for s in slots for part in "KV"]
        grads = {n: g.unflatten(1, (2, 16)).transpose(0, 1) for n, g in zip(named, parts, strict=True)}
    positions = torch.arange(length, length + trial.ids.shape[1]).expand_as(trial.ids)
    trial.agrees(logits, grads, position_ids=positions)
