"""Every method attaches to every architecture, trains, and is undone bit for bit; in every mode of the backbone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ALL, EXPERTS, Zoo, batch, logits, loss, save
from pairs import pairs
from torch import Tensor

from peftbench.backbones import devices
from peftbench.backbones.load import Backbone, load
from peftbench.errors import UserError
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.method.registry import discover, make

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in discover() if name != "linear_probe"},  # which trains nothing of the base
    "lora everywhere": ("lora", {"roles": "q k v o up down"}),
    "dora everywhere": ("dora", {"roles": "q k v o up down"}),
    "adapter pfeiffer": ("adapter", {"placement": "pfeiffer"}),
    "adapter parallel": ("adapter", {"placement": "parallel"}),
    "prefix reparametrised": ("prefix", {"reparametrise": True, "hidden": 16}),
}
BITSANDBYTES = {"qlora bitsandbytes": ("qlora", {"backend": "bitsandbytes"})}
# where each mode is tried with every method
SITES = ("full", "lora", "adapter", "prefix")  # all weights; linear layers, blocks, slots of the attention
NEW = ["phi3", "gemma2", "gemma3", "falcon", "qwen3-moe", "gpt-oss"]  # fused or experts' layers, norms around sublayers
WITHOUT_BIAS = (
    "llama",
    "mistral",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "smollm3",
    "mixtral",
    "qwen3-moe",
    "t5",
    "t5-gated",
)
FEW = ["bert", "deberta-v3", "gpt2", "opt-350m", "gpt-neox", "llama", "t5-gated"]


def _refused(label: str, name: str) -> str:
    """What the refusal says where an architecture is none for a method; empty where it is one."""
    if name.startswith("deberta") and label.startswith("prefix"):
        return "disentangled"
    if name.startswith("falcon") and label.startswith("prefix"):
        return "a FalconAttention, which does not call the attention interface"
    return "has none" if label == "bitfit" and name in WITHOUT_BIAS else ""


MODES = [
    pair
    for pair in pairs(
        CONFIGURATIONS, FEW, every_method_on=["llama", "t5-gated"], on_every_network=SITES, fast=["llama"]
    )
    if not _refused(*pair.values)
]


@contextmanager
def _attached(backbone: Backbone, label: str) -> Iterator[tuple[Edit, Method]]:
    edit, (name, hyper) = Edit(backbone), {**CONFIGURATIONS, **BITSANDBYTES}[label]
    method = make(discover()[name], hyper)
    torch.manual_seed(5)
    try:
        method.attach(edit)
        yield edit, method
    finally:
        edit.undo()


def _train(edit: Edit, method: Method, steps: int = 2, dtype: str = "float32") -> list[float]:
    net = edit.net.train()
    optimizer = method.optimizer(net, 1e-2, 0.0)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        with devices.autocast(edit.backbone.device, dtype):
            value = loss(net, edit.backbone.inputs(batch()))
        extra = method.extra_loss(net)
        (value if extra is None else value + extra).backward()
        optimizer.step()
        method.after_step(net, (step + 1) / steps)
        optimizer.zero_grad()
        losses.append(float(value.detach()))
    edit.check_used()
    method.finish(edit)
    net.eval()
    return losses


@pytest.mark.parametrize(
    ("label", "name"),
    pairs(CONFIGURATIONS, ALL, every_method_on=[*FEW, *NEW], on_every_network=SITES, fast=["bert", "llama"]),
)
def test_every_method_attaches_steps_and_is_undone_bit_for_bit(zoo: Zoo, name: str, label: str) -> None:
    backbone = zoo[name].backbone
    if _refused(label, name):
        with pytest.raises(UserError, match=_refused(label, name)), _attached(backbone, label):
            pass
        return
    inputs = batch()
    before = logits(backbone.net.eval(), inputs)
    weights = {n: p.detach().clone() for n, p in backbone.net.named_parameters()}
    with _attached(backbone, label) as (edit, method):
        assert edit.counts()["trainable"] == method.parameters(backbone.sites)
        trained = edit.trained()
        start = [p.detach().clone() for p in trained]
        _train(edit, method)
        prunes = type(method).after_step is not Method.after_step  # it may put a tensor back to the zeros it had
        still = [p for a, p in zip(start, trained, strict=True) if torch.equal(a, p)]
        assert not any(bool(p.count_nonzero()) or not prunes for p in still)
        now = logits(backbone.net, backbone.inputs(inputs))
        assert now.shape != before.shape or not torch.equal(now, before)
    after = dict(backbone.net.named_parameters())
    assert list(after) == list(weights)
    assert all(torch.equal(after[n], w) and after[n].dtype == w.dtype for n, w in weights.items())
    assert not any(p.requires_grad or p.grad is not None for p in after.values())
    assert torch.equal(logits(backbone.net, inputs), before)


@pytest.fixture(scope="module")
def modes(zoo: Zoo) -> Any:
    """Backbones of a model in another mode, each loaded once."""
    kept: dict[str, Backbone] = {}

    def get(name: str, **options: Any) -> Backbone:
        key = f"{name} {options}"
        if key not in kept:
            kept[key] = zoo[name].load(**options)
        return kept[key]

    return get


def _gradients(backbone: Backbone, label: str) -> list[Tensor]:
    with _attached(backbone, label) as (edit, _):
        torch.manual_seed(7)
        loss(backbone.net.train(), backbone.inputs(batch())).backward()
        return [p.grad.clone() for p in edit.trained() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize(("label", "name"), MODES)
def test_gradient_checkpointing_gives_the_same_gradients(zoo: Zoo, modes: Any, name: str, label: str) -> None:
    """With the model's own dropout: the recomputation draws the same masks."""
    plain = _gradients(zoo[name].backbone, label)
    again = _gradients(modes(name, gradient_checkpointing=True), label)
    assert len(plain) == len(again) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_gradient_checkpointing_computes_each_layer_twice(modes: Any, name: str) -> None:
    backbone = modes(name, gradient_checkpointing=True)
    calls: list[int] = []
    role = "o" if name in EXPERTS else "up"  # which expert gets tokens is the router's choice
    layer = backbone.net.get_submodule(backbone.sites.of(role)[-1].path)  # GPT-NeoX: the first keeps no graph
    hook = layer.register_forward_hook(lambda module, args, out: calls.append(1))
    with _attached(backbone, "lora"):
        loss(backbone.net.train(), batch()).backward()
    hook.remove()
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("label", "name"), MODES)
def test_every_method_trains_in_bfloat16_as_in_float32_and_is_undone(modes: Any, name: str, label: str) -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        backbone = modes(name, dtype=dtype, dropout=0.0)
        weights = {n: p.detach().clone() for n, p in backbone.net.named_parameters()}
        assert {w.dtype for w in weights.values()} == {getattr(torch, dtype)}
        with _attached(backbone, label) as (edit, method):
            assert {p.dtype for p in edit.trained()} == {torch.float32}
            found[dtype] = _train(edit, method, steps=3, dtype=dtype)
        after = dict(backbone.net.named_parameters())
        assert all(torch.equal(after[n], w) and after[n].dtype == w.dtype for n, w in weights.items())
    loose = max(0.05, 0.03 * found["float32"][0])  # steps this large amplify rounding where the loss falls steeply
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.1, abs=loose)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start", "label"),
    [
        (name, start, label)
        for name, start in (("llama", 7), ("t5-gated", 1))
        for label in CONFIGURATIONS
        if not _refused(label, name)
    ],
)
def test_every_method_generates_with_a_cache_in_bfloat16(modes: Any, name: str, start: int, label: str) -> None:
    backbone = modes(name, dtype="bfloat16")
    inputs, same = batch((7, 4), left=True), {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}
    with (
        _attached(backbone, label),
        torch.inference_mode(),
        devices.autocast(backbone.device, "bfloat16"),
    ):
        out = backbone.net.eval().generate(**backbone.inputs(inputs), use_cache=True, **same)
    assert out.shape[1] > start


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_dropout_override_reaches_every_dropout(modes: Any, name: str) -> None:
    """At zero, training computes what evaluation computes; at 0.3, every dropout module says 0.3."""
    still = modes(name, dropout=0.0)
    calm = logits(still.net.eval(), batch())
    assert torch.equal(logits(still.net.train(), batch()), calm)
    loud = modes(name, dropout=0.3)
    rates = {m.p for m in loud.net.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates <= {0.3}
    assert not torch.equal(logits(loud.net.train(), batch()), logits(loud.net.eval(), batch()))
    modules = name.startswith(("deberta", "falcon"))  # they ask no attention function, and drop by modules if at all
    assert modules or _attention_dropout(loud) == {0.3}


def _attention_dropout(backbone: Backbone) -> set[float]:
    """What the attention function is told in training; where the network has its own eager one, what that drops."""
    from peftbench.backbones import attention

    told: set[float] = set()

    def spied(usual: Any, name: str) -> Any:
        def spy(*args: Any, **kwargs: Any) -> Any:
            told.add(kwargs.get(name, 0.0))
            return usual(*args, **kwargs)

        return spy

    mapping, functional = attention.AttentionInterface._global_mapping, torch.nn.functional
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mapping, "sdpa", spied(mapping["sdpa"], "dropout"))
        if backbone.net.config._attn_implementation == "eager":
            patch.setattr(functional, "dropout", spied(functional.dropout, "p"))
        logits(backbone.net.train(), batch())
    return told


