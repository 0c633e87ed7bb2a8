"""What makes a step fast and can be seen without timing it: nothing waits for the device, nothing needless is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from architectures import Zoo
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from peftbench.backbones import attention
from peftbench.backbones.devices import on_device
from peftbench.backbones.load import Backbone
from peftbench.backbones.losses import counted
from peftbench.backbones.sites import Sites
from peftbench.errors import UserError
from peftbench.method import registry
from peftbench.method.base import Method
from peftbench.method.edit import Adapter, Edit
from peftbench.records.spec import TrainSpec
from peftbench.run import evaluate
from peftbench.run.train import Trainer
from peftbench.tasks import batches
from peftbench.tasks.tokens import Encoded

READS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal"}  # a number comes back
SIZES = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"}  # a size depends on numbers


class Waits(TorchDispatchMode):
    """Records every operation whose answer Python needs before it can go on: on a device with a queue, each waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name.startswith("aten::index") and any(
            isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8)
            for a in args
            if isinstance(a, (list, tuple))
            for t in a
        )
        if name in READS | SIZES or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def started(backbone: Backbone, made: Method) -> Iterator[Trainer]:
    """A trainer after two steps, as if on a device with a queue; the edit is undone afterwards."""
    edit = Edit(backbone)
    try:
        made.attach(edit)
        trainer = Trainer.start(edit, made, TrainSpec(1e-3, 20, 4, 32), "float32")
        backbone.net.train()
        for i in range(2):
            trainer.step(padded(backbone), (i + 1) / 20)
        yield trainer
    finally:
        edit.undo()


def padded(backbone: Backbone) -> dict[str, Tensor]:
    """Four texts of unlike lengths."""
    ids = torch.arange(5, 53).reshape(4, 12)
    mask = (torch.arange(12) < torch.tensor([[12], [9], [7], [4]])).long()
    told = torch.tensor([0, 1, 0, 1]) if backbone.kind == "classification" else ids.masked_fill(mask == 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": told}
    if backbone.decoder_start is not None:
        batch |= {"decoder_input_ids": ids[:, :6].clone(), "labels": ids[:, :6].clone()}
    return batch


NETWORKS = ("bert", "llama", "t5")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize("name", sorted(registry.discover()))
def test_a_training_step_waits_for_nothing(
    name: str, architecture: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "is_asynchronous", lambda device: True)
    backbone = zoo[architecture].backbone
    made = registry.find(name)()
    try:
        with started(backbone, made) as trainer, Waits() as watch:
            for i in range(2, 5):
                trainer.step(padded(backbone), (i + 1) / 20)
    except UserError as refused:
        pytest.skip(str(refused))
    assert not watch.seen


def test_the_watch_sees_what_would_wait() -> None:
    x = torch.arange(4.0)
    acts: list[Callable[[], Any]] = [
        lambda: x.sum().item(),
        lambda: float(x[0]),
        lambda: bool(x.sum() > 1),
        lambda: x.nonzero(),
        lambda: x[x > 1],
        lambda: torch.equal(x, x),
    ]
    for act in acts:
        with Waits() as watch:
            act()
        assert watch.seen


@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize("pads", [True, False])
def test_a_mask_that_is_not_read_changes_no_logit(
    architecture: str, pads: bool, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = zoo[architecture].backbone
    backbone.net.eval()
    inputs = {k: v for k, v in padded(backbone).items() if k != "labels"}
    if not pads:
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    kept = inputs["attention_mask"].bool() if architecture == "llama" else slice(None)
    with torch.no_grad():
        read = backbone.net(**inputs).logits
        monkeypatch.setattr(attention, "is_asynchronous", lambda device: True)
        unread = backbone.net(**inputs).logits
    torch.testing.assert_close(unread[kept], read[kept], rtol=1e-5, atol=1e-5)


def test_a_batch_without_padding_reaches_a_device_without_its_mask() -> None:
    full = {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3).long()}
    some = {**full, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    there = torch.device("meta")
    assert set(on_device(full, there)) == {"input_ids"}
    assert set(on_device(some, there)) == set(some)
    assert all(t.device == there for t in on_device(some, there).values())
    assert set(on_device(full, torch.device("cpu"))) == set(full)


def test_answer_tokens_are_counted_without_being_read() -> None:
    labels = torch.tensor([[5, 6, -100], [-100, 7, 8]])
    with Waits() as watch:
        found = counted("generation", labels)
    assert not watch.seen
    assert int(found) == 3


@dataclass(frozen=True)
class OnTop(Method):
    """Adapts q in the uppermost layer alone."""

    name, paper, lr = "on-top", "none", 1e-3

    def attach(self, edit: Edit) -> None:
        sites = edit.backbone.sites.of("q")
        left = [len(sites)]

        def make(old: nn.Module) -> nn.Module:
            left[0] -= 1
            return old if left[0] else Scaled(old)

        edit.swap("q", make)

    def parameters(self, sites: Sites) -> int:
        return sites.of("q")[-1].size[1]


class Scaled(Adapter):
    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.s = nn.Parameter(torch.ones(self.base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.s * self.base(x)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_frozen_layers_below_the_first_adapter_build_no_graph(architecture: str, checkpointing: bool, zoo: Zoo) -> None:
    backbone = zoo[architecture].load(gradient_checkpointing=checkpointing)
    edit, graphs = Edit(backbone), dict[str, bool]()
    OnTop().attach(edit)
    backbone.net.train()
    for site in backbone.sites.of("q v o"):

        def note(module: nn.Module, args: Any, out: Tensor, path: str = site.path) -> None:
            graphs.setdefault(path, out.grad_fn is not None)

        backbone.net.get_submodule(site.path).register_forward_hook(note)
    batch = padded(backbone)
    del batch["labels"]
    out = backbone.net(**batch).logits
    assert out.requires_grad
    top = backbone.sites.of("q")[-1].path
    below = [s.path for s in backbone.sites.of("q v o")][: -len("qvo")]
    assert below
    assert graphs[top]
    assert not any(graphs[path] for path in below)
    edit.undo()


@pytest.mark.parametrize("name", sorted(registry.discover()))
def test_every_adamw_is_fused_in_all_its_groups(name: str, zoo: Zoo) -> None:
    with started(zoo["bert"].backbone, registry.find(name)()) as trainer:
        optimizer = trainer.optimizer
        if type(optimizer) is torch.optim.AdamW:
            assert all(group["fused"] for group in optimizer.param_groups)
        else:
            assert not isinstance(optimizer, torch.optim.Adam), "a variant of Adam with kernels of torch's own"


def test_evaluation_reads_one_answer_a_batch_and_pads_little(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "is_asynchronous", lambda device: True)
    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 30, size=70)
    ids = [draw.integers(5, 60, size=n).astype(np.int32) for n in lengths]
    data = Encoded(ids, None, np.zeros(70, dtype=np.int64), None, lengths)
    with Waits() as watch:
        values = evaluate.predict(zoo["bert"].backbone, data, 16, "float32")
    assert None not in values
    assert len(watch.seen) <= 5, "one a batch at most"
    real, with_padding = batches.padded(lengths, batches.evaluation(lengths, 16))
    assert with_padding < 1.25 * real
