"""What the ranks of one run say to each other; one process says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from peftbench.backbones.sharded import is_sharded, local, whole
from peftbench.errors import UserError
from peftbench.tasks.batches import IGNORE

BUCKET = 25 * 2**20  # bytes of gradients that are summed together, as DistributedDataParallel does

T = TypeVar("T")


class RanksDiffer(RuntimeError):
    """Ranks that must hold the same numbers do not: their run is of no use."""


class StaleOptimizer(RuntimeError):
    """An optimiser steps parameters that are not the network's."""


class NothingLearns(RuntimeError):
    """The gradient is zero on every rank."""


class Ranks:
    """One process, which is alone.

    Attributes:
        size: number of processes.
        rank: the number of this one, from 0.
        shards: how many of them share the base's weights; 1: each has all.
        mesh: of the shards, for `fully_shard`; None without shards.
        device: of this process's part of the network.
    """

    device = torch.device("cpu")
    size, rank, shards = 1, 0, 1
    mesh: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    @property
    def stream(self) -> tuple[int, ...]:
        """What tells the random streams of ranks apart; the first rank has those of a single process."""
        return (self.rank,) if self.rank else ()

    def check_optimizer(self, net: nn.Module, optimizer: torch.optim.Optimizer, method: str) -> None:
        """Check that an optimiser steps the network's parameters, in groups that it can step.

        Raises:
            StaleOptimizer: it steps what the network was made of before it was sharded.
            UserError: it is of a kind that cannot step shards.
        """

    def share(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """This rank's rows of a batch."""
        return batch

    def part(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's rows of a batch of any size: as many on each rank, the last ones repeated without labels."""
        return dict(batch)

    def joined(self, rows: Tensor, count: int) -> Tensor:
        """The first `count` rows of all ranks' rows, which `part` has divided, on each of them."""
        return rows

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, on each of them."""
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of what is whole on each rank by their sums. Those of shards are sums already."""

    def check_gradient(self, parameters: Iterable[nn.Parameter]) -> None:
        """Check, once, after a backward pass, that the gradient of all ranks together is not zero.

        Raises:
            NothingLearns: it is, so that no step would change anything.
        """

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> None:
        """Scale all gradients so that the norm of the whole gradient is at most `most`."""
        nn.utils.clip_grad_norm_(parameters, most)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag

    def from_first(self, value: T) -> T:
        """The first rank's value, on each of them, so that all decide alike."""
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on each of them."""
        return [value]

    def check_same(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that tensors which are whole on each rank have the same bits everywhere.

        Raises:
            RanksDiffer: they do not.
        """


ONE = Ranks()


class Group(Ranks):
    """One of several processes that torch.distributed has joined.

    Args:
        shards: how many of them share the base's weights; 1 or all.
        device: of this rank's network.
    """

    def __init__(self, shards: int, device: torch.device) -> None:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        self.dist = dist
        self.device = device
        self.size, self.rank, self.shards = dist.get_world_size(), dist.get_rank(), shards
        self.mesh = init_device_mesh(device.type, (shards,)) if shards > 1 else None
        self._has_gradient = False

    def check_optimizer(self, net: nn.Module, optimizer: torch.optim.Optimizer, method: str) -> None:
        present = {id(p) for p in net.parameters()}
        stale = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in present]
        if stale:
            raise StaleOptimizer(
                f"the optimiser steps {len(stale)} parameters that are not the network's (the first of shape "
                f"{tuple(stale[0].shape)}): it was made before the network was sharded, so that no step would count"
            )
        own = not type(optimizer).__module__.startswith("torch.optim")
        if own and any(is_sharded(p) for group in optimizer.param_groups for p in group["params"]):
            raise UserError(
                f"{method}: its optimiser steps whole weights, and with shards each process has only its part of them; "
                "use parallel: {data: N}, or another method"
            )
        for group in list(optimizer.param_groups):  # torch steps a group's tensors together: all in shards, or none
            sharded = [p for p in group["params"] if is_sharded(p)]
            if sharded and len(sharded) < len(group["params"]):
                group["params"] = [p for p in group["params"] if not is_sharded(p)]
                optimizer.add_param_group({**group, "params": sharded})

    def share(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        rows = len(batch["labels"])
        if rows % self.size:
            raise ValueError(f"{rows} rows cannot be divided among {self.size} ranks")
        mine = slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)
        return {k: v[mine] for k, v in batch.items()}

    def part(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows = len(batch["input_ids"])
        each = -(-rows // self.size)
        mine = [min(i, rows - 1) for i in range(self.rank * each, (self.rank + 1) * each)]
        chosen = {k: v[mine] for k, v in batch.items()}
        if "labels" in chosen and chosen["labels"].ndim > 1:
            repeated = max(0, (self.rank + 1) * each - max(rows, self.rank * each))
            chosen["labels"][each - repeated :] = IGNORE
        return chosen

    def joined(self, rows: Tensor, count: int) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        self.dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)[:count]

    def sum(self, value: Tensor) -> Tensor:
        self.dist.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        bucket: list[nn.Parameter] = []
        for p in (p for p in parameters if not is_sharded(p)):
            if bucket and (sum(q.nbytes for q in bucket) + p.nbytes > BUCKET or p.dtype != bucket[0].dtype):
                self._sum_bucket(bucket)
                bucket = []
            bucket.append(p)
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, bucket: Sequence[nn.Parameter]) -> None:
        """Sum in one message: the gradients, and behind them for each parameter how many ranks have one."""
        reached = torch.tensor([p.grad is not None for p in bucket], dtype=bucket[0].dtype)
        parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in bucket]
        flat = torch.cat([*parts, reached.to(bucket[0].device)])
        del parts
        self.dist.all_reduce(flat)
        *sums, counts = flat.split([*(p.numel() for p in bucket), len(bucket)])
        for p, total, is_reached in zip(bucket, sums, self._reached(bucket, counts), strict=True):
            if not is_reached:
                continue  # no rank's part of the batch reached it, as in a single process
            if p.grad is None:
                p.grad = total.reshape(p.shape).clone()
            else:
                p.grad.copy_(total.reshape(p.shape))

    def _reached(self, bucket: Sequence[nn.Parameter], counts: Tensor) -> list[bool]:
        """Whether each parameter has a gradient on any rank; read from the device only where this rank has none."""
        if all(p.grad is not None for p in bucket):
            return [True] * len(bucket)
        return [count > 0 for count in counts.tolist()]

    def check_gradient(self, parameters: Iterable[nn.Parameter]) -> None:
        if self._has_gradient:
            return
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        self._has_gradient = self.any(any(bool(g.count_nonzero()) for g in grads))
        if not self._has_gradient:
            raise NothingLearns(
                "the gradient of the first step is zero on every rank: the loss does not depend on what trains, as "
                "where quantised weights are gathered wrongly. The run would learn nothing"
            )

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> None:
        reached = [p for p in parameters if p.grad is not None]
        kinds = [[p for p in reached if is_sharded(p) is sharded] for sharded in (False, True)]
        grads = [[p.grad for p in some if p.grad is not None] for some in kinds if some]
        norms = [whole(nn.utils.get_total_norm(some)) for some in grads]
        if norms:
            norm = torch.stack(norms).norm()
            for some in kinds:
                nn.utils.clip_grads_with_norm_(some, most, norm)

    def any(self, flag: bool) -> bool:
        told = torch.tensor([flag], dtype=torch.uint8)  # on the CPU, so that no device is waited for
        self.dist.all_reduce(told, self.dist.ReduceOp.MAX)
        return bool(told)

    def from_first(self, value: T) -> T:
        box: list[Any] = [value]
        self.dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        self.dist.all_gather_object(found, value)
        return found

    def check_same(self, tensors: Mapping[str, Tensor]) -> None:
        from peftbench.backbones.unchanged import bit_sums

        mine = bit_sums({n: t for n, t in tensors.items() if not is_sharded(t)})
        for rank, theirs in enumerate(self.gather(mine)):
            if differing := [name for name, value in mine.items() if theirs.get(name) != value]:
                raise RanksDiffer(
                    f"ranks {self.rank} and {rank} hold different numbers in {differing[0]} and {len(differing) - 1} "
                    "other tensors that must be equal on every rank: their gradients were not summed, or their first "
                    "values depend on the rank. The run is of no use"
                )
