"""Seconds of a training step on a card, from the kernels that it launches.

A kernel takes as long as its operations or its bytes need, whichever is longer, at a share of the card's rate and of
its bandwidth (a roofline, Williams et al. 2009, doi:10.1145/1498765.1498785). What the cache holds moves faster. The
host launches one kernel after another, so a step is never faster than its launches. The shares and the seconds of a
launch are fitted on published steps (step_seconds.yaml, by scripts/fit_step_time.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import yaml

from peftbench.estimate.card.cards import Card
from peftbench.estimate.card.traffic import Traffic
from peftbench.measure.memory import PHASES

FILE = Path(__file__).with_name("step_seconds.yaml")
LIMITS = {  # what a step waits for, in words
    "products": "arithmetic",
    "memory": "memory traffic",
    "launches": "kernel launches of the host",
    "transfers": "transfers between cards",
}


@dataclass(frozen=True)
class Constants:
    """What is fitted. Values by card are of the machines whose steps were published.

    Attributes:
        products: Share of the card's rate that products reach, by card.
        memory: Share of the card's bandwidth that kernels reach.
        cached: The same of kernels whose bytes the cache holds; it may be above 1.
        launch: Seconds of the host for one kernel, by the card in it.
    """

    products: Mapping[str, float]
    memory: float
    cached: float
    launch: Mapping[str, float]


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of one step.

    Attributes:
        seconds: The step: the device's or the host's, whichever is longer, and the transfers.
        device: Of all kernels.
        host: Of all launches.
        transfers: Of what goes between devices, as if nothing ran beside it.
        products: Of the kernels that are products.
        others: Of the other kernels.
        phases: Of the kernels, by phase.
    """

    seconds: float
    device: float
    host: float
    transfers: float
    products: float
    others: float
    phases: Mapping[str, float]

    @property
    def bound(self) -> str:
        """What most of the step waits for: a key of `LIMITS`."""
        if self.transfers > max(self.device, self.host):
            return "transfers"
        if self.host > self.device:
            return "launches"
        return "products" if self.products > self.others else "memory"


@cache
def fitted() -> dict[str, Any]:
    """Return the file of the fit: its constants, the points and their errors."""
    read: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read


def constants() -> Constants:
    """Return the fitted constants."""
    return Constants(**fitted()["constants"])


def value_of(by_card: Mapping[str, float], card: Card) -> float:
    """Return the value of a card; the geometric mean if none of its steps is known."""
    return by_card.get(card.name) or geometric_mean(by_card.values())


def step_seconds(traffic: Traffic, card: Card, fit: Constants | None = None, offloaded: int = 0) -> StepSeconds:
    """Return the seconds of a step on a card.

    Args:
        traffic: The kernels of the step.
        card: The card.
        fit: The constants; None for the fitted ones.
        offloaded: Bytes that come from the host for the forward and again for the backward.
    """
    fit = fit or constants()
    rate = value_of(fit.products, card)
    products, others = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
    for p in traffic.products:
        bytes_seconds = p.bytes / (fit.memory * card.bandwidth)
        products[p.phase] += p.count * max(p.flops / (rate * card.rate(p.dtype)), bytes_seconds)
    for k in traffic.others:
        share = fit.cached if k.bytes <= k.count * card.cache else fit.memory
        others[k.phase] += k.bytes / (share * card.bandwidth)
    phases = {phase: products[phase] + others[phase] for phase in PHASES}
    device, host = sum(phases.values()), traffic.kernels * value_of(fit.launch, card)
    transfers = (sum(traffic.sent.values()) + 2 * offloaded) / card.link
    total = max(device, host) + transfers
    return StepSeconds(total, device, host, transfers, sum(products.values()), sum(others.values()), phases)


def known_error(card: Card) -> str:
    """Return what the predicted seconds of a card are worth, in a sentence."""
    fit = fitted()
    of = next((fit[name] for name in ("peft", "qwen") if fit[name]["card"] == card.name), None)
    if of is None:
        known = ", ".join(fit["constants"]["products"])
        return f"not verified on this card; the constants come from published steps on {known}"
    half, ninth = (f"{of[f'error_{what}']:.0%}" for what in ("median", "ninth"))
    return f"of {of['what']} that the fit had not seen, half within {half} and nine in ten within {ninth}"
