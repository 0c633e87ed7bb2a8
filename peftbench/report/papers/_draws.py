"""What figures about the trained network itself share: a record's probe, and the interval of any statistic of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...record import Record
from ._interval import LEVEL, SEED, Interval
from ._records import NotRun, label

DRAWS = 2000
Array = np.ndarray[Any, Any]


def points(r: Record, probe: str) -> Sequence[dict[str, Any]]:
    """What `probe` found in this run, by step; the last is of the tested weights. Raises NotRun without it."""
    found = (r.body.get("probes") or {}).get(probe)
    if found is None:
        raise NotRun(f"{r.path.name} ({label(r)}) was run without the probe {probe}")
    return list(found["points"])


def by_site(sites: Sequence[dict[str, Any]], roles: Sequence[str], value: Callable[[dict[str, Any]], Any]) -> Array:
    """(roles, layers, ...) of `value` at every site with one of the roles."""
    rows = [[value(s) for s in sorted(sites, key=lambda s: s["layer"]) if s["role"] == role] for role in roles]
    if not rows or len({len(row) for row in rows}) > 1 or not rows[0]:
        raise NotRun(f"a run has not the same layers for each of {', '.join(roles)}")
    return np.asarray(rows)


def interval(statistic: Callable[..., float], *sizes: int, claims: int = 1) -> Interval:
    """`statistic` of all units, and the percentile interval of its bootstrap over each of the axes of these sizes.

    It is called with one array of indices an axis: all of them, or as many drawn with replacement. Together, as many
    `claims` hold at 95 % (Bonferroni). The draws come from a fixed seed.
    """
    draw = np.random.default_rng(SEED)
    value = statistic(*map(np.arange, sizes))
    found = [statistic(*(draw.integers(n, size=n) for n in sizes)) for _ in range(DRAWS)]
    tail = (1 - LEVEL) / claims / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))
