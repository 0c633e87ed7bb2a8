"""Choose the device, set threads, seed, move batches: the only places that do so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from peftbench.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, then MPS, else the CPU."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if there[d]))
    kind = name.partition(":")[0]
    if kind not in there:
        raise UserError(f"unknown device {name!r}. Valid: {', '.join(DEVICES)}, cuda:N")
    if not there[kind]:
        raise UserError(f"device {name!r} is not available here (torch {torch.__version__}); use --device auto or cpu")
    if kind == "cuda" and name != "cuda" and int(name.partition(":")[2]) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
    return torch.device(name)


def stream(*axes: object) -> int:
    """The seed of the random stream that these axes name: a hash, so that no two streams are shifted copies."""
    return int.from_bytes(hashlib.sha256(json.dumps(axes).encode()).digest()[:7], "big")


def seed(*axes: object) -> None:
    """Start torch's generators, on every device, at the stream of `axes`. Nothing else calls `manual_seed` in a run."""
    torch.manual_seed(stream(*axes))


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[None]:
    """The forward pass's precision: bfloat16 by autocast (what trains stays float32), or as the weights are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """`batch`, which is on the CPU, moved without waiting for the device, and without the mask if that hides nothing.

    Whether there is padding is asked here, where the answer is at hand: see `attention.sdpa_mask_unread`.
    """
    if device.type == "cpu":
        return dict(batch)
    mask = batch.get("attention_mask")
    full = mask is not None and bool(mask.all())
    queued = device.type == "cuda"  # a copy from ordinary memory is staged before it returns, so nothing can change it
    return {k: v.to(device, non_blocking=queued) for k, v in batch.items() if not (full and k == "attention_mask")}


def synchronise(device: torch.device | str) -> None:
    """Wait until all work queued on `device` is done; the CPU has no queue."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
