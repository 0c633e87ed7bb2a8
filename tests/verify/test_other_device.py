"""Of a record with dropout that is repeated on another device, verify says that it cannot tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_specs import spec

from peftbench.backbones import devices
from peftbench.verify.records import summary
from peftbench.verify.records.other_device import draws_differ
from peftbench.verify.records.repeat import DIFFERS, DOES_NOT_APPLY, IDENTICAL, RepeatOutcome, Verification


def record(device: str = "cpu", gpu: str | None = None, dropout: float | None = 0.0, **hyper: Any) -> Any:
    run = spec("lora")
    env = SimpleNamespace(device=device, gpu=None if gpu is None else SimpleNamespace(name=gpu))
    raw = {"hyper": {"rank": 2, **hyper}}
    return SimpleNamespace(
        spec=replace(run, backbone=replace(run.backbone, dropout=dropout)),
        env=env,
        raw=lambda: raw,
        path=Path("r.json"),
    )


@pytest.fixture(autouse=True)
def an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "pick", lambda name: torch.device(name))
    monkeypatch.setattr(devices, "hardware", lambda device: "H200" if device.type == "cuda" else device.type)


@pytest.mark.parametrize("there", [record(dropout=0.1), record(dropout=None), record(dropout=0.0, lora_dropout=0.5)])
def test_dropout_on_another_device_cannot_be_compared(there: Any) -> None:
    why = draws_differ(there, "cuda")
    assert why is not None
    assert why.startswith("dropout draws differ between devices (cpu there, H200 here)")
    assert draws_differ(there, "cpu") is None
    assert draws_differ(there, None) is None


def test_another_model_of_gpu_draws_other_dropout_and_an_equal_one_does_not() -> None:
    assert draws_differ(record("cuda", "H100", dropout=0.1), None) is not None
    assert draws_differ(record("cuda:1", "H200", dropout=0.1), None) is None
    assert draws_differ(record("cuda", "H100", dropout=0.0), None) is None


def test_without_dropout_the_tolerance_holds_on_any_device() -> None:
    assert draws_differ(record(dropout=0.0, dropout_of_method=0), "cuda") is None


def verification(*statuses: str) -> Verification:
    outcomes = [RepeatOutcome(record(), s, message="dropout draws differ") for s in statuses]
    return Verification([], [], {}, len(outcomes), outcomes)


def test_what_cannot_be_compared_neither_passes_nor_fails() -> None:
    assert verification(IDENTICAL, DOES_NOT_APPLY).code == 0
    assert verification(DOES_NOT_APPLY).code == 1
    assert verification(DIFFERS, DOES_NOT_APPLY).code == 1
    assert "bit for bit" in summary._verdict(verification(IDENTICAL, DOES_NOT_APPLY))
    assert "NOT verified: on this device" in summary._verdict(verification(DOES_NOT_APPLY))
