"""Devices, random seeds, autocast and moving batches."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from peftbench.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick(name: str) -> torch.device:
    """Return the device called `name`.

    Args:
        name: "cpu", "cuda", "cuda:N", "mps", or "auto": CUDA if available, then MPS, then the CPU.

    Returns:
        The device; one of CUDA has its number, so that "cuda" and "cuda:0" are one device.

    Raises:
        UserError: The name is unknown, or the device is not available.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if available[d])
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]+)?", name):
        raise UserError(f"unknown device {name!r}. Valid: {', '.join(DEVICES)}, cuda:N")
    kind, _, number = name.partition(":")
    if not available[kind]:
        raise UserError(f"device {name!r} is not available here (torch {torch.__version__}); use --device auto or cpu")
    if kind != "cuda":
        return torch.device(kind)
    if int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
    return torch.device(kind, int(number or 0))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself; torch's emulation on older GPUs does not count."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)


def check_dtype(device: torch.device, dtype: str) -> None:
    """Raise `UserError` if the device does not compute in this dtype.

    Args:
        device: Device of the network.
        dtype: "float32" or "bfloat16".
    """
    if dtype == "bfloat16" and not has_bfloat16(device):
        raise UserError(
            f"dtype bfloat16: {device} ({hardware(device)}) does not compute in it (CUDA needs compute capability 8.0, "
            "MPS needs macOS 14); use dtype: float32 or another device"
        )


def hardware(device: torch.device) -> str:
    """Return the manufacturer's name of a GPU; for other devices their kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def compute_deterministically(wanted: bool) -> None:
    """Let torch use only kernels that give the same bits each time, and raise where an operation has none.

    Call it before the first CUDA operation: cuBLAS reads its variable when it starts. A value that is set stays.

    Args:
        wanted: Whether to do so; False gives torch's usual kernels back.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)


@contextmanager
def explained_nondeterminism() -> Iterator[None]:
    """Raise `UserError` in place of torch's error for an operation that has no deterministic kernel."""
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        raise UserError(
            f"deterministic: true, but {str(error).strip().partition('. ')[0]}; use deterministic: false, float32 or "
            "another method or backbone"
        ) from error


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
    if device.type == "meta":  # shapes alone: torch has no autocast for it
        return nullcontext()
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
