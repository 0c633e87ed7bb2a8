"""The replayed allocator obeys CUDA's rules, one by one, and loses no byte whatever comes and goes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from peftbench.estimate.card.caching_allocator import CachingAllocator, replayed
from peftbench.estimate.card.gpu_memory import block_bytes

KIB, MIB = 1 << 10, 1 << 20


@dataclass
class Life:
    bytes: int
    born: int
    died: int | None = None


def free_bytes(allocator: CachingAllocator) -> int:
    return sum(size for found in allocator._free.values() for size, _, _ in found)


@pytest.mark.parametrize(
    ("size", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1_024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest of the small ones
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # the smallest with a segment of its own
        (11 * MIB, 12 * MIB, 12 * MIB),  # 1 MiB left is not split off
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # more than 1 MiB is
    ],
)
def test_sizes_decide_blocks_and_segments(size: int, block: int, segment: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(size)
    assert (allocator.allocated, allocator.reserved) == (block, segment)
    assert block_bytes(size) == block


@pytest.mark.parametrize("seed", range(3))
def test_a_fresh_allocator_gives_the_blocks_that_the_estimate_counts(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(300):
        size = int(2 ** draw.uniform(0, 32))
        allocator = CachingAllocator()
        allocator.allocate(size)
        assert allocator.allocated == block_bytes(size)


def test_small_blocks_share_a_segment_until_it_is_full() -> None:
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(512 * KIB)
    assert allocator.reserved == 2 * MIB
    allocator.allocate(1)
    assert allocator.reserved == 4 * MIB


def test_small_and_large_blocks_do_not_share() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(2 * MIB))  # a free segment of 20 MiB
    allocator.allocate(KIB)
    assert allocator.reserved == 22 * MIB


def test_the_smallest_block_that_suffices_is_taken() -> None:
    allocator = CachingAllocator()
    large, exact = allocator.allocate(40 * MIB), allocator.allocate(30 * MIB)
    allocator.free(large)
    allocator.free(exact)
    assert allocator.allocate(29 * MIB) is exact
    assert allocator.allocated == 30 * MIB  # the whole block: 1 MiB is not split off
    assert allocator.allocate(31 * MIB) is large
    assert allocator.reserved == 70 * MIB


def test_neighbours_are_joined_in_any_order() -> None:
    for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2)):
        allocator = CachingAllocator()
        blocks = [allocator.allocate(6 * MIB) for _ in range(3)]
        for i in order:
            allocator.free(blocks[i])
        assert allocator.reserved == 20 * MIB
        allocator.allocate(20 * MIB)  # fits only if the segment is one block again
        assert allocator.reserved == 20 * MIB


def test_blocks_of_two_segments_are_not_joined() -> None:
    allocator = CachingAllocator()
    for block in [allocator.allocate(12 * MIB) for _ in range(2)]:
        allocator.free(block)
    allocator.allocate(24 * MIB)
    assert allocator.reserved == 48 * MIB


def test_segments_stay_and_the_peak_is_kept() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(100 * MIB))
    assert (allocator.allocated, allocator.reserved, allocator.peak) == (0, 100 * MIB, 100 * MIB)


@pytest.mark.parametrize("seed", range(5))
def test_no_byte_is_lost_or_given_twice(seed: int) -> None:
    draw, allocator = random.Random(seed), CachingAllocator()
    held: list[tuple[Any, int]] = []
    for _ in range(2_000):
        if held and draw.random() < 0.48:
            allocator.free(held.pop(draw.randrange(len(held)))[0])
        else:
            size = int(2 ** draw.uniform(0, 27))
            held.append((allocator.allocate(size), size))
        assert all(not block.free and block.size >= size for block, size in held[-3:])
        assert sum(block.size for block, _ in held) == allocator.allocated <= allocator.peak <= allocator.reserved
        assert allocator.allocated + free_bytes(allocator) == allocator.reserved
    assert all(block.size >= size for block, size in held)  # no later split has cut one in use
    assert len({id(block) for block, _ in held}) == len(held)
    for block, _ in held:
        allocator.free(block)
    assert allocator.allocated == 0
    assert all(block.before is None and block.after is None for f in allocator._free.values() for *_, block in f)


def test_a_timeline_frees_before_it_allocates_at_the_same_event() -> None:
    lives = [Life(10 * MIB, 0), Life(12 * MIB, 1, 3), Life(12 * MIB, 3, None)]
    allocator = replayed(lives, fixed=14 * MIB)
    assert allocator.reserved == (14 + 10 + 12) * MIB
    assert allocator.allocated == (14 + 10 + 12) * MIB
