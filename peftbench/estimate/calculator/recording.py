"""Record a training step of a small network with readable dimensions, at two depths.

A recording holds the storages of the step with their births and ends, which moments of it every depth has, and the
kernels. Sizes are products of dimensions (dimensions.py), so that the same step of any network of the family, with any
batch, length and rank, has the peak, the reserved bytes and the kernels that the recording gives with its numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor

from peftbench.estimate.calculator.dimensions import Sized
from peftbench.estimate.calculator.shard_sizes import ShardSizes, UnsummedRank
from peftbench.estimate.calculator.unusual_sizes import unusual_sizes
from peftbench.estimate.card import traffic
from peftbench.estimate.card.traffic import KernelCounter
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.simulate.simulated_step import Watch
from peftbench.estimate.simulate.timeline import StepTimeline
from peftbench.estimate.step_estimate import Setting, requested_step
from peftbench.method.base import Method

ROUNDS = (2, 4)  # the first and the last of the depths that `estimate` extrapolates from
ROUNDS_SHARDED = (3, 5)  # the same in shards, where two layers are not regular enough
UPDATE = "update"  # the phase of an optimiser's one kernel, which others replace
SENT = "sent"  # the phase of what goes between devices, which is no kernel
KINDS = ("weights", "adapter", "head", "gradients", "optimizer", "activations", "temporaries")

Terms = tuple[tuple[tuple[int, ...], Fraction], ...]  # a sum of products, sorted
Read = Callable[[int], Sized]


class ReadingCounter(KernelCounter):
    """The counter of kernels, which keeps the terms of their sizes."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read
        self._operation = ""
        self.kernels: Counter[tuple[str, str, Terms, Terms]] = Counter()  # phase, dtype or "", operations, bytes

    def moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        """Return the bytes that one operation reads and writes, with their terms."""
        self._operation = str(func)
        return traffic.moved_bytes(func, args, kwargs, out, lambda t: self.read(traffic.touched_bytes(t)))

    def one_kernel(self, phase: str, size: int) -> None:
        """Count a kernel that is no product."""
        super().one_kernel(phase, int(size))
        phase = UPDATE if "_fused_adam" in self._operation else phase
        self.kernels[phase, "", (), self._terms(size)] += self._times

    def one_product(self, shape: tuple[str, str, int, int]) -> None:
        """Count a product."""
        phase, dtype, operations, size = shape
        super().one_product((phase, dtype, operations, int(size)))
        self.kernels[phase, dtype, self._terms(operations), self._terms(size)] += self._times

    def one_transfer(self, phase: str, received: Sequence[Tensor]) -> None:
        """Count a transfer between devices."""
        super().one_transfer(phase, received)
        for tensor in received:
            self.kernels[SENT, "", (), self._terms(traffic.touched_bytes(tensor))] += self._times

    def _terms(self, size: int) -> Terms:
        read = size if isinstance(size, Sized) else self.read(size)
        return tuple(sorted(read.terms.items()))


@dataclass(frozen=True)
class Life:
    """A storage: its kind, its terms, and the events of its birth and its end; None if it outlives the step."""

    kind: str
    size: Terms
    born: int
    died: int | None


@dataclass(frozen=True)
class Recording:
    """A step at two depths.

    Attributes:
        lives: Storages at each depth, in the order in which an allocator meets them.
        events: Number of events at each depth.
        parts: The first event of each part of the step at both depths.
        phases: Part numbers at which forward, backward and optimizer begin.
        kernels: (phase, dtype or "", operations, bytes) -> their number at each depth.
        rounds: The depths.
    """

    lives: tuple[tuple[Life, ...], tuple[Life, ...]]
    events: tuple[int, int]
    parts: tuple[tuple[int, int], ...]
    phases: tuple[tuple[int, str], ...]
    kernels: Mapping[tuple[str, str, Terms, Terms], tuple[int, int]]
    rounds: tuple[int, int] = ROUNDS


def record(folder: str, method: Method, setting: Setting, values: Mapping[str, int], period: int = 1) -> Recording:
    """Record a step.

    Args:
        folder: Folder with the configuration of a network with readable dimensions.
        method: The method, whose size knob is one of the dimensions.
        setting: How the step runs, with the batch and the length of `values`.
        values: The dimensions.
        period: Layers of a round.

    Raises:
        Unreadable: A size is not a product of the dimensions.
        UserError: The network does not take the method.
    """
    timelines: list[StepTimeline] = []
    counters: list[ReadingCounter] = []
    sizes = ShardSizes(values)

    def counter() -> ReadingCounter:
        counters.append(ReadingCounter(sizes.read))
        return counters[-1]

    watch = Watch(counter, UnsummedRank, sizes.note)
    depths = ROUNDS if setting.shards == 1 else ROUNDS_SHARDED
    with unusual_sizes(values):
        for rounds in depths:
            layers = rounds * period
            timelines.append(requested_step(ModelQuery(folder), method, setting, layers=layers, watch=watch))
    first, second = (tuple(_lives(t, sizes.read)) for t in timelines)
    kernels = {
        key: (counters[0].kernels[key], counters[1].kernels[key])
        for key in dict.fromkeys([*counters[0].kernels, *counters[1].kernels])
    }
    return Recording(
        (first, second),
        (len(timelines[0].levels), len(timelines[1].levels)),
        tuple(zip(*([0, *t.marks[1:]] for t in timelines), strict=True)),
        tuple((start, name) for start, name in timelines[0].phases),
        kernels,
        depths,
    )


def _lives(timeline: StepTimeline, read: Read) -> list[Life]:
    ordered = sorted(timeline.lives, key=lambda life: life.born)  # stable, as the allocator's replay is
    return [
        Life(life.kind, tuple(sorted(read(life.bytes).terms.items())), life.born, life.died)
        for life in ordered
        if life.bytes
    ]
