"""The tracker against the allocator's own events on the CPU, over the real step of every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from peftbench.measure.memory import LiveTensors
from peftbench.method.registry import discover
from peftbench.records.spec import TrainSpec
from peftbench.run.train import Trainer
from peftbench.verify.contract.case import AdaptedModel, Case, batch

METHODS = discover()
SPEC = TrainSpec(1e-3, 4, 4, 12, clip=None)


def _trainer(method: str, network: str, dtype: str) -> tuple[AdaptedModel, Trainer]:
    """A method on a tiny BERT or Llama after its first step, so that the optimizer's state is there."""
    case = Case(METHODS[method], {}, network)
    if case.refusal() is not None:
        pytest.skip("the method does not take this network")
    model = AdaptedModel(case, dtype=dtype)
    trainer = Trainer.start(model.edit, model.method, SPEC, dtype)
    model.net.train()
    trainer.step(batch(case), 0.25)
    return model, trainer


def _tracked(trainer: Trainer, given: Any) -> tuple[dict[str, Any], int]:
    """The record of a step, and the bytes by which its peak is above what was there at entry."""
    with LiveTensors(trainer.groups(), trainer.optimizer) as live:
        trainer.step(given, 0.5, live)
    record = live.record()
    return record, record["peak_bytes"] - live._changes[0]


def _allocators(trainer: Trainer, given: Any) -> int:
    """The same by the profiler's record of every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.step(given, 0.5)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


class Conversions(TorchDispatchMode):
    """The most bytes that one elementwise operation copies into a common type, inside itself, as the CPU does it."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.pointwise in func.tags:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim]
            common = max((t.dtype for t in tensors), key=lambda dtype: dtype.itemsize, default=None)
            copied = sum(t.numel() * common.itemsize for t in tensors if t.dtype != common)
            self.largest = max(self.largest, copied)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["tiny-encoder", "tiny-decoder"])
@pytest.mark.parametrize("method", METHODS)
def test_a_steps_peak_is_the_allocators_and_the_next_steps(method: str, network: str, dtype: str) -> None:
    """Within 128 bytes in float32.

    In bfloat16 without oneDNN, whose packed copies of the weights live and die inside its kernels, and up to what an
    elementwise operation of a bfloat16 and a float32 tensor converts: on the CPU a whole copy, inside the operation.
    """
    model, trainer = _trainer(method, network, dtype)
    given = batch(model.case)
    with torch.backends.mkldnn.flags(enabled=dtype == "float32"):
        (first, above), (second, again) = _tracked(trainer, given), _tracked(trainer, given)
        assert {**first, "resident_bytes": 0} == {**second, "resident_bytes": 0}
        assert above == again
        unseen = 0
        if dtype == "bfloat16":
            with Conversions() as conversions:
                trainer.step(given, 0.5)
            unseen = conversions.largest
        assert -128 <= _allocators(trainer, given) - above <= unseen + 128
