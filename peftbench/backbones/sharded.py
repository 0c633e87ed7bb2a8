"""Tensors of which each process holds a shard (DTensors), where code must work with them and with whole ones."""

from __future__ import annotations

import torch
from torch import Tensor


def is_sharded(t: Tensor) -> bool:
    """Whether a tensor is this process's shard of a larger one."""
    return hasattr(t, "full_tensor")


def whole(t: Tensor) -> Tensor:
    """Return the whole of a tensor that may be in shards. Every process must call it."""
    return t.full_tensor() if is_sharded(t) else t  # type: ignore[attr-defined]


def local(t: Tensor) -> Tensor:
    """Return this process's part of a tensor that may be in shards."""
    return t.to_local() if is_sharded(t) else t  # type: ignore[attr-defined]


def fill(t: Tensor, value: Tensor) -> None:
    """Copy a whole value, equal on every process, into a tensor that may be in shards."""
    if is_sharded(t):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(t.device), t.device_mesh, t.placements, src_data_rank=None)  # type: ignore[attr-defined]
    with torch.no_grad():
        t.copy_(value)
