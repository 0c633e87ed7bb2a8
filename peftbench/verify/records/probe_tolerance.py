"""The tolerance for what probes measured, between two runs of one spec on different machines.

A probe's numbers follow from weights that rounding has moved. Each point of a run is held by itself: numbers of one
name (the losses of all windows, the ranks of all sites) must agree on average, answers by the share that is equal.
Which texts, sites and steps were measured has no tolerance.
"""

from __future__ import annotations

import base64
import binascii
import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from peftbench.verify.records import rounding

# Mean distance of the numbers of one name at one point, divided by their mean size. Other seeds move the loss on
# WikiText-2 by 0.3 % and more, singular values by 12 %, ranks by 14 %.
NUMBERS = 0.05
LOSSES, COARSE_LOSSES = 0.002, 0.01  # in 32 bits, and in 16
UNTRAINED = 1e-3  # at step 0 in 32 bits, before any update has amplified rounding
ANSWERS = 0.90  # share of equal ones
DIRECTIONS = 0.90  # of two spaces: the mean squared length of one's directions within the other
FIELD = re.compile(r"probes\.(?P<probe>\w+)\.points\[(?P<point>\d+)\]\.(?P<place>.+)")
WHICH = ("step", "tokens", "layer", "width")  # numbers that say what was measured


def covers(recorded: Mapping[str, Any], repeated: Mapping[str, Any], field: str) -> bool:
    """Whether another machine explains that two runs' probes differ in a field: "probes.ranks.points[0].sites[3].rank".

    Args:
        recorded: the record's body.
        repeated: the repeat's body.
        field: the path of the field.
    """
    found = FIELD.fullmatch(field)
    points = [_point(body, found["probe"], int(found["point"])) for body in (recorded, repeated)] if found else []
    if found is None or not all(isinstance(point, Mapping) for point in points):
        return False
    a, b = points
    name = re.sub(r"\[\d+\]", "", found["place"]).rpartition(".")[2]
    if name in WHICH:
        return False
    if name in ("right", "accuracy"):
        return _answered(a, b)
    if name == "vectors":
        one, other = list(_spaces(a)), list(_spaces(b))
        return len(one) == len(other) and all(map(_is_one_space, one, other))
    x, y = list(_named(a, name)), list(_named(b, name))
    if not x or [type(v) for v in x] != [type(v) for v in y] or not all(type(v) in (int, float) for v in x):
        return False
    if name == "rank" and sum(x) != sum(y):  # the budget of ranks is met everywhere
        return False
    bound = _bound(name, a.get("step") == 0, rounding.is_coarse(recorded))
    return statistics.fmean(abs(p - q) for p, q in zip(x, y, strict=True)) <= bound * statistics.fmean(map(abs, x))


def _bound(name: str, is_first: bool, is_coarse: bool) -> float:
    if name in ("loss", "windows"):
        return COARSE_LOSSES if is_coarse else UNTRAINED if is_first else LOSSES
    return UNTRAINED if is_first else NUMBERS


def _point(body: Any, probe: str, number: int) -> Any:
    for key in ("probes", probe, "points"):
        if not isinstance(body, Mapping) or key not in body:
            return None
        body = body[key]
    return body[number] if isinstance(body, list) and number < len(body) else None


def _answered(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether most answers are equal, and the share of right ones follows from them."""
    one, other = a.get("right"), b.get("right")
    if not isinstance(one, list) or not isinstance(other, list) or len(one) != len(other) or not one:
        return False
    if any(v not in (0, 1) for v in (*one, *other)):
        return False
    follows = (p.get("accuracy") == statistics.fmean(right) for p, right in ((a, one), (b, other)))
    return all(follows) and statistics.fmean(x == y for x, y in zip(one, other, strict=True)) >= ANSWERS


def _named(value: Any, name: str, inside: str = "") -> Iterator[Any]:
    """All values of one name at a point, in order; what has none stays in its place as None."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _named(inner, name, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, name, inside)
    elif inside == name:
        yield value


def _spaces(point: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], int]]:
    """The stored directions of a point, each with the length of one."""
    sites = point.get("sites")
    for site in (one for one in sites if isinstance(one, Mapping)) if isinstance(sites, list) else ():
        parts = [part for part in site.values() if isinstance(part, Mapping) and "vectors" in part]
        yield from ((part, site.get("width", 0)) for part in parts)


def _is_one_space(a: tuple[Mapping[str, Any], int], b: tuple[Mapping[str, Any], int]) -> bool:
    """Whether two sets of directions span nearly the same space: single ones turn where their values are near."""
    try:
        one, other = (
            np.frombuffer(base64.b64decode(kept["vectors"], validate=True), "<f2").astype(float).reshape(-1, width)
            for kept, width in (a, b)
        )
    except (TypeError, ValueError, binascii.Error):
        return False
    return one.shape == other.shape and len(one) > 0 and float(((one @ other.T) ** 2).sum()) >= DIRECTIONS * len(one)
