"""One rank of a run on several devices, simulated in one process: what it holds and gathers, without the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from peftbench.records.spec import TrainSpec
from peftbench.run.parallel.ranks import ONE, Group, Ranks

T = TypeVar("T")


class SimulatedRank(Group):
    """The first rank of a group that is not there: collectives have their shapes, and no numbers come back."""

    def any(self, flag: bool) -> bool:
        return flag

    def from_first(self, value: T) -> T:
        return value

    def gather(self, value: T) -> list[T]:
        return [value] * self.size

    def check_same(self, tensors: Mapping[str, Tensor]) -> None:
        """Fake tensors have no numbers that could differ."""

    def check_gradient(self, parameters: object) -> None:
        """Fake tensors have no numbers that could be zero."""

    def _reached(self, bucket: Sequence[nn.Parameter], counts: Tensor) -> list[bool]:
        return [p.grad is not None for p in bucket]


@contextmanager
def simulated_ranks(
    train: TrainSpec | None = None, shards: int = 1, kind: type[SimulatedRank] = SimulatedRank
) -> Iterator[Ranks]:
    """Join a process group of torch's backend "fake", whose collectives return at once.

    Args:
        train: says how many ranks share the run; None for `shards` alone.
        shards: ranks that share the base's weights.
        kind: of the first rank.

    Yields:
        The first rank; a process that is alone if nothing is shared.
    """
    size, shards = (shards, shards) if train is None else (train.ranks, train.shards)
    if size == 1:
        yield ONE
        return
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield kind(shards, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
