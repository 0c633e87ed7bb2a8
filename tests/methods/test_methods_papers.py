"""Each method against its paper: logits and every gradient, in float64, on a BERT written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from paper_trial import CLOSE, LAYER, LAYERS, Trial
from reference_bert import Linear, bert, dense, gelu
from torch import Tensor

from peftbench.method.layers import nf4
from peftbench.method.registry import find
from peftbench.verify.contract import Case
from peftbench.verify.contract.case import AdaptedModel


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def with_changes(w: Mapping[str, Tensor], at: Callable[[str], bool], changed: Linear) -> Linear:
    plain = dense(w)
    return lambda path, x: changed(path, x) if at(path) else plain(path, x)


def query_or_value(path: str) -> bool:
    return path.endswith(("self.query", "self.value"))


def test_the_reference_network_is_bert() -> None:
    trial = Trial("lora")
    with torch.no_grad():
        trial.model.edit.load({n: torch.zeros_like(t) for n, t in trial.s.items()})
        logits = trial.net(input_ids=trial.ids, attention_mask=trial.mask).logits
    torch.testing.assert_close(logits, bert(trial.base, trial.ids, trial.mask), **CLOSE)


def test_full_fine_tuning_has_the_gradient_of_every_weight() -> None:
    trial = Trial("full")
    assert set(trial.s) == {n for n in trial.base if not n.startswith(("bert.pooler", "classifier"))}
    trial.agrees(bert(trial.weights(), trial.ids, trial.mask))


def test_lora_is_equation_3_of_its_paper() -> None:
    trial = Trial("lora", rank=3, alpha=12.0)
    w, s = trial.base, trial.s

    def layer(path: str, x: Tensor) -> Tensor:
        update = (12 / 3) * (s[f"{path}.B"] @ s[f"{path}.A"])  # (alpha / r) B A
        return x @ (w[f"{path}.weight"] + update).T + w[f"{path}.bias"]

    trial.agrees(bert(w, trial.ids, trial.mask, with_changes(w, query_or_value, layer)))


def test_dora_is_equation_5_of_its_paper_with_the_norm_held_constant() -> None:
    trial = Trial("dora", rank=3, alpha=12.0)
    w, s = trial.base, trial.s

    def layer(path: str, x: Tensor) -> Tensor:
        V = w[f"{path}.weight"] + (12 / 3) * (s[f"{path}.B"] @ s[f"{path}.A"])
        length = V.detach().square().sum(1, keepdim=True).sqrt()  # section 4.3: no gradient
        return x @ (s[f"{path}.m"][:, None] * V / length).T + w[f"{path}.bias"]

    trial.agrees(bert(w, trial.ids, trial.mask, with_changes(w, query_or_value, layer)))


def test_ia3_rescales_keys_values_and_inner_activations() -> None:
    trial = Trial("ia3")
    w, s = trial.base, trial.s

    def inner(path: str) -> bool:
        return path.endswith("output.dense") and "attention" not in path

    def layer(path: str, x: Tensor) -> Tensor:
        scale = s[f"{path}.l"]
        if inner(path):
            return (scale * x) @ w[f"{path}.weight"].T + w[f"{path}.bias"]
        return scale * (x @ w[f"{path}.weight"].T + w[f"{path}.bias"])

    linear = with_changes(w, lambda path: inner(path) or path.endswith(("self.key", "self.value")), layer)
    trial.agrees(bert(w, trial.ids, trial.mask, linear))


def test_a_prefix_stands_in_front_of_keys_and_values() -> None:
    trial = Trial("prefix", length=5)

    def prefix(layer: int) -> tuple[Tensor, Tensor]:
        slot = f"{LAYER}.{layer}.attention.self.prefix_slot"
        return trial.s[f"{slot}.K"], trial.s[f"{slot}.V"]

    trial.agrees(bert(trial.base, trial.ids, trial.mask, prefix=prefix))


def test_a_reparametrised_prefix_is_an_mlp_of_a_smaller_matrix() -> None:
    trial = Trial("prefix", length=5, reparametrise=True, hidden=7)
    s = trial.s
    shared = f"{LAYER}.0.attention.self.prefix_slot.shared"

    def prefix(layer: int) -> tuple[Tensor, Tensor]:
        last = f"{LAYER}.{layer}.attention.self.prefix_slot.last"
        hidden = torch.tanh(s[f"{shared}.P"] @ s[f"{shared}.first.weight"].T + s[f"{shared}.first.bias"])
        rows = hidden @ s[f"{last}.weight"].T + s[f"{last}.bias"]  # (length, 2 * heads * head width)
        keys, values = rows[:, :32], rows[:, 32:]
        return tuple(part.reshape(5, 2, 16).transpose(0, 1) for part in (keys, values))  # type: ignore[return-value]

    trial.agrees(bert(trial.base, trial.ids, trial.mask, prefix=prefix))


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_a_bottleneck_adapter_sits_where_its_paper_puts_it(placement: str) -> None:
    trial = Trial("adapter", placement=placement, bottleneck=6)
    s = trial.s

    def sublayer(role: str, layer: int, x: Tensor, f: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        if role == "attn" and placement != "houlsby":
            return f
        D, U = (f"{LAYER}.{layer}.{role}_site.{part}" for part in "DU")
        seen = {"houlsby": f, "pfeiffer": norm(f + x), "parallel": x}[placement]
        inner = seen @ s[f"{D}.weight"].T + s[f"{D}.bias"]
        inner = gelu(inner) if placement == "houlsby" else inner.clamp(min=0)
        change = inner @ s[f"{U}.weight"].T + s[f"{U}.bias"]
        return f + (4 if placement == "parallel" else 1) * change

    trial.agrees(bert(trial.weights(), trial.ids, trial.mask, sublayer=sublayer))
    norms = [n for n in s if "LayerNorm" in n]
    assert len(norms) == (2 * (1 + 2 * len(LAYERS)) if placement == "houlsby" else 0)


@pytest.mark.parametrize("double", [False, True])
def test_qlora_is_lora_over_the_dequantised_weights(double: bool) -> None:
    trial = Trial("qlora", rank=3, alpha=12.0, double_quant=double)
    linear_layers = [n.removesuffix(".weight") for n in trial.base if ".layer." in n and n.endswith("weight")]
    quantised = {path for path in linear_layers if "LayerNorm" not in path}
    w = dict(trial.base)
    for path in quantised:
        rounded = nf4.dequantize(nf4.quantize(w[f"{path}.weight"].float(), double=double))
        assert not torch.equal(rounded.double(), w[f"{path}.weight"])
        w[f"{path}.weight"] = rounded.double()
    s = trial.s

    def layer(path: str, x: Tensor) -> Tensor:
        update = (12 / 3) * (s[f"{path}.B"] @ s[f"{path}.A"])
        return x @ (w[f"{path}.weight"] + update).T + w[f"{path}.bias"]

    assert len(quantised) == 6 * len(LAYERS)
    trial.agrees(bert(w, trial.ids, trial.mask, with_changes(w, quantised.__contains__, layer)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora", {"A": lambda t: t.abs().max() <= 1 / math.sqrt(t.shape[1]), "B": lambda t: not t.any()}),
        ("dora", {"B": lambda t: not t.any()}),
        ("ia3", {"l": lambda t: bool((t == 1).all())}),
        ("prefix", {"K": lambda t: 0.015 < t.std() < 0.025, "V": lambda t: 0.015 < t.std() < 0.025}),
    ],
)
def test_a_method_starts_where_its_paper_starts(name: str, expected: Mapping[str, Callable[[Tensor], bool]]) -> None:
    state = AdaptedModel(Case(find(name))).edit.state()
    for letter, holds in expected.items():
        found = [t for n, t in state.items() if n.endswith(f".{letter}")]
        assert found
        assert all(holds(t) for t in found)


def test_dora_starts_with_the_rows_own_norms() -> None:
    model = AdaptedModel(Case(find("dora")))
    for name, t in model.edit.state().items():
        if name.endswith(".m"):
            weight = model.backbone.parameters[name.removesuffix("m") + "weight"]
            torch.testing.assert_close(t, weight.detach().square().sum(1).sqrt())


def test_houlsby_starts_near_the_identity_and_parallel_at_it() -> None:
    for placement, near in (("houlsby", 0.02), ("parallel", 0.0)):
        state = AdaptedModel(Case(find("adapter"), {"placement": placement})).edit.state()
        ups = [t for n, t in state.items() if n.endswith("U.weight")]
        assert all(float(t.abs().max()) <= near for t in ups)
        assert all(not t.any() for n, t in state.items() if n.endswith(("U.bias", "D.bias")))
