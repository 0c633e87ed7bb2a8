"""Groups records into comparisons: one row per configuration, one table per task.

A table contains runs of one experiment that `records.comparable` allows to be compared. Other runs of the same task,
for example after the experiment file was edited, get a table of their own and a note on what differs. Failed runs keep
their rows. Times come from profile passes alone. What was not measured is None, never 0.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from peftbench.records import comparable, record
from peftbench.records.ranges import LEAST
from peftbench.records.record import ProfileRecord, Record, RunRecord
from peftbench.records.spec import as_dict, digest
from peftbench.report.data import designs, grouping, notes, points, pooled_passes, times
from peftbench.report.data.comparison import Comparison, Entry, spread
from peftbench.report.data.grouping import Key
from peftbench.report.data.learned import learned
from peftbench.report.data.points import Point
from peftbench.report.media.plain import natural
from peftbench.report.stats.intervals import paired


def compare(records: Iterable[Record]) -> list[Comparison]:
    """Group records into comparisons.

    Args:
        records: records of any kind; of several attempts at one spec, `record.latest` chooses one.

    Returns:
        One comparison per experiment, task and budget, sorted by experiment and task.
    """
    records = list(records)
    counting = record.latest(records)
    profiles = pooled_passes.counting(records)
    groups = grouping.by_setting(r for r in counting.values() if isinstance(r, RunRecord))
    places = points.of(groups)
    variants = _variants(groups, places)
    repeated = Counter(r.spec_id for r in records if not r.is_finished and r.status != "abandoned")
    compared = {
        key: replace(_comparison(key[1], groups[key], profiles, variants[key], repeated), point=places.get(key))
        for key in sorted(groups, key=lambda key: _order(key, places))
    }
    return [replace(c, notes=(*_incomparable(key, groups, variants, places), *c.notes)) for key, c in compared.items()]


def table(runs: Sequence[RunRecord]) -> Comparison:
    """The comparison of final runs of one task and setting, without times and notes on other runs.

    Args:
        runs: the attempts that count; not empty.
    """
    return _comparison(runs[0].spec.task.name, list(runs), [], "", {})


def _order(key: Key, places: Mapping[Key, Point]) -> tuple[Any, ...]:
    """Tables of a task in the order of their values on its axes, after those that belong to no curve."""
    return natural(*key[:2]), () if key not in places else (places[key],), natural(key[2])


def _variants(groups: Mapping[Key, list[RunRecord]], places: Mapping[Key, Point]) -> dict[Key, str]:
    """A suffix per table: empty if its task has one table; of a curve its values; else its steps and a digest."""
    tables = Counter(key[:2] for key in groups)
    families = Counter((*key[:2], point.family) for key, point in places.items())

    def variant(key: Key) -> str:
        if tables[key[:2]] == 1:
            return ""
        point = places.get(key)
        words = point.words if point else f"{groups[key][0].spec.train.steps} steps"
        alone = point is not None and families[(*key[:2], point.family)] == tables[key[:2]]
        return words if alone else f"{words} ({key[2][:6]})"

    return {key: variant(key) for key in groups}


def _incomparable(
    key: Key, groups: Mapping[Key, list[RunRecord]], variants: Mapping[Key, str], places: Mapping[Key, Point]
) -> Iterator[str]:
    """For each other table of the same task that is on no curve with this one, a note on why its runs are not here."""
    mine, family = groups[key][0].spec, places[key].family if key in places else None
    for other in sorted(k for k in groups if k[:2] == key[:2] and k != key):
        if family is not None and other in places and places[other].family == family:
            continue
        reasons = "; ".join(map(str, comparable.differences(mine, groups[other][0].spec)))
        yield f"Not comparable with the runs of {variants[other]}: {reasons}."


def _comparison(
    task: str, runs: list[RunRecord], profiles: list[ProfileRecord], variant: str, repeated: Mapping[str, int]
) -> Comparison:
    runs = sorted(runs, key=lambda r: (natural(r.spec.method.label), r.spec.seed, r.spec_id))
    passes = times.matching(profiles, runs[0])
    machines = times.by_machine(passes, runs)
    mine = [p for p in passes if len(machines) < 2 or comparable.machine_kind(p.env) == next(iter(machines))]
    reference = _reference(runs, passes)
    metric, direction, majority = _metric(runs)
    entries = _ordered(_entries(runs, mine, metric), passes, reference)
    base = next((e for e in entries if e.label == reference), None)
    entries = [_relative(e, base) for e in entries]
    spec = runs[0].spec
    data = notes.data_of(runs)
    is_learned = learned(base, majority, direction, metric) if base else None
    design, late = designs.of(runs)
    return Comparison(
        experiment=runs[0].experiment,
        task=task,
        stand_in_for=spec.task.stand_in_for,
        backbone=spec.backbone.model,
        budget=spec.train,
        metric=metric,
        direction=direction,
        majority=majority,
        reference=reference,
        learned=is_learned,
        entries=tuple(entries),
        notes=tuple(notes.collect(runs, mine, machines, entries, reference, is_learned, repeated)),
        variant=variant,
        data=data,
        design=design,
        late=late,
    )


def _metric(runs: list[RunRecord]) -> tuple[str, str, float | None]:
    """(primary metric, direction, majority score) from the runs; a failed run may have recorded none."""
    stated = [m for r in sorted(runs, key=lambda r: not r.is_finished) if (m := r.body.metrics)]
    if not stated:
        return "score", "max", None
    majority = next((m.majority for m in stated if m.majority is not None), None)
    return stated[0].primary, stated[0].direction, majority


def _entries(runs: list[RunRecord], profiles: list[ProfileRecord], metric: str) -> list[Entry]:
    groups: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for r in runs:
        groups[r.spec.method.label, digest([as_dict(r.spec.method), r.spec.train.lr])].append(r)
    by_label: dict[str, list[list[RunRecord]]] = defaultdict(list)
    for (label, _), group in sorted(groups.items(), key=lambda item: natural(*item[0])):
        by_label[label].append(group)
    return [
        _entry(label + suffix, group, profiles, metric)
        for label, same in by_label.items()
        for suffix, group in zip(_differences(same), same, strict=True)
    ]


def _differences(groups: list[list[RunRecord]]) -> list[str]:
    """A suffix per group of runs that share a label, naming the settings that differ."""
    if len(groups) == 1:
        return [""]
    facts = []
    for group in groups:
        spec = group[0].spec
        method = {k: v for k, v in as_dict(spec.method).items() if k not in ("label", "hyper")}
        facts.append({**method, **spec.method.hyper, "lr": spec.train.lr})
    names = sorted({k for f in facts for k in f if any(g.get(k) != f[k] for g in facts)})
    return [" (" + ", ".join(f"{k}={f[k]}" for k in names if k in f) + ")" for f in facts]


def _entry(label: str, runs: list[RunRecord], profiles: list[ProfileRecord], metric: str) -> Entry:
    done = [r for r in runs if r.is_finished]
    tests = {r.spec.seed: r.metrics.test for r in done}
    scores = {seed: score for seed, t in tests.items() if (score := t.get(metric)) is not None}
    failures = Counter(r.status for r in runs if not r.is_finished)
    # finished, but the metric is undefined, for example for a constant prediction
    failures["undefined score"] = len(done) - len(scores)
    others = sorted({m for t in tests.values() for m in t} - {metric})
    peaks = [m.peak_bytes for r in runs if (m := r.body.memory)]
    sizes = [p for r in done + runs if (p := r.body.parameters)]
    method = runs[0].spec.method
    return Entry(
        label=label,
        method=method.name,
        hyper=method.hyper,
        lr=runs[0].spec.train.lr,
        size=method.size,
        deviation=method.deviation,
        metric=metric,
        scores=scores,
        others={m: tuple(score for t in tests.values() if (score := t.get(m)) is not None) for m in others},
        failures={k: n for k, n in sorted(failures.items()) if n},
        parameters=sizes[0] if sizes else None,
        peak_bytes=max(peaks) if peaks else None,
        times=times.of(profiles, runs[0]),
        runs=tuple(runs),
    )


def _reference(runs: Sequence[RunRecord], profiles: Sequence[ProfileRecord]) -> str:
    """The reference's label, from a profile pass if there is one, else from the newest run."""
    if profiles:
        return profiles[0].spec.reference
    return max(runs, key=lambda r: r.body.started).body.reference


def _ordered(entries: list[Entry], profiles: list[ProfileRecord], reference: str) -> list[Entry]:
    """The reference first, then the experiment file's order as the profile pass keeps it, then by label."""
    order: dict[str, int] = {}
    for profile in profiles:
        for method in profile.spec.methods:
            order.setdefault(method.label, len(order))
    return sorted(entries, key=lambda e: (e.label != reference, order.get(e.label, len(order)), natural(e.label)))


def _relative(e: Entry, base: Entry | None) -> Entry:
    """Add the score relative to the reference's mean, over the common seeds if they can be paired."""
    if base is None or not e.scores or not base.scores:
        return e
    common = paired(e.scores, base.scores)
    above, below = (fmean(side.scores[s] for s in common or side.scores) for side in (e, base))
    if below < LEAST:
        return e
    ratios = [s / base.scores[seed] for seed, s in e.scores.items() if base.scores.get(seed, 0) > LEAST]
    return replace(e, relative=above / below, relative_sd=spread(ratios) if e is not base else None)
