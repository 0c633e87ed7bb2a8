"""Loops over equal pieces of a large tensor, which keep its temporaries small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor

from peftbench.backbones.devices import has_no_data

Times = Callable[[int], AbstractContextManager[None]]  # counts what happens inside so many times


class _Alike:
    """How often the one piece counts that stands for its like; None while every piece is computed."""

    times: Times | None = None


_alike = _Alike()


def pieces(count: int, step: int, of: Tensor) -> Iterator[slice]:
    """Yield the slices of `count` elements, `step` at a time; the last may be shorter.

    A loop over them holds no more memory at its third piece than at its second. So of a tensor without data, inside
    `alike_pieces_once`, the second full piece stands for all later ones.

    Args:
        count: Number of elements.
        step: Elements of a piece.
        of: The tensor.
    """
    full = count // step
    if _alike.times is not None and full > 2 and has_no_data(of):
        yield slice(0, step)
        with _alike.times(full - 1):
            yield slice(step, 2 * step)
        if full * step < count:
            yield slice(full * step, count)
        return
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def uncounted(times: int) -> AbstractContextManager[None]:
    """Return the context of operations that nobody counts."""
    return nullcontext()


@contextmanager
def alike_pieces_once(times: Times = uncounted) -> Iterator[None]:
    """Compute equal pieces of tensors without data once.

    Args:
        times: Makes a context in which each operation counts so many times.
    """
    before, _alike.times = _alike.times, times
    try:
        yield
    finally:
        _alike.times = before
