"""Every method attaches to every architecture, trains, and is undone bit for bit; in every mode of the backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ALL, Zoo, batch, logits, loss
from torch import Tensor

from peftbench import devices
from peftbench.backbones.load import Backbone
from peftbench.edit import Edit
from peftbench.errors import UserError
from peftbench.method import Method, discover, make

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in discover()},
    "lora everywhere": ("lora", {"roles": "q k v o up down"}),
    "dora everywhere": ("dora", {"roles": "q k v o up down"}),
    "adapter pfeiffer": ("adapter", {"placement": "pfeiffer"}),
    "adapter parallel": ("adapter", {"placement": "parallel"}),
    "prefix reparametrised": ("prefix", {"reparametrise": True, "hidden": 16}),
}
FEW = ["bert", "deberta-v3", "gpt2", "opt-350m", "gpt-neox", "llama"]  # where each mode is tried with every method


def _method(label: str) -> Method:
    name, hyper = CONFIGURATIONS[label]
    return make(discover()[name], hyper)


def _refused(name: str, label: str) -> bool:
    return name.startswith("deberta") and label.startswith("prefix")


def _attach(backbone: Backbone, label: str) -> tuple[Edit, Method]:
    edit, method = Edit(backbone), _method(label)
    torch.manual_seed(5)
    method.attach(edit)
    return edit, method


def _train(edit: Edit, method: Method, steps: int = 2, dtype: str = "float32") -> list[float]:
    net = edit.net.train()
    optimizer = method.optimizer(net, 1e-2, 0.0)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        with devices.autocast(edit.backbone.device, dtype):
            value = loss(net, batch())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(net, (step + 1) / steps)
        losses.append(float(value.detach()))
    edit.check_used()
    method.finish(edit)
    net.eval()
    return losses


@pytest.mark.parametrize("label", CONFIGURATIONS)
@pytest.mark.parametrize("name", ALL)
def test_every_method_attaches_steps_and_is_undone_bit_for_bit(zoo: Zoo, name: str, label: str) -> None:
    backbone = zoo[name].backbone
    if _refused(name, label):
        with pytest.raises(UserError, match="disentangled"):
            _attach(backbone, label)
        return
    inputs = batch()
    before = logits(backbone.net.eval(), inputs)
    weights = {n: p.detach().clone() for n, p in backbone.net.named_parameters()}
    edit, method = _attach(backbone, label)
    assert edit.counts()["trainable"] == method.parameters(backbone.sites)
    trained = edit.trained()
    start = [p.detach().clone() for p in trained]
    _train(edit, method)
    assert all(not torch.equal(a, p) for a, p in zip(start, trained, strict=True) if p.numel() > 1)
    assert not torch.equal(logits(backbone.net, inputs), before)
    edit.undo()
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
    edit, _ = _attach(backbone, label)
    torch.manual_seed(7)
    loss(backbone.net.train(), batch()).backward()
    found = [p.grad.clone() for p in edit.trained() if p.grad is not None]
    edit.undo()
    return found


@pytest.mark.parametrize("label", CONFIGURATIONS)
@pytest.mark.parametrize("name", FEW)
def test_gradient_checkpointing_gives_the_same_gradients(zoo: Zoo, modes: Any, name: str, label: str) -> None:
    """With the model's own dropout: the recomputation draws the same masks."""
    if _refused(name, label):
        pytest.skip("refused, see above")
    plain = _gradients(zoo[name].backbone, label)
    again = _gradients(modes(name, gradient_checkpointing=True), label)
    assert len(plain) == len(again) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_gradient_checkpointing_computes_each_layer_twice(modes: Any, name: str) -> None:
    backbone = modes(name, gradient_checkpointing=True)
    edit, _ = _attach(backbone, "lora")
    calls: list[int] = []
    hook = backbone.net.get_submodule(backbone.sites.of("up")[0].path).register_forward_hook(
        lambda module, args, out: calls.append(1)
    )
    loss(backbone.net.train(), batch()).backward()
    hook.remove()
    edit.undo()
    assert len(calls) == 2


