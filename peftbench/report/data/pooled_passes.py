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
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from msgspec import Struct, structs

from peftbench.records.costs import PassSeconds, Quartiles, Ratio, SampledSeconds
from peftbench.records.record import ProfileRecord
from peftbench.records.spec import TAIL, as_dict, digest

CONFIDENCE = 0.95
LARGEST = ("merge_max_change", "background_cpu_share")  # of what all processes saw


def pool(profiles: Iterable[ProfileRecord]) -> list[ProfileRecord]:
    """The finished records of one pass (same spec, environment and experiment) as one; all others as they are.

    The record of several has the path and identity of the first process's, and how many `processes` there are. Only
    one attempt at each spec may be given, as `record.latest` and `record.newest` have them.
    """
    kept: list[ProfileRecord] = []
    parts: dict[str, list[ProfileRecord]] = defaultdict(list)
    for r in profiles:
        if r.is_finished:
            parts[digest([r.experiment, r.env_id, as_dict(replace(r.spec, process=0))])].append(r)
        else:
            kept.append(r)
    return [*kept, *(_one(sorted(group, key=lambda r: r.spec.process)) for group in parts.values())]


def pool_ratios(ratios: Sequence[Quartiles]) -> Ratio:
    """A ratio over processes, each of them given as within its rounds.

    The median is the geometric mean of the processes' medians, with its 95 % Student interval, on logarithms; the
    quartiles' distance is the usual one within a process, and `n` the rounds of all.
    """
    from scipy.stats import t

    logs = [math.log(r.median) for r in ratios]
    middle = statistics.fmean(logs)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = math.exp(middle - half), math.exp(middle + half)
    within = [r.iqr for r in ratios if r.iqr is not None]
    iqr = statistics.median(within) if within else None
    return Ratio(median=math.exp(middle), iqr=iqr, low=low, high=high, n=sum(r.n for r in ratios))


def _one(parts: Sequence[ProfileRecord]) -> ProfileRecord:
    if len(parts) == 1:
        return parts[0]
    joined = {name: _joined([getattr(p.body, name) for p in parts]) for name in ("rows", "base", "time")}
    return replace(parts[0], body=structs.replace(parts[0].body, **joined), processes=len(parts))


def _joined(values: Sequence[Any], key: str = "") -> Any:
    """The same field of every process as one: samples put together, ratios between processes, the rest alike."""
    first = values[0]
    if isinstance(first, Struct) and all(isinstance(v, Struct) for v in values):
        if isinstance(first, Ratio):
            return pool_ratios(values)
        together = {name: _joined([getattr(v, name) for v in values], name) for name in first.__struct_fields__}
        return structs.replace(first, **(together | (_spread(values) if isinstance(first, Quartiles) else {})))
    if isinstance(first, list) and all(isinstance(v, list) and len(v) == len(first) for v in values):
        return [_joined(items, key) for items in zip(*values, strict=True)]
    known = [v for v in values if v is not None]
    return max(known) if key in LARGEST and known else first


def _spread(values: Sequence[Any]) -> dict[str, Any]:
    """Median, quartiles and number of all samples; of figures without samples of their own the usual process's."""
    number = sum(v.n for v in values)
    if not all(isinstance(v, SampledSeconds) and v.samples for v in values):
        known = [v.iqr for v in values if v.iqr is not None]
        middle = statistics.median(v.median for v in values)
        return {"median": middle, "iqr": statistics.median(known) if known else None, "n": number}
    samples = [s for v in values for s in v.samples]
    low, high = np.quantile(samples, [0.25, 0.75])
    summary = {"median": statistics.median(samples), "iqr": float(high - low), "n": number, "samples": samples}
    if isinstance(values[0], PassSeconds):
        summary["p95"] = float(np.quantile(samples, 0.95)) if number >= TAIL else None
    return summary
