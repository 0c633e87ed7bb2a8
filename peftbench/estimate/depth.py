"""The course of a step of a deep network, from those of shallow ones: exact where all layers are alike.

With n equal layers, a part of the step (the forward pass, the backward pass, ...) goes through a beginning, n equal
rounds and an end. The live bytes after the k-th event of layer i are then affine in i and in n, so that over all
layers they are largest in the first or in the last one: at an event counted from the part's beginning, or from its
end. Such levels are affine in n. Networks of n, n + 1 and n + 2 layers give every one of them and check each: where a
level is not affine, or the aligned events do not cover the part (clipping goes through the layers several times), the
part is bounded from above: by the bytes at its beginning and all that it allocates. A bound that reaches the peak gives
no answer (None), and the network has to be simulated in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from peftbench.estimate.simulate import Course

SHALLOW = 3  # layers of the shallowest


@dataclass(frozen=True)
class Peak:
    """The peak of a step: bytes, its parts by (role, kind), and the phase it falls in."""

    bytes: int
    parts: dict[tuple[str, str], int]
    phase: str


def peak(course: Course) -> Peak:
    """The peak of a step that was simulated in full."""
    moment = course.peak
    return Peak(course.levels[moment], course.parts(moment), course.phase(moment))


def deeper(courses: Sequence[Course], more: int) -> Peak | None:
    """The peak with `more` layers than the first of three courses has; None where that cannot be told."""
    moments: list[tuple[int, int]] = []
    bounds: list[int | None] = []
    if len({len(c.marks) for c in courses}) > 1:
        return None
    for part in zip(*map(_spans, courses), strict=True):
        here = list(_aligned(courses, part))
        moments += here
        if not here and any(stop > start for start, stop in part):
            bounds.append(affine([_bound(c.levels, *span) for c, span in zip(courses, part, strict=True)], more))
    first, second, _ = courses

    def level(pair: tuple[int, int], layers: int) -> int:
        return first.levels[pair[0]] + layers * (second.levels[pair[1]] - first.levels[pair[0]])

    for layers, course in enumerate(courses):
        if not moments or max(level(pair, layers) for pair in moments) != course.levels[course.peak]:
            return None
    best = max(moments, key=lambda pair: level(pair, more))
    if any(bound is None or bound >= level(best, more) for bound in bounds):
        return None
    a, b = first.parts(best[0]), second.parts(best[1])
    parts = {key: a.get(key, 0) + more * (b.get(key, 0) - a.get(key, 0)) for key in {**a, **b}}
    if sum(parts.values()) != level(best, more) or min(parts.values()) < 0:
        return None
    return Peak(level(best, more), parts, first.phase(best[0]))


def affine(values: Sequence[int], more: int) -> int | None:
    """The value with `more` layers than the first of three; None where the three are on no line."""
    a, b, c = values
    return a + more * (b - a) if c - b == b - a else None


def _spans(course: Course) -> list[tuple[int, int]]:
    """Where each part's events begin and end."""
    starts = [0, *course.marks[1:]]
    return list(zip(starts, [*starts[1:], len(course.levels)], strict=True))


def _bound(levels: Sequence[int], start: int, stop: int) -> int:
    """No level of these events is higher: what was there before, and everything they allocate."""
    around = levels[max(start - 1, 0) : stop]
    return around[0] + sum(max(0, b - a) for a, b in pairwise(around)) if around else 0


def _aligned(courses: Sequence[Course], part: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The events of a part that are the same at any depth, in the first course and in the second; none if it fails."""
    sizes = [stop - start for start, stop in part]
    rounds = sizes[1] - sizes[0]  # events of one layer
    if sizes[2] - sizes[1] != rounds or rounds < 0:
        return
    levels = [c.levels[start:stop] for c, (start, stop) in zip(courses, part, strict=True)]
    front = _regular(levels)
    back = _regular([part[::-1] for part in levels])
    if rounds == 0:
        if front == sizes[0]:
            yield from ((part[0][0] + k, part[1][0] + k) for k in range(sizes[0]))
        return
    # Of the events before and behind the layers, at most these; so the layers of `SHALLOW` are within both ends.
    front_end = min(front, sizes[0] - back + SHALLOW * rounds)
    back_end = min(back, sizes[0] - front + SHALLOW * rounds)
    if front_end + back_end < sizes[0] + rounds:
        return
    for k in range(min(front_end, sizes[0])):
        yield part[0][0] + k, part[1][0] + k
    for k in range(min(back_end, sizes[0]), 0, -1):
        yield part[0][1] - k, part[1][1] - k


def _regular(levels: Sequence[Sequence[int]]) -> int:
    """How many levels from the beginning lie on a line each."""
    for k, (a, b, c) in enumerate(zip(*levels, strict=False)):
        if c - b != b - a:
            return k
    return len(levels[0])
