"""Find the rounds of layers in a step that was recorded at two depths, which tell its storages with any other depth.

A part of the step (the forward pass, the clipping, ...) takes the layers once or several times. Each time is a loop:
its events repeat, once for each round. A loop's events are the same in every round, but for the place of the storage
that ends among the living ones, the youngest first. That grows evenly from round to round and with the depth, as do
the sizes of what counts the network's parameters. depths.js writes the loops out.

In some parts, what nobody refers to any more ends in no order, such as that of a set. Ends that follow one another
leave the allocator in the same state in any order, so they are put into that of the births.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from peftbench.estimate.calculator import event_stream
from peftbench.estimate.calculator.event_stream import BEFORE, Columns, Pair

MEANT = 3  # ends that follow one another in an order of a meaning: those of a piece of a 4-bit weight (pieces.js)
Numbers = list[int]  # of an event stream, without references
Label = tuple[object, ...]


class Irregular(ValueError):
    """A recorded step does not consist of loops over its layers."""


@dataclass(frozen=True)
class Loop:
    """A part of both depths' numbers that repeats.

    Attributes:
        first: Its place at the first depth.
        second: Its place at the second.
        round: Numbers of a round.
        length: Numbers of all rounds at the first depth, of which a beginning or an end may be lacking.
    """

    first: int
    second: int
    round: int
    length: int


@dataclass(frozen=True)
class Looped:
    """A step whose loops are known.

    Attributes:
        lives: Its storages at both depths, with ends in order.
        loops: Its loops, in their order.
        unordered: Numbers of the parts with ends in no order.
    """

    lives: tuple[Columns, Columns]
    loops: tuple[Loop, ...]
    unordered: tuple[int, ...]


def looped(
    lives: Sequence[Columns], sizes: Sequence[str], starts: Sequence[Sequence[int]], rounds: tuple[int, int]
) -> Looped:
    """Find the loops of a step.

    Args:
        lives: Its storages at two depths.
        sizes: The sizes that they refer to, as texts.
        starts: The first event of each part at both depths.
        rounds: The depths.

    Raises:
        Irregular: The depths differ in more than loops.
    """
    further, recorded = rounds[1] - rounds[0], [_Depth.of(own, sizes, lives) for own in lives]
    parts = [[depth.span(starts, n, which) for which, depth in enumerate(recorded)] for n in range(-1, len(starts))]
    depths = recorded
    for spans in parts:
        depths = _in_order(depths, spans, MEANT + 1)
    found: list[Loop] = []
    unordered: list[int] = []
    for n, spans in enumerate(parts, start=-1):
        ordered = _in_order(depths, spans, 2)
        depths, own = _first_regular(
            [(some, spans, further, how) for how in (True, False) for some in (depths, ordered)]
        )
        found += own
        if not _is_regular(recorded, spans, further):
            unordered.append(n)
    return Looped((depths[0].lives, depths[1].lives), tuple(found), tuple(unordered))


def _is_regular(depths: Sequence[_Depth], spans: Sequence[tuple[int, int]], further: int) -> bool:
    try:
        _loops_of(depths, spans, further, strict=False)
    except Irregular:
        return False
    return True


def _in_order(depths: Sequence[_Depth], spans: Sequence[tuple[int, int]], least: int) -> list[_Depth]:
    return [depth.in_order(*span, least) for depth, span in zip(depths, spans, strict=True)]


@dataclass(frozen=True)
class _Depth:
    """The storages of a depth, as numbers and with what each of these begins or ends."""

    lives: Columns
    names: Mapping[int, str]
    pairs: dict[Pair, int]
    numbers: Numbers
    labels: list[Label]

    @classmethod
    def of(cls, lives: Columns, sizes: Sequence[str], both: Sequence[Columns]) -> _Depth:
        """Read storages; sizes that one depth alone has grow with it, and are alike if their dimensions are."""
        one, other = (set(own[0]) for own in both)
        names = {size: "grows " + "*".join(sizes[size].split("*")[1:]) for size in one ^ other}
        return cls._made(lives, names, {})

    @classmethod
    def _made(cls, lives: Columns, names: Mapping[int, str], pairs: dict[Pair, int]) -> _Depth:
        numbers = event_stream.numbers_of(lives, pairs)
        return cls(lives, names, pairs, numbers, _labels(numbers, list(pairs), names))

    def span(self, starts: Sequence[Sequence[int]], n: int, which: int) -> tuple[int, int]:
        """Return the first number of a part and that after its last; part -1 is before the step."""
        before = self.numbers.index(BEFORE)
        at = [0, *(before + max(1, own[which]) for own in starts), len(self.numbers)]
        return at[n + 1], at[n + 2]

    def in_order(self, start: int, stop: int, least: int) -> _Depth:
        """Return the depth with ends between two numbers in the order of the births, where so many are in a row."""
        before = self.numbers.index(BEFORE)
        lives = _ends_in_order(self.lives, start - before, stop - before, least)
        return self if lives == self.lives else self._made(lives, self.names, dict(self.pairs))


def _labels(numbers: Numbers, pairs: Sequence[Pair], names: Mapping[int, str]) -> list[Label]:
    living: list[Label] = []
    labels: list[Label] = []
    for number in numbers:
        if number >= 4 and number % 2 == 0:
            size, kind = pairs[(number - 4) // 2]
            living.append((names.get(size, size), kind))
            labels.append(("begins", *living[-1]))
        elif number >= 3:
            labels.append(("ends", *living.pop(-1 - (number - 3) // 2)))
        else:
            labels.append((number,))
    return labels


def _ends_in_order(lives: Columns, start: int, stop: int, least: int) -> Columns:
    """Return storages with ends of which `least` follow one another in the order of the births, between two events."""
    births = event_stream.births_of(lives)
    ends = {born + length: n for n, (born, length) in enumerate(zip(births, lives[3], strict=True)) if length >= 0}
    lengths = list(lives[3])
    event = start
    while event < stop:
        run = event
        while run < stop and run in ends:
            run += 1
        if run - event < least:
            event = max(run, event + 1)
            continue
        for at, n in zip(range(event, run), sorted(ends[at] for at in range(event, run)), strict=True):
            lengths[n] = at - births[n]
        event = max(run, event + 1)
    return [*lives[:3], lengths]


def _first_regular(tries: Sequence[Any]) -> tuple[list[_Depth], list[Loop]]:
    """Return the first depths that have loops, with these; the last try's error if none have."""
    for depths, *how in tries[:-1]:
        with suppress(Irregular):
            return depths, _loops_of(depths, *how)
    depths, *how = tries[-1]
    return depths, _loops_of(depths, *how)


