"""torch's CUDA caching allocator, replayed over the storages of a simulated step: what a process holds of a device.

From torch 2.13, `c10/cuda/CUDACachingAllocator.cpp`, with its default settings. Sizes are rounded up to 512 bytes. Up
to 1 MiB a block comes from segments of 2 MiB, below 10 MiB from segments of 20 MiB, and a larger one has a segment of
its own, in multiples of 2 MiB. The smallest free block that suffices is taken, of equal ones that of the lowest
address, and split if what remains is worth it: 512 bytes in small segments, more than 1 MiB in large ones. A freed
block joins its free neighbours. Segments are kept.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

UNIT = 512  # kMinBlockSize
SMALL = 1 << 20  # kSmallSize
SMALL_SEGMENT = 2 << 20  # kSmallBuffer
MIDDLE_SEGMENT = 20 << 20  # kLargeBuffer
LARGE = 10 << 20  # kMinLargeAlloc
SEGMENT_UNIT = 2 << 20  # kRoundLarge


@dataclass(eq=False)
class _Block:
    """A part of a segment, linked to its neighbours in it."""

    address: int
    size: int
    small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None


@dataclass
class CachingAllocator:
    """The blocks and segments of one device.

    Attributes:
        allocated: Bytes of the blocks in use, as torch.cuda.memory_allocated counts them.
        reserved: Bytes of all segments, as torch.cuda.memory_reserved counts them.
        peak: Largest `allocated` so far.
    """

    allocated: int = 0
    reserved: int = 0
    peak: int = 0
    _free: dict[bool, list[tuple[int, int, _Block]]] = field(default_factory=lambda: {True: [], False: []})

    def allocate(self, size: int) -> Any:
        """Return a block of at least `size` bytes, to be given to `free`."""
        size = max(UNIT, -(-size // UNIT) * UNIT)
        small = size <= SMALL
        found = self._free[small]
        at = bisect_left(found, (size,))
        block = found.pop(at)[2] if at < len(found) else self._segment(size, small)
        rest = block.size - size
        if rest >= UNIT if small else rest > SMALL:
            left = _Block(block.address + size, rest, small, True, block, block.after)
            if block.after is not None:
                block.after.before = left
            block.size, block.after = size, left
            self._give_back(left)
        block.free = False
        self.allocated += block.size
        self.peak = max(self.peak, self.allocated)
        return block

    def free(self, block: Any) -> None:
        """Free a block; its segment stays."""
        self.allocated -= block.size
        block.free = True
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._take(other)
        if block.before is not None and block.before.free:
            block = _joined(block.before, block)
        if block.after is not None and block.after.free:
            block = _joined(block, block.after)
        self._give_back(block)

    def _segment(self, size: int, small: bool) -> _Block:
        whole = SMALL_SEGMENT if small else MIDDLE_SEGMENT if size < LARGE else -(-size // SEGMENT_UNIT) * SEGMENT_UNIT
        address, self.reserved = self.reserved, self.reserved + whole  # later segments lie higher
        return _Block(address, whole, small)

    def _give_back(self, block: _Block) -> None:
        insort(self._free[block.small], (block.size, block.address, block))

    def _take(self, block: _Block) -> None:
        found = self._free[block.small]
        del found[bisect_left(found, (block.size, block.address))]


def _joined(first: _Block, second: _Block) -> _Block:
    first.size += second.size
    first.after = second.after
    if second.after is not None:
        second.after.before = first
    return first


def replayed(lives: Iterable[Any], fixed: int = 0) -> CachingAllocator:
    """Return the allocator after the storages of a step have come and gone.

    Args:
        lives: Storages with `bytes`, the event of their birth `born` (0: before the step) and of their end `died`.
        fixed: Bytes that a library holds throughout.
    """
    events: list[tuple[int, int, int, Any]] = []
    for number, life in enumerate(lives):
        events.append((life.born, 1, number, life))
        if life.died is not None:
            events.append((life.died, 0, number, life))
    allocator, blocks = CachingAllocator(), {}
    if fixed:
        allocator.allocate(fixed)
    for _, begins, number, life in sorted(events, key=lambda event: event[:3]):
        if begins:
            blocks[number] = allocator.allocate(life.bytes)
        elif number in blocks:
            allocator.free(blocks.pop(number))
    return allocator
