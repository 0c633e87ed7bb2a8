"""What figures about the trained network itself share: a record's probe, and intervals of what is not an accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from peftbench.records.record import RunRecord
from peftbench.report.papers._interval import Interval, of
from peftbench.report.papers._records import NotRun, label
from peftbench.report.stats.intervals import LEVEL

Array = np.ndarray[Any, Any]


def points(r: RunRecord, probe: str) -> Sequence[dict[str, Any]]:
    """What `probe` found in this run, by step; the last is of the tested weights. Raises NotRun without it."""
    if probe not in r.body.probes:
        raise NotRun(f"{r.path.name} ({label(r)}) was run without the probe {probe}")
    return r.body.probes[probe].points


def by_site(sites: Sequence[dict[str, Any]], roles: Sequence[str], value: Callable[[dict[str, Any]], Any]) -> Array:
    """(roles, layers, ...) of `value` at every site with one of the roles."""
    rows = [[value(s) for s in sorted(sites, key=lambda s: s["layer"]) if s["role"] == role] for role in roles]
    if not rows or len({len(row) for row in rows}) > 1 or not rows[0]:
        raise NotRun(f"a run has not the same layers for each of {', '.join(roles)}")
    return np.asarray(rows)


def over(values: Array, claims: int = 1) -> Interval:
    """The mean of (units,), such as layers, with its t interval; `claims` hold together at 95 % (Bonferroni)."""
    from scipy.special import stdtrit

    n = len(values)
    t = float(stdtrit(n - 1, 1 - (1 - LEVEL) / claims / 2)) if n > 1 else math.inf
    half = t * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else t
    return Interval(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half)


def jackknife(statistic: Callable[[Array], float], x: Array, claims: int = 1) -> Interval:
    """The mean over seeds of a statistic that is no mean itself, of x (seeds, units, ...), with its interval.

    Each unit (a layer) is left out once, and the pseudo-values n s - (n - 1) s_without stand where a mean's own values
    would: with them, `_interval.of` takes seeds and units for drawn from many (Obuchowski and Rockette 1995).
    """
    n = x.shape[1]
    whole = np.asarray([statistic(seed) for seed in x])
    without = np.asarray([[statistic(np.delete(seed, k, axis=0)) for k in range(n)] for seed in x])
    estimate = of(n * whole[:, None] - (n - 1) * without, claims)
    half, value = estimate.value - estimate.low, float(whole.mean())
    return Interval(value, value - half, value + half)
