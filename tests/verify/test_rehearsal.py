"""A GPU, rehearsed on the meta device: nothing computes on the CPU, and nothing waits for the device without need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from peftbench.backbones import attention
from peftbench.method.registry import discover, find
from peftbench.verify.contract import Case, skip_reason, variants
from peftbench.verify.contract.networks import NETWORKS
from peftbench.verify.contract.rehearsal import EXPECTED, Rehearsal, rehearse, unexpected

SAMPLE = [  # each method once, each network once, and each wait that is expected
    *(("adalora", "tiny-decoder"), ("galore", "tiny-encoder"), ("prompt", "tiny-t5"), ("prefix", "multi-query")),
    *(("lora", "decoder-classifier"), ("full", "t5-classifier"), ("qlora", "sliding-window"), ("dora", "soft-capping")),
    *(("vera", "sinks"), ("adapter", "experts"), ("bitfit", "tiny-encoder"), ("pissa", "tiny-decoder")),
    ("ia3", "experts"),
]
ALL = [(m, n, h) for m, cls in sorted(discover().items()) for n in NETWORKS for h in variants(cls)]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "network"), SAMPLE)
def test_a_step_on_a_gpu_neither_leaves_it_nor_waits_for_it(method: str, network: str) -> None:
    assert unexpected(rehearse(Case(find(method), {}, network))) == []


@pytest.mark.full
@pytest.mark.parametrize(("method", "network", "hyper"), ALL, ids=str)
def test_no_setting_on_any_network_leaves_a_gpu_or_waits_for_it(
    method: str, network: str, hyper: dict[str, Any]
) -> None:
    case = Case(find(method), hyper, network)
    if (why := skip_reason(case)) is not None:
        pytest.skip(why)
    assert unexpected(rehearse(case)) == []


@pytest.mark.slow
def test_the_waits_that_stay_are_few() -> None:
    """GaLore reads once for all gradients that it decomposes; T5's classifier finds the ends of its texts.

    Adapted experts are told once a layer how many tokens each gets.
    """
    galore, t5 = rehearse(Case(find("galore"))), rehearse(Case(find("lora"), {}, "t5-classifier"))
    assert sum(n for place, n in galore.waits["first step"].items() if "copy" in place) == 1
    assert not galore.waits["step"]
    assert all("t5/modeling_t5.py" in place for place in t5.waits["step"])
    assert sum(t5.waits["step"].values()) == 2
    read = rehearse(Case(find("ia3"), {}, "experts")).waits["step"]
    assert read == {"sizes, backbones/experts.py called_each": 2}  # layers


def step(monkeypatch: pytest.MonkeyPatch, act: Callable[[Tensor], Any]) -> Rehearsal:
    """The rehearsal of LoRA on an encoder, with something done to the logits of each step."""
    from peftbench.run import train

    usual = train.loss_sum

    def loss(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
        act(logits)
        return usual(kind, logits, labels)

    monkeypatch.setattr(train, "loss_sum", loss)
    return rehearse(Case(find("lora")))


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "value": lambda x: float(x.detach().sum()),
    "copy to the CPU": lambda x: x.detach().cpu(),
    "a list": lambda x: x.detach().tolist(),
    "nonzero": lambda x: x.detach().nonzero(),
    "masked_select": lambda x: x.detach().masked_select(x > 0),
    "choice by a mask": lambda x: x.detach()[x > 0],
    "equal": lambda x: torch.equal(x.detach(), x.detach()),
    "a check": lambda x: bool((x > 0).all()),
}
STRAYS: dict[str, Callable[[Tensor], Any]] = {
    "a constant": lambda x: torch.tensor(1.0),
    "a range": lambda x: torch.arange(4),
    "random numbers": lambda x: torch.rand(3),
    "a factor": lambda x: x.detach() * torch.ones(()),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_for_the_device_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = step(monkeypatch, WAITS[name])
    assert sum(done.waits["step"].values()) >= 1
    assert unexpected(done)


@pytest.mark.parametrize("name", STRAYS)
def test_what_is_computed_on_the_cpu_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = step(monkeypatch, STRAYS[name])
    assert sum(done.strays["step"].values()) >= 1
    assert unexpected(done)


def test_each_wait_that_stays_has_a_reason() -> None:
    assert all(len(reason) > 20 for reason in EXPECTED.values())


def test_packed_texts_are_still_found_for_users_who_pack() -> None:
    packed = torch.tensor([[0, 1, 2, 0, 1]])
    assert attention._packed(packed) is not None
    with attention.one_text_in_a_row():
        assert attention._packed(packed) is not None, "on the CPU nothing waits, so that nothing changes"
        assert attention._packed(packed.to("meta")) is None
    assert not attention._packed.none