def _loops_of(depths: Sequence[_Depth], spans: Sequence[tuple[int, int]], further: int, strict: bool) -> list[Loop]:
    """Return the loops of a part; if `strict`, with a whole round of each at the first depth."""
    both = [depth.labels[start:stop] for depth, (start, stop) in zip(depths, spans, strict=True)]
    numbers = [depth.numbers[start:stop] for depth, (start, stop) in zip(depths, spans, strict=True)]
    made = [_even(numbers[0], numbers[1], loop, further) for loop in _repeated(both[0], both[1], further)]
    _check_even(numbers[0], numbers[1], made, further)
    if strict and any(loop.length < loop.round for loop in made):
        raise Irregular("no two depths tell how a loop changes with the depth")
    return [replace(loop, first=spans[0][0] + loop.first, second=spans[1][0] + loop.second) for loop in made]


def _repeated(first: Sequence[Label], second: Sequence[Label], further: int) -> list[Loop]:
    """Return the loops by which the second depth differs from the first, each as long as its labels repeat."""
    alike = common(first, second)
    more = len(second) - len(first)
    if more == 0 and alike == len(first):
        return []
    for length in range(more // further, 0, -1):
        stop = alike + further * length
        ends = stop == len(second) if alike == len(first) else second[stop : stop + 1] == first[alike : alike + 1]
        if not ends or second[alike : stop - length] != second[alike + length : stop]:
            continue
        try:
            rest = _repeated(first[alike:], second[stop:], further)
        except Irregular:
            continue
        begin = alike
        while begin and second[begin - 1] == second[begin - 1 + length]:
            begin -= 1
        return [
            Loop(begin, begin, length, alike - begin),
            *(replace(loop, first=alike + loop.first, second=stop + loop.second) for loop in rest),
        ]
    raise Irregular(f"the depths differ at number {alike} of {len(first)} and {len(second)}, by no loop")


def _even(one: Numbers, other: Numbers, loop: Loop, further: int) -> Loop:
    """Return the longest part of a loop, of whole rounds at the second depth, whose numbers grow evenly."""
    size, all_ = loop.round, loop.length + further * loop.round
    own, theirs = one[loop.first : loop.first + loop.length], other[loop.second : loop.second + all_]
    uneven = [p for p in range(all_ - 2 * size) if theirs[p] - 2 * theirs[p + size] + theirs[p + 2 * size]]
    best: Loop | None = None
    for begin in (0, *(p + 1 for p in uneven)):
        stop = min([all_, *(p + 2 * size for p in uneven if p >= begin)])
        length = (stop - begin) // size * size - further * size
        if length < 0 or (stop - begin) < 2 * size or (best is not None and length <= best.length):
            continue
        if _grows_alike(own[begin : begin + length], theirs[begin:stop], size, further):
            best = replace(loop, first=loop.first + begin, second=loop.second + begin, length=length)
    if best is None:
        raise Irregular(f"the rounds of {size} numbers from {loop.second} do not grow evenly")
    return best


def _grows_alike(own: Numbers, theirs: Numbers, size: int, further: int) -> bool:
    """Whether a loop's numbers grow from round to round as they do at the other depth, and evenly with it."""
    rounds = all(own[p + size] - own[p] == theirs[p + size] - theirs[p] for p in range(len(own) - size))
    return rounds and all((b - a) % (2 * further) == 0 for a, b in zip(own[:size], theirs, strict=False) if b % 2)


def _check_even(one: Numbers, other: Numbers, loops: Sequence[Loop], further: int) -> None:
    """Check that what is between loops grows evenly with the depth: a place is whole, and told in steps of 2."""
    a, b = 0, 0
    for loop in (*loops, Loop(len(one), len(other), 0, 0)):
        own, theirs = one[a : loop.first], other[b : loop.second]
        if any((y - x) % (2 * further) for x, y in zip(own, theirs, strict=True) if x % 2):
            raise Irregular("the place of an end does not grow evenly with the depth")
        a, b = loop.first + loop.length, loop.second + loop.length + further * loop.round


def common(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many items two sequences share at their beginnings."""
    for n, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return n
    return min(len(one), len(other))
