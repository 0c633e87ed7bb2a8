"""What a GPU adds to the live bytes of a step, as torch's CUDA allocator counts them.

From torch 2.13: `c10/cuda/CUDACachingAllocator` rounds every allocation up to 512 bytes (kMinBlockSize), and
`aten/src/ATen/cuda/CublasHandlePool` gives each handle a workspace: 2 x 4 MiB + 8 x 16 KiB before compute capability
9.0, 32 MiB from it. The thread of the forward pass and that of the backward pass have a handle each.
"""

from __future__ import annotations

from dataclasses import replace

from peftbench.estimate.card import caching_allocator
from peftbench.estimate.simulate.timeline import StepTimeline

BLOCK = 512
SEGMENT = 2 << 20  # from LARGE on, a segment of its own, in multiples of this
LARGE = 10 << 20
UNSPLIT = 1 << 20  # what is left of a large segment and no more than this stays with its block
WORKSPACE = 2 * 4096 * 1024 + 8 * 16 * 1024  # of one cuBLAS handle
WORKSPACE_9_0 = 8 * 4096 * 1024  # from compute capability 9.0
HANDLES = 2
ASSUMED = "live bytes as CUDA's allocator counts them: 512-byte blocks, cuBLAS workspaces"


def on_gpu(timeline: StepTimeline, workspace: int = WORKSPACE) -> StepTimeline:
    """Return the timeline with the sizes that CUDA's allocator gives each storage, and cuBLAS's workspaces.

    Args:
        timeline: The timeline of a simulated step.
        workspace: Bytes of one handle's workspace.
    """
    lives = [replace(life, bytes=block_bytes(life.bytes)) for life in timeline.lives]
    changes = [0] * len(timeline.levels)
    for life in lives:
        changes[life.born] += life.bytes
        if life.died is not None and life.died < len(changes):
            changes[life.died] -= life.bytes
    levels, level = [], HANDLES * workspace
    for change in changes:
        level += change
        levels.append(level)
    held = caching_allocator.replayed(timeline.lives, HANDLES * workspace)
    lives.append(replace(lives[0], bytes=HANDLES * workspace, kind="temporaries", born=0, died=None))
    return replace(timeline, lives=lives, levels=levels, reserved=held.reserved)


def block_bytes(size: int) -> int:
    """Return the size of the block that CUDA's allocator gives to a storage of `size` bytes."""
    rounded = -(-size // BLOCK) * BLOCK
    if rounded < LARGE:
        return rounded
    segment = -(-rounded // SEGMENT) * SEGMENT
    return segment if segment - rounded <= UNSPLIT else rounded
