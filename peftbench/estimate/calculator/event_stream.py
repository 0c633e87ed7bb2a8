"""Write the storages of many steps as one stream of numbers, in which what repeats refers to its first occurrence.

Layers repeat, and so do steps: those of two depths, with one text or several, with other methods. A storage's end is
told by its place among the storages that are alive, the youngest first, which is the same in every layer.

    0: an event without a change
    1: the end of the storages that exist before the step
    2: the end of a step
    3 + 2 n: the n-th youngest living storage ends
    4 + 2 n: a storage with the n-th pair of a size and a kind is born
    -n, d: the n numbers again that stand d before this place
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

NOTHING, BEFORE, END = 0, 1, 2
LEAST = 4  # numbers that are worth a reference
TRIED = 64  # earlier places, the nearest of which are tried

Columns = list[list[int]]  # size, kind, birth (difference to the one before), events until the end or -1
Pair = tuple[int, int]


def stream_of(lives: Iterable[Columns]) -> tuple[list[Pair], list[int]]:
    """Return the pairs of a size and a kind, and the stream of the storages of some steps."""
    pairs: dict[Pair, int] = {}
    numbers = [number for own in lives for number in (*numbers_of(own, pairs), END)]
    return list(pairs), _referring(numbers)


def lives_of(pairs: Sequence[Sequence[int]], stream: Sequence[int]) -> list[Columns]:
    """Return the storages of the steps of a stream."""
    steps: list[Columns] = []
    numbers: list[int] = []
    place = 0
    while place < len(stream):
        number = stream[place]
        place += 1
        if number >= 0:
            numbers.append(number)
            continue
        start = len(numbers) - stream[place]
        place += 1
        for n in range(-number):
            numbers.append(numbers[start + n])
    start = 0
    for stop, number in enumerate(numbers):
        if number == END:
            steps.append(_columns(numbers[start:stop], pairs))
            start = stop + 1
    return steps


def numbers_of(own: Columns, pairs: dict[Pair, int]) -> list[int]:
    """Return the numbers of a step without its end; adds its pairs of a size and a kind to `pairs`."""
    births: dict[int, list[int]] = {}
    deaths: dict[int, int] = {}
    for n, (born, length) in enumerate(zip(births_of(own), own[3], strict=True)):
        births.setdefault(born, []).append(n)
        if length >= 0 and deaths.setdefault(born + length, n) != n:
            raise ValueError("two storages end at one event")
    numbers: list[int] = []
    living: list[int] = []
    for event in range(max([0, *births, *deaths]) + 1):
        for n in births.get(event, []):
            living.append(n)
            numbers.append(4 + 2 * pairs.setdefault((own[0][n], own[1][n]), len(pairs)))
        if event == 0:
            numbers.append(BEFORE)
        elif event in deaths:
            at = bisect_left(living, deaths[event])
            numbers.append(3 + 2 * (len(living) - 1 - at))
            del living[at]
        elif event not in births:
            numbers.append(NOTHING)
        if event and len(births.get(event, [])) + (event in deaths) > 1:
            raise ValueError("an event changes two storages")
    return numbers


def births_of(own: Columns) -> list[int]:
    """Return the event of each storage's birth."""
    return list(accumulate(own[2]))


def _columns(numbers: Sequence[int], pairs: Sequence[Sequence[int]]) -> Columns:
    """Return the storages of the numbers of a step."""
    own: Columns = [[], [], [], []]
    living: list[tuple[int, int]] = []  # number and birth
    event, last = 0, 0
    for number in numbers:
        if number >= 4 and number % 2 == 0:
            size, kind = pairs[(number - 4) // 2]
            living.append((len(own[0]), event))
            for column, value in zip(own, (size, kind, event - last, -1), strict=True):
                column.append(value)
            last = event
        elif number >= 3:
            n, born = living.pop(-1 - (number - 3) // 2)
            own[3][n] = event - born
        event += event > 0 or number == BEFORE
    return own


def _referring(numbers: Sequence[int]) -> list[int]:
    """Return numbers with references to what they repeat."""
    places: dict[tuple[int, ...], list[int]] = {}
    stream: list[int] = []
    place = 0
    while place < len(numbers):
        length, start = _longest(numbers, place, places)
        stream += [-length, place - start] if length else [numbers[place]]
        for n in range(place, place + max(length, 1)):
            places.setdefault(tuple(numbers[n : n + LEAST]), []).append(n)
        place += max(length, 1)
    return stream


def _longest(numbers: Sequence[int], place: int, places: Mapping[tuple[int, ...], list[int]]) -> tuple[int, int]:
    """Return the length and the start of the longest earlier occurrence of what stands at a place; 0 for none."""
    best = 0, 0
    start = tuple(numbers[place : place + LEAST])
    for earlier in reversed(places.get(start, [])[-TRIED:]):
        length = len(start)
        while place + length < len(numbers) and numbers[earlier + length] == numbers[place + length]:
            length += 1
        if length > best[0] and length >= LEAST:
            best = length, earlier
    return best
