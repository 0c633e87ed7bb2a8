"""The tolerance for what probes measured, between two runs of one spec on different machines.

A probe's numbers follow from weights that rounding has moved. Numbers of one name (all losses of windows, all ranks)
must agree on average, answers by the share that is equal. Which texts, sites and steps were measured has no tolerance.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NUMBERS = 0.1  # mean distance of the numbers of one name, divided by their mean size
ANSWERS = 0.90  # share of equal ones
ANSWERED = ("right", "accuracy")  # 1 for a right answer, 0 for a wrong one; and what follows from them
DIRECTIONS = "vectors"  # turn freely where their singular values are near each other; so the values speak for them
VALUES = "singular"
MEASURED = re.compile(r"probes\.(?P<probe>\w+)\.points\[\d+\]\.(?:\w+(?:\[\d+\])?\.)*(?P<name>\w+)(?:\[\d+\])?")
WHICH = ("step", "tokens", "layer", "width")  # numbers that say what was measured


def covers(recorded: Mapping[str, Any], repeated: Mapping[str, Any], field: str) -> bool:
    """Whether another machine explains that two runs' probes differ in a field: "probes.ranks.points[0].sites[3].rank".

    Args:
        recorded: the record's body.
        repeated: the repeat's body.
        field: the path of the field.
    """
    place = MEASURED.fullmatch(field)
    if place is None or place["name"] in WHICH:
        return False
    probe, name = place["probe"], place["name"]
    if name in ANSWERED:
        a, b = (_named(body, probe).get("right", []) for body in (recorded, repeated))
        return _comparable(a, b) and statistics.fmean(x == y for x, y in zip(a, b, strict=True)) >= ANSWERS
    if name == DIRECTIONS:
        name = VALUES
    a, b = (_named(body, probe).get(name, []) for body in (recorded, repeated))
    if not _comparable(a, b):
        return False
    apart = statistics.fmean(abs(x - y) for x, y in zip(a, b, strict=True))
    return apart <= NUMBERS * statistics.fmean(map(abs, a))


def _comparable(a: Sequence[float], b: Sequence[float]) -> bool:
    return bool(a) and len(a) == len(b)


def _named(body: Mapping[str, Any], probe: str) -> dict[str, list[float]]:
    """All numbers that a probe measured, by name, in order."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, number in _numbers((body.get("probes") or {}).get(probe, {}).get("points"), ""):
        found[name].append(number)
    return found


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value
