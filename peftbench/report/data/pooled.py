"""A profile pass taken in several processes as one: what a report reads in place of the records of its parts.

Rounds within a process share what does not change while it lives: where its memory lies, which cores it got, how fast
the machine ran meanwhile. Repeating a pass shows more spread than its rounds do, so that an interval from the rounds of
one process is too narrow. Each process is therefore one observation: its median ratio. With the usual five of them a
bootstrap is too narrow as well; Student's interval over the logarithms is not (Georges et al. 2007, "Statistically
rigorous Java performance evaluation", section 3.2; Kalibera and Jones 2013, "Rigorous benchmarking
in reasonable time").
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from peftbench.records.record import Record
from peftbench.records.spec import TAIL, digest

CONFIDENCE = 0.95
LARGEST = ("merge_max_change", "background_cpu_share")  # of what all processes saw


def passes(profiles: Iterable[Record]) -> list[Record]:
    """The finished records of one pass (same spec, environment and experiment) as one; all others as they are.

    The record of several has the path and identity of the first process's, and `processes` in its body. Only one
    attempt at each spec may be given, as `record.latest` and `record.newest` have them.
    """
    kept: list[Record] = []
    parts: dict[str, list[Record]] = defaultdict(list)
    for r in profiles:
        if r.kind == "profile" and r.is_finished:
            parts[digest([r.experiment, r.env_id, {**r.spec, "process": 0}])].append(r)
        else:
            kept.append(r)
    return [*kept, *(_one(sorted(group, key=_process)) for group in parts.values())]


def processes(profile: Record) -> int:
    """How many processes a pass was taken in."""
    return profile.body.get("processes", 1)


def between(ratios: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"median", "iqr", "low", "high", "n"} of a ratio over processes, each of them given as within its rounds.

    "median": the geometric mean of the processes' medians; "low" and "high": its 95 % Student interval, on logarithms;
    "iqr": the usual one within a process; "n": rounds of all.
    """
    from scipy.stats import t

    logs = [math.log(r["median"]) for r in ratios]
    middle = statistics.fmean(logs)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = math.exp(middle - half), math.exp(middle + half)
    within = [r["iqr"] for r in ratios if r["iqr"] is not None]
    iqr = statistics.median(within) if within else None
    return {"median": math.exp(middle), "iqr": iqr, "low": low, "high": high, "n": sum(r["n"] for r in ratios)}


def _process(r: Record) -> int:
    return r.spec.get("process", 0)


def _one(parts: Sequence[Record]) -> Record:
    if len(parts) == 1:
        return parts[0]
    joined = {k: _joined([p.body.get(k) for p in parts]) for k in ("rows", "base", "time") if k in parts[0].body}
    return replace(parts[0], body={**parts[0].body, **joined, "processes": len(parts)})


def _joined(values: Sequence[Any], key: str = "") -> Any:
    """The same field of every process as one: samples put together, ratios between processes, the rest alike."""
    first = values[0]
    if isinstance(first, Mapping) and all(isinstance(v, Mapping) for v in values):
        if "low" in first:
            return between(values)
        together = {k: _joined([v.get(k) for v in values], k) for k in first}
        return {**together, **_spread(values)} if "median" in first else together
    if isinstance(first, list) and all(isinstance(v, list) and len(v) == len(first) for v in values):
        return [_joined(items, key) for items in zip(*values, strict=True)]
    known = [v for v in values if v is not None]
    return max(known) if key in LARGEST and known else first


def _spread(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median, quartiles and number of all samples; of figures without samples of their own the usual process's."""
    number = sum(v["n"] for v in values)
    if not all(v.get("samples") for v in values):
        known = [v["iqr"] for v in values if v["iqr"] is not None]
        middle = statistics.median(v["median"] for v in values)
        return {"median": middle, "iqr": statistics.median(known) if known else None, "n": number}
    samples = [s for v in values for s in v["samples"]]
    low, high = np.quantile(samples, [0.25, 0.75])
    found = {"median": statistics.median(samples), "iqr": float(high - low), "n": number, "samples": samples}
    if "p95" in values[0]:
        found["p95"] = float(np.quantile(samples, 0.95)) if number >= TAIL else None
    return found
