"""Devices by name, what they can compute in, and kernels that give the same bits each time. No test needs a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from peftbench.backbones import devices
from peftbench.errors import UserError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, of which nothing can be asked but their number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")


@pytest.fixture
def usual_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    devices.compute_deterministically(False)


def test_cuda_is_its_first_device(gpus: None) -> None:
    assert str(devices.pick("cuda")) == str(devices.pick("cuda:0")) == str(devices.pick("auto")) == "cuda:0"
    assert str(devices.pick("cuda:1")) == "cuda:1"
    with pytest.raises(UserError, match="2 CUDA devices"):
        devices.pick("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:0:1", "cpu:0", "CUDA", ""])
def test_what_is_no_device_is_refused(name: str, gpus: None) -> None:
    with pytest.raises(UserError, match="unknown device"):
        devices.pick(name)


def test_bfloat16_is_refused_where_the_gpu_only_emulates_it(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    old = torch.device("cuda", 0)
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: device.type == "cpu")
    with pytest.raises(UserError, match=r"bfloat16.*Old GPU.*float32"):
        devices.check_dtype(old, "bfloat16")
    devices.check_dtype(old, "float32")
    devices.check_dtype(torch.device("cpu"), "bfloat16")


def test_deterministic_kernels_are_asked_for_before_cuda_starts(usual_kernels: None) -> None:
    devices.compute_deterministically(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    devices.compute_deterministically(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_users_own_workspace_stays(usual_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    devices.compute_deterministically(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_an_operation_without_a_deterministic_kernel_is_named(usual_kernels: None) -> None:
    devices.compute_deterministically(True)
    refused = pytest.raises(UserError, match=r"deterministic: true, but put_.*deterministic: false")
    with refused, devices.explained_nondeterminism():
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="another"), devices.explained_nondeterminism():
        raise RuntimeError("another error")
