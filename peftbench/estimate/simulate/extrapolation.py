"""Extrapolate the memory timeline of a deep network's step from three shallow ones: exact if its rounds are alike.

A round is one layer where all are alike, and a few where their kinds alternate, such as windowed and full attention.

With n equal rounds, a part of the step (the forward pass, the backward pass, ...) consists of a beginning, n equal
rounds and an end. The live bytes after the k-th event of round i are then affine in i and in n. Over all rounds they
are largest in the first or the last one: at an event counted from the beginning of the part, or from its end. Such
levels are affine in n.

Networks of n, n + 1 and n + 2 rounds determine each level and verify it. If a level is not affine, or the aligned
events do not cover the part (clipping passes over the layers several times), the part has an upper bound: the bytes at
its beginning plus all that it allocates. If a bound reaches the peak, the result is None, and the network must be
simulated in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from peftbench.estimate.simulate.timeline import StepTimeline

SHALLOW = (2, 3)  # rounds of the shallowest simulated network; 3 where 2, 3 and 4 are not regular enough
DEEP = 8  # layers from which on three small depths are simulated instead


@dataclass(frozen=True)
class Rounds:
    """The layers of a network, whose kinds repeat.

    Attributes:
        layers: Number of layers.
        period: Layers of a round. What remains of the layers, less than a round, is at the end.
    """

    layers: int
    period: int

    def depth(self, rounds: int) -> int:
        """Return the number of layers of a network with so many rounds and the same end."""
        return rounds * self.period + self.layers % self.period

    def depths(self, first: int) -> list[int]:
        """Return the layers of three networks, of `first` rounds and one and two more; none if all layers are fewer."""
        depths = [self.depth(first + i) for i in range(3)]
        return depths if self.layers >= DEEP and sum(depths) < self.layers else []


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
    simulate: Callable[[int | None], StepTimeline], rounds: Rounds | None
) -> tuple[StepPeak, list[StepTimeline], str, int]:
    """Simulate a step at three small depths and extrapolate, or simulate the whole network.

    Args:
        simulate: Simulates the step of a network with this number of layers; None for its own.
        rounds: Layers of the network; None if they may differ.

    Returns:
        The peak, the simulated timelines, which depths these have, and the number of rounds that the network has in
        addition to the first of them.
    """
    known: dict[int, StepTimeline] = {}
    for first in SHALLOW:
        depths = rounds.depths(first) if rounds is not None else []
        if rounds is None or not depths:
            break
        known |= {n: simulate(n) for n in depths if n not in known}
        timelines = [known[n] for n in depths]
        more = rounds.layers // rounds.period - first
        peak = extrapolate(timelines, more, first)
        sizes = [[t.flops for t in timelines], *([t.held[key] for t in timelines] for key in timelines[0].held)]
        sizes += [[t.shards[key] for t in timelines] for key in timelines[0].shards]
        if peak is not None and all(affine(values, more) is not None for values in sizes):
            how = f"{', '.join(map(str, depths))} of {rounds.layers}, and told from them exactly"
            return peak, timelines, how, more
    whole = simulate(None)
    return peak_of(whole), [whole], "all", 0


def at_full_depth(values: Sequence[int], more: int) -> int:
    """Return a value of the whole network, from that of its timeline or of three shallower ones."""
    value = values[0] if len(values) == 1 else affine(values, more)
    assert value is not None, "simulate_depths checks that the values are affine"
    return value


def equal_layers(config: Any) -> int | None:
    """Return the number of layers of a configuration, or None if they may differ."""
    rounds = rounds_of(config)
    return rounds.layers if rounds is not None and rounds.period == 1 else None


def rounds_of(config: Any) -> Rounds | None:
    """Return the layers of a configuration, or None if they may differ in a way that does not repeat."""
    layers = getattr(config, "num_hidden_layers", None)
    if config.is_encoder_decoder or not layers:
        return None
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        return None  # some layers of a network of experts have none
    lists = [v for v in config.to_dict().values() if isinstance(v, list) and len(v) == layers]
    kinds = [tuple(str(v[i]) for v in lists) for i in range(layers)]
    period = next(p for p in range(1, layers + 1) if all(kinds[i] == kinds[i % p] for i in range(layers)))
    return Rounds(layers, period)


def extrapolate(timelines: Sequence[StepTimeline], more: int, first_rounds: int) -> StepPeak | None:
    """Extrapolate the peak.

    Args:
        timelines: Timelines of networks with n, n + 1 and n + 2 rounds.
        more: Number of rounds in addition to n.
        first_rounds: n.

    Returns:
        The peak with n + `more` rounds; None if it cannot be determined.
    """
    moments: list[tuple[int, int]] = []
    bounds: list[int | None] = []
    if len({len(c.marks) for c in timelines}) > 1:
        return None
    for part in zip(*map(_spans, timelines), strict=True):
        here = list(_aligned(timelines, part, first_rounds))
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
    """Extrapolate three values at consecutive depths to `more` rounds after the first.

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


def _aligned(
    timelines: Sequence[StepTimeline], part: Sequence[tuple[int, int]], first_rounds: int
) -> Iterator[tuple[int, int]]:
    """Yield the events of a part that are the same at any depth, as indices in the first and in the second timeline.

    Yields nothing if the depths cannot be aligned.
    """
    sizes = [stop - start for start, stop in part]
    rounds = sizes[1] - sizes[0]  # events of one round
    if sizes[2] - sizes[1] != rounds or rounds < 0:
        return
    levels = [c.levels[start:stop] for c, (start, stop) in zip(timelines, part, strict=True)]
    front = _regular(levels)
    back = _regular([part[::-1] for part in levels])
    if rounds == 0:
        if front == sizes[0]:
            yield from ((part[0][0] + k, part[1][0] + k) for k in range(sizes[0]))
        return
    # At most these events precede and follow the rounds, so both ends include all rounds of the first network.
    front_end = min(front, sizes[0] - back + first_rounds * rounds)
    back_end = min(back, sizes[0] - front + first_rounds * rounds)
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