def test_the_bitsandbytes_backend_trains_a_tiny_bert(zoo: Zoo) -> None:
    pytest.importorskip("bitsandbytes")
    backbone, found = zoo["bert"].backbone, []
    before = logits(backbone.net.eval(), batch())
    for label in ("qlora", "qlora bitsandbytes"):
        with _attached(backbone, label) as (edit, method):
            start = logits(backbone.net.eval(), batch())
            found.append((start, _train(edit, method)))
    assert torch.equal(logits(backbone.net.eval(), batch()), before)
    assert (found[0][0] - before).abs().max() > 1e-2  # what quantisation itself changes
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-3)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-2)


@pytest.mark.full
@pytest.mark.slow
def test_a_compiled_network_computes_and_trains_the_same(tmp_path: Path) -> None:
    """A prefix, adapters at the blocks and a LoRA on 4-bit weights at once: slots, hooks and linear sites."""
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    model_type, kind, facts = ALL["llama"]
    folder = save(tmp_path / "one layer", model_type, kind, {**facts, "num_hidden_layers": 1})
    backbone = load(str(folder), kind, dropout=0.0)
    net = backbone.net.train()
    edit = Edit(backbone)
    for label in ("qlora", "adapter parallel", "prefix"):
        name, hyper = CONFIGURATIONS[label]
        make(discover()[name], hyper).attach(edit)
    expected, plain = _step(edit)
    torch._dynamo.reset()
    net.compile()
    computed, found = _step(edit)
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-5)
    edit.check_used()


def _step(edit: Edit) -> tuple[Tensor, list[Tensor]]:
    """The logits of one training step, and its gradients."""
    out = edit.net(**batch()).logits
    (out.logsumexp(-1).mean() - out[..., 0].mean()).backward()
    found = [p.grad.clone() for p in edit.trained() if p.grad is not None]
    for p in edit.trained():
        p.grad = None
    return out.detach(), found
