"""The small relatives against their papers: formulas and steps written out by hand, in float64, on the tiny BERT."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from architectures import ALL, Zoo
from paper_trial import CLOSE, LAYER, LAYERS, Trial
from reference_bert import Linear, bert, dense
from torch import Tensor

from peftbench.backbones.networks import head_of
from peftbench.method.edit import Edit
from peftbench.method.layers import nf4
from peftbench.method.registry import find, make
from peftbench.records.spec import TrainSpec
from peftbench.run.schedule import rate
from peftbench.run.train import Trainer
from peftbench.verify.contract import Case
from peftbench.verify.contract.case import AdaptedModel

QUERY_AND_VALUE = tuple(f"{LAYER}.{i}.attention.self.{part}" for i in LAYERS for part in ("query", "value"))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def low_rank(w: Mapping[str, Tensor], s: Mapping[str, Tensor], scale: float) -> Linear:
    """W x + scale B A x + b at queries and values, W x + b elsewhere."""
    plain = dense(w)

    def layer(path: str, x: Tensor) -> Tensor:
        if path not in QUERY_AND_VALUE:
            return plain(path, x)
        return plain(path, x) + scale * (x @ s[f"{path}.A"].T @ s[f"{path}.B"].T)

    return layer


def test_bitfit_trains_every_bias_of_the_base_and_nothing_else() -> None:
    trial = Trial("bitfit")
    base = [n for n in trial.base if not n.startswith(("bert.pooler", "classifier"))]
    assert set(trial.s) == {n for n in base if n.endswith(".bias")}
    assert len(trial.s) == 1 + 8 * len(LAYERS)
    trial.agrees(bert(trial.weights(), trial.ids, trial.mask))


def test_layernorm_tuning_trains_gains_and_biases_of_every_norm() -> None:
    trial = Trial("layernorm")
    assert set(trial.s) == {n for n in trial.base if ".LayerNorm." in n}
    assert len(trial.s) == 2 * (1 + 2 * len(LAYERS))
    trial.agrees(bert(trial.weights(), trial.ids, trial.mask))


@pytest.mark.parametrize("name", ALL)
def test_the_biases_of_an_architecture_are_counted_as_transformers_has_them(zoo: Zoo, name: str) -> None:
    """Fused and split layers, Conv1D, norms and embeddings alike; the task head is left out."""
    model = zoo[name]
    head = tuple(f"{path}." for path in head_of(model.untouched, model.backbone.kind))
    theirs = {n: p for n, p in model.untouched.named_parameters() if not n.startswith(head or "-")}
    assert model.backbone.sites.biases == sum(p.numel() for n, p in theirs.items() if n.endswith("bias"))
    assert sum(p.numel() for p in theirs.values()) == model.backbone.sites.base


@pytest.mark.parametrize(("name", "kept"), [("bert", "LayerNorm.weight"), ("gpt-neox", "layernorm.weight")])
def test_a_gain_beside_a_trained_bias_is_widened_but_neither_trains_nor_is_saved(
    zoo: Zoo, name: str, kept: str
) -> None:
    backbone = zoo[name].load(dtype="bfloat16")
    before = {n: p.detach().clone() for n, p in backbone.parameters.items()}
    edit = Edit(backbone)
    make(find("bitfit"), {}).attach(edit)
    gains = {n: p for n, p in backbone.parameters.items() if n.endswith(kept)}
    assert gains
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in gains.values())
    assert all(torch.equal(p.bfloat16(), before[n]) for n, p in gains.items())
    assert not gains.keys() & edit.state().keys()
    edit.undo()
    assert all(p.dtype == torch.bfloat16 and torch.equal(p, before[n]) for n, p in backbone.parameters.items())


def test_rslora_scales_its_update_by_alpha_over_the_root_of_the_rank() -> None:
    trial = Trial("rslora", rank=3, alpha=12.0)
    linear = low_rank(trial.base, trial.s, 12 / math.sqrt(3))
    trial.agrees(bert(trial.base, trial.ids, trial.mask, linear))


def test_an_rslora_update_keeps_its_size_where_loras_shrinks() -> None:
    """With entries of A and B that do not depend on the rank, B A grows as the root of the rank."""
    sizes = {}
    for name in ("lora", "rslora"):
        for rank in (4, 256):
            model = AdaptedModel(Case(find(name), {"rank": rank}))
            adapter = model.edit.adapters()[0]
            torch.manual_seed(0)
            with torch.no_grad():
                adapter.A.normal_()
                adapter.B.normal_()
                sizes[name, rank] = float(adapter.scale * (adapter.B @ adapter.A).std())
    assert sizes["rslora", 256] == pytest.approx(sizes["rslora", 4], rel=0.3)
    assert sizes["lora", 256] == pytest.approx(sizes["lora", 4] / 8, rel=0.3)


@pytest.mark.parametrize("double", [False, True])
def test_qdora_is_dora_over_the_dequantised_weights(double: bool) -> None:
    trial = Trial("qdora", rank=3, alpha=12.0, double_quant=double)
    quantised = [n.removesuffix(".weight") for n in trial.base if ".layer." in n and n.endswith("weight")]
    quantised = [path for path in quantised if "LayerNorm" not in path]
    assert len(quantised) == 6 * len(LAYERS)
    w, s = dict(trial.base), trial.s
    for path in quantised:
        rounded = nf4.dequantize(nf4.quantize(w[f"{path}.weight"].float(), double=double))
        assert not torch.equal(rounded.double(), w[f"{path}.weight"])
        w[f"{path}.weight"] = rounded.double()
    plain = dense(w)

    def layer(path: str, x: Tensor) -> Tensor:
        if path not in quantised:
            return plain(path, x)
        V = w[f"{path}.weight"] + (12 / 3) * (s[f"{path}.B"] @ s[f"{path}.A"])
        length = V.detach().square().sum(1, keepdim=True).sqrt()  # no gradient
        return x @ (s[f"{path}.m"][:, None] * V / length).T + w[f"{path}.bias"]

    trial.agrees(bert(w, trial.ids, trial.mask, layer))


def test_qdora_starts_as_its_quantised_base_and_as_qlora_does() -> None:
    model, other = AdaptedModel(Case(find("qdora"))), AdaptedModel(Case(find("qlora")))
    assert torch.equal(model.logits(), other.logits())
    for adapter in model.edit.adapters():
        torch.testing.assert_close(adapter.m.detach(), adapter.base.dense_weight().square().sum(1).sqrt())


def steps_by_hand(trial: Trial, lr: float, ratio: float, decay: float, steps: int) -> dict[str, Tensor]:
    """AdamW on the paper's leaves, B with `ratio` times the rate of A; returns where they end."""
    s = {n: t.detach().clone() for n, t in trial.s.items()}
    mean, square = ({n: torch.zeros_like(t) for n, t in s.items()} for _ in range(2))
    for t in range(1, steps + 1):
        leaves = {n: value.clone().requires_grad_() for n, value in s.items()}
        logits = bert(trial.base, trial.ids, trial.mask, low_rank(trial.base, leaves, 12 / 3))
        gradients = torch.autograd.grad((logits * trial.probe).sum(), list(leaves.values()))
        for n, g in zip(leaves, gradients, strict=True):
            eta = lr * (ratio if n.endswith(".B") else 1)
            mean[n] = 0.9 * mean[n] + 0.1 * g
            square[n] = 0.999 * square[n] + 0.001 * g * g
            step = (mean[n] / (1 - 0.9**t)) / ((square[n] / (1 - 0.999**t)).sqrt() + 1e-8)
            s[n] = (1 - eta * decay) * s[n] - eta * step
    return s


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_two_steps_of_lora_plus_are_those_of_its_paper(ratio: float) -> None:
    trial = Trial("lora_plus", rank=3, alpha=12.0, ratio=ratio)
    trial.agrees(bert(trial.base, trial.ids, trial.mask, low_rank(trial.base, trial.s, 12 / 3)))
    expected = steps_by_hand(trial, lr=2e-3, ratio=ratio, decay=0.1, steps=2)
    optimizer = trial.model.method.optimizer(trial.net, 2e-3, 0.1)
    for _ in range(2):
        logits = trial.net(input_ids=trial.ids, attention_mask=trial.mask).logits
        (logits * trial.probe).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = trial.model.edit.state()
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        torch.testing.assert_close(found[name], t, **CLOSE)
        assert not torch.allclose(t, trial.s[name], rtol=1e-4)


def test_the_two_rates_of_lora_plus_move_together_and_the_head_has_its_own() -> None:
    model = AdaptedModel(Case(find("lora_plus"), {"rank": 2}))
    spec = TrainSpec(lr=1e-3, steps=10, batch_size=4, max_length=12, head_lr=5e-3, warmup=0.2, decay="cosine")
    trainer = Trainer.start(model.edit, model.method, spec, "float32")
    groups = trainer.optimizer.param_groups
    adapters = model.edit.adapters()
    ours = [[id(m.A) for m in adapters], [id(m.B) for m in adapters]]
    expected = [*ours, [id(p) for p in model.backbone.head_parameters()]]
    assert [[id(p) for p in group["params"]] for group in groups] == expected
    for done in range(spec.steps):
        trainer.schedule(done)
        share = rate(done, spec)
        assert [group["lr"] for group in groups] == pytest.approx([1e-3 * share, 16e-3 * share, 5e-3 * share])