@pytest.mark.parametrize("label", CONFIGURATIONS)
@pytest.mark.parametrize("name", FEW)
def test_every_method_trains_in_bfloat16_and_is_undone(zoo: Zoo, modes: Any, name: str, label: str) -> None:
    if _refused(name, label):
        pytest.skip("refused, see above")
    backbone = modes(name, dtype="bfloat16")
    weights = {n: p.detach().clone() for n, p in backbone.net.named_parameters()}
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    edit, method = _attach(backbone, label)
    assert {p.dtype for p in edit.trained()} == {torch.float32}
    losses = _train(edit, method, steps=3, dtype="bfloat16")
    with torch.inference_mode(), devices.autocast(backbone.device, "bfloat16"):
        assert backbone.net(**batch()).logits.isfinite().all()
    edit.undo()
    assert all(torch.equal(p, weights[n]) and p.dtype == torch.bfloat16 for n, p in backbone.net.named_parameters())
    reference = zoo[name].backbone
    edit, method = _attach(reference, label)
    expected = _train(edit, method, steps=1)
    edit.undo()
    assert losses[0] == pytest.approx(expected[0], rel=0.15)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("label", CONFIGURATIONS)
def test_every_method_generates_with_a_cache_in_bfloat16(modes: Any, label: str) -> None:
    backbone = modes("llama", dtype="bfloat16")
    edit, _ = _attach(backbone, label)
    inputs = batch((7, 4), left=True)
    with torch.inference_mode(), devices.autocast(backbone.device, "bfloat16"):
        out = backbone.net.eval().generate(**inputs, use_cache=True, do_sample=False, max_new_tokens=4, pad_token_id=0)
    edit.undo()
    assert out.shape[1] > 7


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
    attention = loud.net.get_submodule(loud.sites.of("q")[0].path.rpartition(".")[0])
    assert name.startswith("deberta") or _attention_dropout(loud) == {0.3}, attention


def _attention_dropout(backbone: Backbone) -> set[float]:
    """What the attention function is told in training."""
    from peftbench.backbones import attention

    told: set[float] = set()
    usual = attention.AttentionInterface._global_mapping["sdpa"]

    def spy(*args: Any, dropout: float = 0.0, **kwargs: Any) -> Any:
        told.add(dropout)
        return usual(*args, dropout=dropout, **kwargs)

    attention.AttentionInterface._global_mapping["sdpa"] = spy
    try:
        logits(backbone.net.train(), batch())
    finally:
        attention.AttentionInterface._global_mapping["sdpa"] = usual
    return told


def test_the_bitsandbytes_backend_trains_a_tiny_bert(zoo: Zoo) -> None:
    pytest.importorskip("bitsandbytes")
    backbone, found = zoo["bert"].backbone, []
    before = logits(backbone.net.eval(), batch())
    for backend in ("torch", "bitsandbytes"):
        edit, method = Edit(backbone), make(discover()["qlora"], {"backend": backend})
        torch.manual_seed(5)
        method.attach(edit)
        found.append((logits(backbone.net.eval(), batch()), _train(edit, method)))
        edit.undo()
    assert torch.equal(logits(backbone.net.eval(), batch()), before)
    assert not torch.equal(found[0][0], before)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-4)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["lora", "adapter", "prefix", "ia3", "dora", "qlora"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_compiled_network_computes_and_trains_the_same(modes: Any, name: str, label: str) -> None:
    import shutil

    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    backbone: Backbone = modes(name, dropout=0.0)
    edit, _ = _attach(backbone, label)
    backbone.net.train()
    loss(backbone.net, batch()).backward()
    plain = [p.grad.clone() for p in edit.trained()]
    expected = logits(backbone.net, batch())
    for p in edit.trained():
        p.grad = None
    torch._dynamo.reset()
    backbone.net.compile()
    try:
        loss(backbone.net, batch()).backward()
        torch.testing.assert_close([p.grad for p in edit.trained()], plain, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(logits(backbone.net, batch()), expected, rtol=1e-4, atol=1e-5)
        edit.check_used()
    finally:
        backbone.net._compiled_call_impl = None
        edit.undo()
