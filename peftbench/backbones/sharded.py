"""Tensors of which each process holds a shard (DTensors), where code must work with them and with whole ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def is_sharded(t: Tensor) -> bool:
    """Whether a tensor is this process's shard of a larger one."""
    return hasattr(t, "full_tensor")


def whole(t: Tensor) -> Tensor:
    """Return the whole of a tensor that may be in shards. Every process must call it."""
    gather: Callable[[], Tensor] | None = getattr(t, "full_tensor", None)
    return t if gather is None else gather()


def local(t: Tensor) -> Tensor:
    """Return this process's part of a tensor that may be in shards."""
    part: Callable[[], Tensor] | None = getattr(t, "to_local", None)
    return t if part is None else part()


def fill(t: Tensor, value: Tensor) -> None:
    """Copy a whole value, equal on every process, into a tensor that may be in shards."""
    if is_sharded(t):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(t, DTensor)
        value = distribute_tensor(value.to(t.device), t.device_mesh, t.placements, src_data_rank=None)
    with torch.no_grad():
        t.copy_(value)
