"""Devices, random seeds, autocast and moving batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from peftbench.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick(name: str) -> torch.device:
    """Return the device called `name`.

    Args:
        name: "cpu", "cuda", "cuda:N", "mps", or "auto": CUDA if available, then MPS, then the CPU.

    Raises:
        UserError: The name is unknown, or the device is not available.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if available[d]))
    kind = name.partition(":")[0]
    if kind not in available:
        raise UserError(f"unknown device {name!r}. Valid: {', '.join(DEVICES)}, cuda:N")
    if not available[kind]:
        raise UserError(f"device {name!r} is not available here (torch {torch.__version__}); use --device auto or cpu")
    if kind == "cuda" and name != "cuda" and int(name.partition(":")[2]) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
    return torch.device(name)


def stream(*axes: object) -> int:
    """Return the seed of the random stream that `axes` name.

    The seed is a hash, so that different streams are unrelated.
    """
    return int.from_bytes(hashlib.sha256(json.dumps(axes).encode()).digest()[:7], "big")


def seed(*axes: object) -> None:
    """Seed torch's generators on every device with the stream of `axes`.

    Nothing else in a run calls `manual_seed`.
    """
    torch.manual_seed(stream(*axes))


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[None]:
    """Return the context of the forward pass: bfloat16 autocast, or the weights' own dtype.

    Args:
        device: Device of the network.
        dtype: "bfloat16" enables autocast (trainable parameters stay float32); any other value disables it.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch to a device without waiting for the copy.

    Off the CPU, a mask that hides nothing is left out. The check for padding runs here, on the CPU, where it needs no
    synchronisation; see `attention.sdpa_mask_without_sync`.

    Args:
        batch: Tensors on the CPU, by name.
        device: Device to move them to.

    Returns:
        The tensors on `device`, by name.
    """
    if device.type == "cpu":
        return dict(batch)
    mask = batch.get("attention_mask")
    full = mask is not None and bool(mask.all())
    # A copy from pageable memory is staged before it returns, so later changes to the source cannot reach it.
    queued = device.type == "cuda"
    return {k: v.to(device, non_blocking=queued) for k, v in batch.items() if not (full and k == "attention_mask")}


def synchronise(device: torch.device | str) -> None:
    """Wait until all work queued on `device` is done. The CPU has no queue."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def has_no_data(tensor: Tensor) -> bool:
    """Whether the tensor has a shape but no values: it is on the meta device, or fake."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)
