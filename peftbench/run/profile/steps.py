"""The training step in a profile pass: its time, the time of its phases, and how near it comes to the machine's speed.

That speed is the rate of a large matrix product in the step's dtype. The product is timed as one more action of the
same rounds, so that whatever slows the machine slows both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from peftbench.backbones import devices
from peftbench.measure import timing
from peftbench.measure.flops import FlopCounter
from peftbench.run.train import Trainer

Samples = dict[str, list[float]]
PRODUCT = ""  # the action's name; no label is empty
PRODUCTS = 4  # in a row, so that starting the first one does not count
WIDTHS = {"cpu": 1024, "mps": 4096, "cuda": 8192}  # of the square matrices: large enough to keep all cores at work
SOURCES = {
    "step_seconds": "wall clock around one whole step, the device synchronised before and after; samples by round",
    "ratio": "step_seconds over the reference's of the same round; 95 % percentile bootstrap of the median over rounds",
    "split_seconds": "wall clock between the step's phases; `rounds` says whether in the step's rounds or in others",
    "tokens_per_second": "tokens of the batch without padding over step_seconds",
    "flops": "counted by a dispatch mode in one step: products, attention, convolutions; nothing element by element",
    "flops_per_second": "flops, all phases, over step_seconds",
    "product_share": "flops_per_second over that of `time.product` in the same round; interval as for the ratio",
}


class Rounds(Protocol):
    """Times actions in turns after warm-up; returns the seconds by action, one sample a round."""

    def __call__(self, phase: str, actions: Mapping[str, Callable[[], Any]], *, last: str | None = None) -> Samples: ...


def measure(
    trainers: Mapping[str, Trainer], batch: Mapping[str, Tensor], reference: str, rounds: Rounds
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Time real training steps of every configuration, and a matrix product in the same rounds.

    Args:
        trainers: by label; each takes steps on the batch.
        batch: input_ids, attention_mask and labels, each (batch, ...), on the device.
        reference: the label that ratios are relative to.
        rounds: times the actions.

    Returns:
        By label what a row says of the step (SOURCES defines the figures), and the record of the matrix product.
    """
    first = next(iter(trainers.values()))
    tokens = int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum())
    device, dtype = first.backbone.device, first.dtype

    def synchronize() -> None:
        devices.synchronise(device)

    queued = device.type != "cpu"  # synchronising inside a step would change its time
    clocks = {name: timing.PhaseClock(synchronize) for name in trainers}
    taken = {name: count(1) for name in trainers}

    def actions(clocked: bool) -> dict[str, Callable[[], Any]]:
        return {n: _step(t, batch, taken[n], clocks[n] if clocked else None) for n, t in trainers.items()}

    width = WIDTHS.get(device.type, WIDTHS["cpu"])
    product = {PRODUCT: _product(width, device, dtype)}
    samples = rounds("step time", {**actions(clocked=not queued), **product}, last=PRODUCT)
    number = len(samples[PRODUCT])
    if queued:
        rounds("step, split", actions(clocked=True))
    work = PRODUCTS * 2 * width**3
    rates = [work / seconds for seconds in samples[PRODUCT]]
    rows = {}
    for name, trainer in trainers.items():
        with FlopCounter() as flops:
            trainer.step(batch, 1.0, flops)
        split = {phase: timing.summary(s[-number:]) for phase, s in clocks[name].samples.items()}
        rows[name] = {
            **_row(samples[name], samples.get(reference), flops, tokens, rates),
            "shape": list(batch["input_ids"].shape),
            "split_seconds": {**split, "rounds": "of their own" if queued else "the step's"},
        }
    return rows, {
        "width": width,
        "products": PRODUCTS,
        "dtype": dtype,
        "flops": work,
        "seconds": timing.summary(samples[PRODUCT]),
        "flops_per_second": timing.spread(rates),
    }


def _row(
    seconds: list[float], reference: list[float] | None, flops: FlopCounter, tokens: int, rates: list[float]
) -> dict[str, Any]:
    """The figures that follow from the step's samples; `rates` are the matrix product's operations a second."""
    achieved = [flops.total / s for s in seconds]
    return {
        "step_seconds": timing.summary(seconds),
        "ratio": None if reference is None else timing.ratio(seconds, reference),
        "tokens": tokens,
        "tokens_per_second": timing.spread([tokens / s for s in seconds]),
        "flops": {**flops.by_phase, "total": flops.total},
        "flops_per_second": timing.spread(achieved),
        "product_share": timing.ratio(achieved, rates),
    }


def _step(
    trainer: Trainer, batch: Mapping[str, Tensor], taken: count[int], clock: timing.PhaseClock | None
) -> Callable[[], None]:
    def run() -> None:
        with clock or nullcontext():
            trainer.step(batch, min(1.0, next(taken) / trainer.spec.steps), clock)

    return run


def _product(width: int, device: torch.device, dtype: str) -> Callable[[], None]:
    """A few large square products into an existing result. Values are random, as zeros cost a GPU less."""
    a, b = (torch.rand(width, width, device=device).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)

    def run() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)

    return run
