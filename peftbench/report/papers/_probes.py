"""Helpers for figures on trained networks: records of probes, and intervals of quantities other than accuracy."""

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
    """The points that `probe` recorded in a run, by step; the last has the tested weights. Raises NotRun without it."""
    if probe not in r.body.probes:
        raise NotRun(f"{r.path.name} ({label(r)}) was run without the probe {probe}")
    return r.body.probes[probe].points


def by_site(sites: Sequence[dict[str, Any]], roles: Sequence[str], value: Callable[[dict[str, Any]], Any]) -> Array:
    """Evaluate a function at every site with one of the roles.

    Args:
        sites: sites of a probe, each with "role" and "layer".
        roles: the roles, in the order of the rows.
        value: site -> number or array.

    Returns:
        (roles, layers, ...).

    Raises:
        NotRun: if the roles have different layers.
    """
    rows = [[value(s) for s in sorted(sites, key=lambda s: s["layer"]) if s["role"] == role] for role in roles]
    if not rows or len({len(row) for row in rows}) > 1 or not rows[0]:
        raise NotRun(f"a run has not the same layers for each of {', '.join(roles)}")
    return np.asarray(rows)


def over(values: Array, claims: int = 1) -> Interval:
    """The mean over units, such as layers, with its t interval; `claims` hold jointly at 95 % (Bonferroni)."""
    from scipy.special import stdtrit

    n = len(values)
    t = float(stdtrit(n - 1, 1 - (1 - LEVEL) / claims / 2)) if n > 1 else math.inf
    half = t * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else t
    return Interval(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half)


def jackknife(statistic: Callable[[Array], float], x: Array, claims: int = 1) -> Interval:
    """The mean over seeds of a nonlinear statistic, with its interval.

    Each unit (a layer) is left out once. The pseudo-values n s - (n - 1) s_without take the place of a mean's values in
    `_interval.of`, which treats seeds and units as random (Obuchowski and Rockette 1995).

    Args:
        statistic: (units, ...) -> number.
        x: (S, units, ...).
        claims: number of claims that hold jointly.
    """
    n = x.shape[1]
    whole = np.asarray([statistic(seed) for seed in x])
    without = np.asarray([[statistic(np.delete(seed, k, axis=0)) for k in range(n)] for seed in x])
    estimate = of(n * whole[:, None] - (n - 1) * without, claims)
    half, value = estimate.value - estimate.low, float(whole.mean())
    return Interval(value, value - half, value + half, estimate.half_at)
