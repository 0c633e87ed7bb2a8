"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from peftbench import tasks
from peftbench.backbones import source
from peftbench.backbones.load import load
from peftbench.measure.memory import track_step
from peftbench.method.edit import Edit
from peftbench.method.registry import discover, make
from peftbench.records.spec import BackboneSpec, MethodSpec, RunSpec, TaskSpec, TrainSpec
from peftbench.run.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

METHODS = sorted(name for name, cls in discover().items() if cls.needs != "a task head")  # all that train the base
IDS = torch.tensor([[1, 40, 41, 42, 2], [1, 50, 51, 2, 0]])
MASK = (IDS != 0).long()


def spec(method: str, **backbone: object) -> RunSpec:
    data = tasks.open_task("synthetic/classification")
    base = BackboneSpec("tiny-encoder", source.fingerprint("tiny-encoder"), dropout=0.0)
    train = TrainSpec(lr=5e-3, steps=6, batch_size=8, max_length=32)
    where = TaskSpec(data.name, data.fingerprint)
    return RunSpec(replace(base, **backbone), where, MethodSpec(method, method, 1, {}), train, 0)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_losses_on_the_gpu_are_those_on_the_cpu(method: str) -> None:
    here = Session("cpu").execute(spec(method))["curve"]["loss"]
    there = Session("cuda").execute(spec(method))["curve"]["loss"]
    assert there[0] == pytest.approx(here[0], rel=1e-3)
    assert all(math.isfinite(x) for x in there)


@pytest.mark.parametrize("method", METHODS)
def test_undo_on_the_gpu_is_exact(method: str) -> None:
    backbone = load("tiny-encoder", "classification", 2, device="cuda")
    backbone.net.eval()
    before = backbone.net(input_ids=IDS.cuda(), attention_mask=MASK.cuda()).logits
    edit = Edit(backbone)
    make(discover()[method], {}).attach(edit)
    edit.undo()
    assert torch.equal(backbone.net(input_ids=IDS.cuda(), attention_mask=MASK.cuda()).logits, before)


@pytest.mark.parametrize("method", METHODS)
def test_tracked_memory_is_within_the_allocators_peak(method: str) -> None:
    memory = Session("cuda").execute(spec(method))["memory"]
    assert memory["peak_bytes"] <= memory["allocated_bytes"] <= memory["reserved_bytes"]


def test_bfloat16_trains_on_the_gpu() -> None:
    losses = Session("cuda").execute(spec("lora", dtype="bfloat16"))["curve"]["loss"]
    assert all(math.isfinite(x) for x in losses)


def test_bitsandbytes_kernels_agree_with_ours_on_the_gpu() -> None:
    from peftbench.backbones.modules import SiteLinear
    from peftbench.method.layers.nf4 import NF4Linear

    dense = SiteLinear(128, 256).cuda()
    x = torch.randn(4, 128, device="cuda")
    ours, theirs = (NF4Linear.from_dense(dense, backend=b)(x) for b in ("torch", "bitsandbytes"))
    assert torch.allclose(ours, theirs, atol=2e-2)


def test_the_peak_on_the_gpu_is_the_allocators_up_to_its_rounding() -> None:
    """Elementwise, so that no kernel has a workspace; the allocator rounds each of some tensors to 512 bytes."""
    scale = torch.nn.Parameter(torch.ones(100_001, device="cuda"))
    x = torch.randn(3, 100_001, device="cuda")
    optimizer = torch.optim.AdamW([scale], fused=True)

    def step() -> dict[str, object]:
        return track_step({"weights": [scale], "batch": [x]}, optimizer, lambda: (scale * x).tanh().exp().sum())

    step()  # the optimizer's state is made here
    there = torch.cuda.memory_allocated()
    known = scale.nbytes + x.nbytes + sum(t.nbytes for t in optimizer.state[scale].values())
    record = step()
    above = record["allocated_bytes"] - there  # type: ignore[operator]
    assert 0 <= above - (record["peak_bytes"] - known) < 30 * 512
