"""Pools a profile pass that ran in several processes into one record for the report.

Rounds within a process share its memory layout, its cores and the machine's speed at the time. Repeated passes
therefore vary more than rounds do, and an interval from the rounds of one process is too narrow. Each process counts as
one observation, its median ratio. With the usual five processes a bootstrap is too narrow as well; Student's interval
of the logarithms is not (Georges et al. 2007, "Statistically rigorous Java performance evaluation", section 3.2;
Kalibera and Jones 2013, "Rigorous benchmarking in reasonable time").
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

from peftbench.records import comparable, record
from peftbench.records.costs import PassSeconds, Quartiles, Ratio, SampledSeconds
from peftbench.records.record import ProfileRecord, Record
from peftbench.records.spec import TAIL, as_dict, digest

CONFIDENCE = 0.95
LARGEST = ("merge_max_change", "background_cpu_share")  # fields that keep the largest value of the processes


def counting(records: Iterable[Record]) -> list[ProfileRecord]:
    """Return the passes that count: of each spec the attempt that counts on each kind of machine, pooled.

    Machines that took the same pass each keep their own. One that failed counts only if none has finished.
    """
    profiles = [r for r in records if isinstance(r, ProfileRecord)]
    kinds: dict[str, list[ProfileRecord]] = defaultdict(list)
    for r in profiles:
        kinds[comparable.machine_kind(r.env)].append(r)
    overall = record.latest(profiles)
    latest = [r for group in kinds.values() for r in record.latest(group).values()]
    return pool(r for r in latest if r.is_finished or overall[r.spec_id] is r)


def pool(profiles: Iterable[ProfileRecord]) -> list[ProfileRecord]:
    """Pool the finished records of each pass (same spec, environment and experiment); keep all other records.

    Args:
        profiles: at most one attempt at each spec, as from `record.latest` or `record.newest`.

    Returns:
        The records. A pooled one has the path and identity of the first process's record; `processes` counts its parts.
    """
    kept: list[ProfileRecord] = []
    parts: dict[str, list[ProfileRecord]] = defaultdict(list)
    for r in profiles:
        if r.is_finished:
            parts[_pass(r)].append(r)
        else:
            kept.append(r)
    return [*kept, *(_one(sorted(group, key=lambda r: r.spec.process)) for group in parts.values())]


def parts(of: ProfileRecord, records: Iterable[Record]) -> list[ProfileRecord]:
    """The finished records that a pooled one is made of, by process; the record itself where it is not pooled."""
    mine = [r for r in records if isinstance(r, ProfileRecord) and r.is_finished and _pass(r) == _pass(of)]
    return sorted(record.latest(mine).values(), key=lambda r: r.spec.process) if of.processes > 1 else [of]


def _pass(r: ProfileRecord) -> str:
    """What the records of one pass have in common."""
    return digest([r.experiment, r.env_id, as_dict(replace(r.spec, process=0))])


def pool_ratios(ratios: Sequence[Quartiles]) -> Ratio:
    """Pool a ratio that several processes measured.

    Args:
        ratios: the ratio's median and quartile distance over the rounds of each process; at least two.

    Returns:
        The geometric mean of the medians with its 95 % Student interval on logarithms, the median of the quartile
        distances, and the total number of rounds.
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
    """Pool one field of all processes: concatenate samples, pool ratios, keep the first of everything else."""
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
    """Median, quartile distance and number of all samples; without samples, the medians over the processes."""
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
