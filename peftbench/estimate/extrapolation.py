"""Extrapolate the memory timeline of a deep network's step from three shallow ones: exact if all layers are alike.

With n equal layers, a part of the step (the forward pass, the backward pass, ...) consists of a beginning, n equal
rounds and an end. The live bytes after the k-th event of layer i are then affine in i and in n. Over all layers they
are largest in the first or the last one: at an event counted from the beginning of the part, or from its end. Such
levels are affine in n.

Networks of n, n + 1 and n + 2 layers determine each level and verify it. If a level is not affine, or the aligned
events do not cover the part (clipping passes over the layers several times), the part has an upper bound: the bytes at
its beginning plus all that it allocates. If a bound reaches the peak, the result is None, and the network must be
simulated in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from peftbench.estimate.timeline import StepTimeline

SHALLOW = 3  # layers of the shallowest simulated network
DEEP = 8  # layers from which on three small depths are simulated instead


@dataclass(frozen=True)
class StepPeak:
    """The memory peak of a step.

    Attributes:
        bytes: Live bytes at the peak.
        parts: These bytes by (role, kind).
        phase: Phase of the peak.
    """

    bytes: int
    parts: dict[tuple[str, str], int]
    phase: str


def peak_of(timeline: StepTimeline) -> StepPeak:
    """Return the peak of a timeline."""
    moment = timeline.peak
    return StepPeak(timeline.levels[moment], timeline.parts(moment), timeline.phase(moment))


def simulate_depths(
    simulate: Callable[[int | None], StepTimeline], layers: int | None
) -> tuple[StepPeak, list[StepTimeline], str, int]:
    """Simulate a step at three small depths and extrapolate, or simulate the whole network.

    Args:
        simulate: Simulates the step of a network with this number of layers; None for its own.
        layers: Number of equal layers of the network; None if they may differ.

    Returns:
        The peak, the simulated timelines, which depths these have, and the number of layers that the network has in
        addition to the first of them.
    """
    if layers is not None and layers >= DEEP:
        depths = [SHALLOW + i for i in range(3)]
        timelines = [simulate(n) for n in depths]
        more = layers - SHALLOW
        peak = extrapolate(timelines, more)
        sizes = [[t.flops for t in timelines], *([t.held[key] for t in timelines] for key in timelines[0].held)]
        if peak is not None and all(affine(values, more) is not None for values in sizes):
            return peak, timelines, f"{', '.join(map(str, depths))} of {layers}, and told from them exactly", more
    whole = simulate(None)
    return peak_of(whole), [whole], "all", 0


def at_full_depth(values: Sequence[int], more: int) -> int:
    """Return a value of the whole network, from that of its timeline or of three shallower ones."""
    value = values[0] if len(values) == 1 else affine(values, more)
    assert value is not None, "simulate_depths checks that the values are affine"
    return value


def equal_layers(config: Any) -> int | None:
    """Return the number of layers of a configuration, or None if they may differ."""
    kinds = set(getattr(config, "layer_types", None) or ["one"])
    alike = len(kinds) == 1 and not config.is_encoder_decoder and getattr(config, "num_hidden_layers", None)
    return int(config.num_hidden_layers) if alike else None


def extrapolate(timelines: Sequence[StepTimeline], more: int) -> StepPeak | None:
    """Extrapolate the peak.

    Args:
        timelines: Timelines of networks with n, n + 1 and n + 2 layers.
        more: Number of layers in addition to n.

    Returns:
        The peak with n + `more` layers; None if it cannot be determined.
    """
    moments: list[tuple[int, int]] = []
    bounds: list[int | None] = []
    if len({len(c.marks) for c in timelines}) > 1:
        return None
    for part in zip(*map(_spans, timelines), strict=True):
        here = list(_aligned(timelines, part))
        moments += here
        if not here and any(stop > start for start, stop in part):
            bounds.append(affine([_bound(c.levels, *span) for c, span in zip(timelines, part, strict=True)], more))
    first, second, _ = timelines

    def level(pair: tuple[int, int], layers: int) -> int:
        return first.levels[pair[0]] + layers * (second.levels[pair[1]] - first.levels[pair[0]])

    for layers, timeline in enumerate(timelines):
        if not moments or max(level(pair, layers) for pair in moments) != timeline.levels[timeline.peak]:
            return None
    best = max(moments, key=lambda pair: level(pair, more))
    if any(bound is None or bound >= level(best, more) for bound in bounds):
        return None
    a, b = first.parts(best[0]), second.parts(best[1])
    parts = {key: a.get(key, 0) + more * (b.get(key, 0) - a.get(key, 0)) for key in {**a, **b}}
    if sum(parts.values()) != level(best, more) or min(parts.values()) < 0:
        return None
    return StepPeak(level(best, more), parts, first.phase(best[0]))


def affine(values: Sequence[int], more: int) -> int | None:
    """Extrapolate three values at consecutive depths to `more` layers after the first.

    None if they are not affine.
    """
    a, b, c = values
    return a + more * (b - a) if c - b == b - a else None


def _spans(timeline: StepTimeline) -> list[tuple[int, int]]:
    """Return the first and last event index of each part."""
    starts = [0, *timeline.marks[1:]]
    return list(zip(starts, [*starts[1:], len(timeline.levels)], strict=True))


def _bound(levels: Sequence[int], start: int, stop: int) -> int:
    """Return an upper bound of these levels: the bytes before them, plus everything that they allocate."""
    around = levels[max(start - 1, 0) : stop]
    return around[0] + sum(max(0, b - a) for a, b in pairwise(around)) if around else 0


def _aligned(timelines: Sequence[StepTimeline], part: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the events of a part that are the same at any depth, as indices in the first and in the second timeline.

    Yields nothing if the depths cannot be aligned.
    """
    sizes = [stop - start for start, stop in part]
    rounds = sizes[1] - sizes[0]  # events of one layer
    if sizes[2] - sizes[1] != rounds or rounds < 0:
        return
    levels = [c.levels[start:stop] for c, (start, stop) in zip(timelines, part, strict=True)]
    front = _regular(levels)
    back = _regular([part[::-1] for part in levels])
    if rounds == 0:
        if front == sizes[0]:
            yield from ((part[0][0] + k, part[1][0] + k) for k in range(sizes[0]))
        return
    # At most these events precede and follow the layers, so both ends include all `SHALLOW` layers.
    front_end = min(front, sizes[0] - back + SHALLOW * rounds)
    back_end = min(back, sizes[0] - front + SHALLOW * rounds)
    if front_end + back_end < sizes[0] + rounds:
        return
    for k in range(min(front_end, sizes[0])):
        yield part[0][0] + k, part[1][0] + k
    for k in range(min(back_end, sizes[0]), 0, -1):
        yield part[0][1] - k, part[1][1] - k


def _regular(levels: Sequence[Sequence[int]]) -> int:
    """Return how many levels from the beginning are affine in the depth."""
    for k, (a, b, c) in enumerate(zip(*levels, strict=False)):
        if c - b != b - a:
            return k
    return len(levels[0])
