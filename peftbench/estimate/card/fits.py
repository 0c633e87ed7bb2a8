"""Does a step fit on a card, and what does the whole training take: seconds, hours, energy, money."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from peftbench.errors import UserError
from peftbench.estimate import memory_fit
from peftbench.estimate.card import step_seconds
from peftbench.estimate.card.cards import Card
from peftbench.estimate.card.step_seconds import StepSeconds
from peftbench.estimate.memory_fit import LARGEST
from peftbench.estimate.step_estimate import Setting, StepEstimate

CONTEXT = 512 * 2**20  # bytes that a process holds on a card outside tensors: CUDA's context and loaded kernels
CURRENCY = "USD"  # of prices that name none
GRADIENT = 4  # bytes of a gradient, which is float32


@dataclass(frozen=True)
class Program:
    """What is to run: a method with its hyperparameters, and how its step runs."""

    method: str
    hyper: Mapping[str, Any]
    setting: Setting


Estimator = Callable[[Program], StepEstimate]


@dataclass(frozen=True)
class Question:
    """What a user asks of a card.

    Attributes:
        card: The card.
        gpus: Number of such cards, a multiple of the shards; each set of shards trains on texts of its own.
        context: Bytes that a process holds on the card outside tensors.
        examples: Texts of the data set; None if only a step is asked about.
        epochs: How often training goes over them.
        price: Of one card for one hour; None if unknown.
        currency: Of the price.
        positions: Longest text that the network takes; None for any.

    Raises:
        UserError: A value is invalid.
    """

    card: Card
    gpus: int = 1
    context: int = CONTEXT
    examples: int | None = None
    epochs: float = 1.0
    price: float | None = None
    currency: str = CURRENCY
    positions: int | None = None

    def __post_init__(self) -> None:
        for name, valid in (("gpus", self.gpus >= 1), ("examples", self.examples is None or self.examples >= 1)):
            if not valid:
                raise UserError(f"--{name} {getattr(self, name)}: give a whole number from 1")
        if not (0 < self.epochs < math.inf):
            raise UserError(f"--epochs {self.epochs}: give a number above 0")
        if self.price is not None and not (0 <= self.price < math.inf):
            raise UserError(f"--price {self.price}: give what one card costs in an hour, from 0")

    def check(self, setting: Setting) -> None:
        """Raise `UserError` if the cards cannot be divided into sets of shards."""
        if self.gpus % setting.shards:
            raise UserError(f"--gpus {self.gpus} with --shards {setting.shards}: give a multiple of the shards")


@dataclass(frozen=True)
class Bill:
    """What training on the whole data set takes.

    Attributes:
        steps: Optimiser steps.
        hours: Of all cards at once.
        kwh: Energy at the cards' power limit, without the host: an upper bound of what the cards take.
        money: None without a price.
    """

    steps: int
    hours: float
    kwh: float
    money: float | None


@dataclass(frozen=True)
class Largest:
    """The largest batch or length that fits.

    Attributes:
        value: 0 for none.
        ends_with_positions: Whether the network's positions end the search, not the memory.
    """

    value: int
    ends_with_positions: bool


def needed_bytes(estimate: StepEstimate, context: int = CONTEXT) -> int:
    """Return what a step needs of a card, as nvidia-smi shows it: the peak, and what the process holds outside tensors.

    Where another program's step is simulated, that is what CUDA's allocator reserves.
    """
    return max(estimate.reserved_bytes, estimate.peak_bytes) + context


def fits(estimate: StepEstimate, card: Card, context: int = CONTEXT) -> bool:
    """Whether a step fits on a card."""
    return needed_bytes(estimate, context) <= card.memory_bytes


def seconds(estimate: StepEstimate, question: Question) -> StepSeconds | None:
    """Return the seconds of a step on the card; None if its kernels are not known.

    Several sets of shards add up their gradients: each goes out and comes back once over the link.
    """
    if estimate.traffic is None:
        return None
    setting = estimate.setting
    offloaded = estimate.shards["offloadable"] if setting.offload and estimate.shards else 0
    step = step_seconds.step_seconds(estimate.traffic, question.card, offloaded=offloaded)
    if question.gpus == setting.shards:
        return step
    summed = 2 * estimate.trainable * GRADIENT / question.card.link
    return replace(step, seconds=step.seconds + summed, transfers=step.transfers + summed)


def bill(step: float, batch: int, question: Question) -> Bill | None:
    """Return what the whole training takes; None if the number of examples is not known.

    Args:
        step: Seconds of an optimiser step.
        batch: Texts that each card sees in it.
        question: The data set, the cards and the price.
    """
    if question.examples is None:
        return None
    steps = math.ceil(question.examples * question.epochs / (batch * question.gpus))
    hours = steps * step / 3600
    money = None if question.price is None else question.price * question.gpus * hours
    return Bill(steps, hours, question.card.watts * question.gpus * hours / 1000, money)


def largest(axis: str, program: Program, question: Question, estimate_at: Estimator) -> Largest:
    """Find the largest batch, or the longest texts, that fit on the card.

    A larger one must never need less.

    Args:
        axis: "batch" or "seq".
        program: What runs.
        question: The card, and the positions of the network.
        estimate_at: Estimates a program.
    """
    last = question.positions if axis == "seq" and question.positions is not None else LARGEST
    found: dict[int, StepEstimate] = {}

    def needed(value: int) -> int:
        changed: dict[str, Any] = {axis: value}
        found[value] = estimate_at(replace(program, setting=replace(program.setting, **changed)))
        return needed_bytes(found[value], question.context)

    def held(value: int) -> int:
        return question.context + sum(found[value].at_peak[kind] for kind in memory_fit.HELD)

    start = getattr(program.setting, axis)
    low, _ = memory_fit.largest(question.card.memory_bytes, needed, start, held, last)
    return Largest(low, low == last and axis == "seq")
