"""Where a number of a table comes from: the records, their raw values, and the computation that gives it.

`tables.explained` joins an origin with the text that a table prints. Means and deviations are computed from the raw
values by the functions that the table uses, so that a number and its explanation cannot differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peftbench.records.record import ProfileRecord, Record, RunRecord
from peftbench.report.data import pooled_passes, verdicts
from peftbench.report.data.comparison import Comparison, Entry, mean, spread
from peftbench.report.data.times import BATCHES
from peftbench.report.data.verdicts import ScoreVerdict
from peftbench.report.stats.intervals import Estimate, paired


@dataclass(frozen=True)
class Raw:
    """A value in a record.

    Attributes:
        path: the record's file.
        field: the place in it.
        value: as the record has it.
    """

    path: Path
    field: str
    value: object


@dataclass(frozen=True)
class Origin:
    """How a number comes about.

    Attributes:
        formula: in words.
        raw: the values that it is computed from.
        computation: the formula with these values.
        value: the number, computed from them; None where there is none.
        unit: what the table divides it by, for its own unit.
    """

    formula: str
    raw: tuple[Raw, ...]
    computation: str
    value: float | None = None
    unit: float = 1.0


def of(c: Comparison, e: Entry, records: Sequence[Record]) -> dict[str, Callable[[], Origin]]:
    """The origin of every column of a row, by the column's name.

    Args:
        c: the table.
        e: one of its rows.
        records: all records of the results directory, for the processes of a pass.
    """
    known: dict[str, Callable[[], Origin]] = {
        "score": partial(_score, c, e),
        "sd": partial(_sd, e),
        "relative": partial(_relative, c, e),
        **{name: partial(_metric, e, name) for name in c.other_metrics},
        "trainable": partial(_parameter, e, "trainable", "trained by the method, without the task head", 1.0),
        "head": partial(_parameter, e, "head", "of the task head, which every method trains", 1.0),
        "size": partial(_size, e),
        "stored": partial(_parameter, e, "stored_bytes", "bytes of the adapter's file / 1,024", 1024.0),
        "memory": partial(_memory, e),
        "step": partial(_step, e, records),
        "step-ratio": partial(_step_ratio, c, e, records),
        "failed": partial(_failed, e),
    }
    known |= {f"latency-{batch}": partial(_latency, e, batch, records) for batch in BATCHES}
    verdict = verdicts.of(c).get(e.label)
    return known | (_compared(c, e, verdict) if verdict else {})


def _compared(c: Comparison, e: Entry, v: ScoreVerdict) -> dict[str, Callable[[], Origin]]:
    """The origins of the columns of differences."""
    best = next((label for label, other in verdicts.of(c).items() if other.is_best), e.label)

    def against(label: str, of: Estimate | None, formula: str, said: str = "") -> Origin:
        other = next((o for o in c.entries if o.label == label), e)
        raw = _tests(e, e.metric) + (() if other is e else _tests(other, e.metric))
        around = f"{of.value:+.6g}{_interval(of, of.interval())}" if of else "this is the row that others differ from"
        return Origin(formula, raw, f"{said}{around}", of.value if of else None)

    reference = f"Mean {e.metric} - {c.reference}'s, paired by seed and test example where the seeds are the same"
    p = f"p = {v.difference.p:.3g} alone; " if v.difference and v.difference.p is not None else ""
    tied = "Whether no other row is surely better, each pair one-sided at 5 % / (rows - 1)."
    won = "How often a run beats one of the reference at the same seed, with Wilson's interval over the seeds."
    fronts = "Share of 1,000 draws of seeds, test examples and times in which no other row is as good and as cheap."
    return {
        "difference": lambda: against(c.reference, v.difference, f"{reference}."),
        "p": lambda: against(c.reference, v.difference, f"{reference}; its two-sided p by Holm over the table.", p),
        "better": lambda: against(c.reference, v.difference, won),
        "to-best": lambda: against(best, v.to_best, f"Mean {e.metric} - that of the best, {best}."),
        "tied": lambda: against(best, v.to_best, tied),
        **{f"front-{cost.replace(' ', '-')}": lambda: against(best, v.to_best, fronts) for cost in v.on_front or {}},
    }


def _done(e: Entry) -> list[RunRecord]:
    return sorted((r for r in e.runs if r.is_finished), key=lambda r: r.spec.seed)


def _tests(e: Entry, metric: str) -> tuple[Raw, ...]:
    """The test score of every finished run, by seed."""
    return tuple(
        Raw(r.path, f"seed {r.spec.seed}: metrics.test.{metric}", score)
        for r in _done(e)
        if (score := r.metrics.test.get(metric)) is not None
    )


def _numbers(raw: Sequence[Raw]) -> tuple[float, ...]:
    return tuple(float(r.value) for r in raw)  # type: ignore[arg-type]


def mean_of(values: Sequence[float]) -> str:
    """The computation of a mean: `(0.752 + 0.8) / 2 = 0.776`."""
    terms = " + ".join(f"{v:.6g}" for v in values)
    return f"({terms}) / {len(values)} = {statistics.fmean(values):.6g}" if values else "no finished run"


def _score(c: Comparison, e: Entry) -> Origin:
    raw = _tests(e, e.metric)
    verdict = verdicts.of(c).get(e.label)
    formula = (
        f"Mean of {e.metric} on the test split over the seeds; its 95 % interval covers other seeds and other test "
        "examples (Student's t on each part, the seeds' variance moderated by the table's: docs/statistics.md), and "
        "is cut to the metric's range."
    )
    around = _interval(verdict.mean, verdict.interval) if verdict else ""
    return Origin(formula, raw, mean_of(_numbers(raw)) + around, mean(_numbers(raw)))


def _interval(of: Estimate, cut: tuple[float, float] | None) -> str:
    """The computation of an interval, with the variance of each part."""
    if cut is None or (half := of.half()) is None:
        return "; its uncertainty is not known"
    parts = [f"seeds: variance {v:.3g} at {df:.3g} degrees of freedom" for v, df in of.parts]
    if of.examples:
        variance = of.shared if of.parts else of.floor
        parts.append(f"{of.examples:,} test examples: variance {variance:.3g}")
    return f"; ± {half:.6g} (root of the sum of t² x variance; {'; '.join(parts)}): [{cut[0]:.6g}, {cut[1]:.6g}]"


def _sd(e: Entry) -> Origin:
    raw = _tests(e, e.metric)
    value, known = spread(_numbers(raw)), ", ".join(f"{v:.6g}" for v in _numbers(raw))
    said = f"sd({known}) = {value:.6g}" if value is not None else "fewer than two seeds"
    return Origin(f"Sample standard deviation of {e.metric} over the seeds (n - 1).", raw, said, value)


def _metric(e: Entry, name: str) -> Origin:
    raw = _tests(e, name)
    formula = f"Mean of {name} on the test split over the seeds, ± its sample standard deviation."
    return Origin(formula, raw, mean_of(_numbers(raw)), mean(_numbers(raw)))


def _relative(c: Comparison, e: Entry) -> Origin:
    base = next((other for other in c.entries if other.label == c.reference), e)
    common = paired(e.scores, base.scores)
    sides = []
    for side in (e, base):
        sides.append([r for r in _tests(side, e.metric) if not common or _seed(r) in common])
    above, below = (mean(_numbers(side)) for side in sides)
    formula = (
        f"Mean {e.metric} / that of {c.reference}, over the seeds that both finished; the 95 % interval by the delta "
        "method, paired by seed and test example."
    )
    verdict = verdicts.of(c).get(e.label)
    around = _interval(v, v.interval()) if verdict and (v := verdict.relative) else ""
    value = above / below if above is not None and below else None
    said = f"{above:.6g} / {below:.6g} = {value:.6g}" if value is not None else "one of the two has no score"
    return Origin(formula, tuple(r for side in sides for r in side), said + around, value)


def _seed(r: Raw) -> int:
    return int(r.field.removeprefix("seed ").split(":")[0])


def _parameter(e: Entry, name: str, what: str, unit: float) -> Origin:
    runs = [r for r in [*_done(e), *e.runs] if r.body.parameters][:1]
    raw = tuple(Raw(r.path, f"parameters.{name}", getattr(r.body.parameters, name)) for r in runs)
    value = _numbers(raw)[0] if raw else None
    return Origin(f"Parameters: {what}.", raw, f"{value:,.0f}" if value is not None else "not recorded", value, unit)


def _size(e: Entry) -> Origin:
    trainable = _parameter(e, "trainable", "", 1.0)
    formula = "How the budget of parameters was met, and trainable parameters / budget - 1."
    asked = tuple(Raw(r.path, "spec.method.size", r.spec.method.size) for r in e.runs[:1])
    said = "no budget" if e.deviation is None else f"{e.deviation:+.6g}"
    return Origin(formula, (*asked, *trainable.raw), said, None if e.deviation is None else e.deviation * 100)


def _memory(e: Entry) -> Origin:
    raw = tuple(Raw(r.path, "memory.peak_bytes", m.peak_bytes) for r in e.runs if (m := r.body.memory))
    value = max(_numbers(raw), default=None)
    said = f"max = {value:,.0f} bytes = {value / 2**20:.6g} MiB" if value is not None else "not recorded"
    return Origin("The largest peak of a training step over the seeds.", raw, said, value, 2.0**20)


def _failed(e: Entry) -> Origin:
    raw = tuple(Raw(r.path, "status", r.status) for r in e.runs)
    return Origin("Runs without a score, by status.", raw, f"{e.failed} of {len(e.runs)}", float(e.failed))


def _pass(e: Entry, records: Sequence[Record], field: str, samples: Callable[[ProfileRecord], object]) -> list[Raw]:
    """What each process of the row's pass measured."""
    if e.times is None:
        return []
    return [Raw(r.path, field, samples(r)) for r in pooled_passes.parts(e.times.profile, records)]


def _samples(e: Entry, r: ProfileRecord) -> object:
    label = e.runs[0].spec.method.label
    row = next((row for row in r.rows if row.label == label), None)
    return list(row.step_seconds.samples) if row else None


def _step(e: Entry, records: Sequence[Record]) -> Origin:
    summary = e.times.step if e.times else None
    raw = tuple(_pass(e, records, "step_seconds.samples", partial(_samples, e)))
    formula = "Median time of a training step over the rounds of all processes, ± half the distance of the quartiles."
    said = "no pass measured this row"
    if summary is not None:
        around = f" ± {summary.iqr * 500:.6g}" if summary.iqr is not None else ""
        said = f"median of {summary.n} samples: {summary.median * 1e3:.6g}{around} ms"
    samples = [s for r in raw if isinstance(r.value, list) for s in r.value]
    return Origin(formula, raw, said, statistics.median(samples) if samples else None, 1e-3)


def _step_ratio(c: Comparison, e: Entry, records: Sequence[Record]) -> Origin:
    ratio = e.times.ratio if e.times else None
    raw = tuple(_pass(e, records, "ratio.median", partial(_ratio_median, e)))
    formula = (
        f"Time of a training step / that of {c.reference} in the same round; over the processes, the geometric mean of "
        "their medians with Student's 95 % interval of the logarithms; of one process, the median with its bootstrap."
    )
    said = "no pass measured this row"
    if ratio is not None:
        around = f" [{ratio.low:.6g}, {ratio.high:.6g}]" if ratio.low is not None and ratio.high is not None else ""
        said = f"{ratio.median:.6g}{around}"
    logs = [math.log(float(r.value)) for r in raw if isinstance(r.value, float) and r.value > 0]
    return Origin(formula, raw, said, math.exp(statistics.fmean(logs)) if logs else None)


def _ratio_median(e: Entry, r: ProfileRecord) -> object:
    row = next((row for row in r.rows if row.label == e.runs[0].spec.method.label), None)
    return row.ratio.median if row and row.ratio else None


def _latency(e: Entry, batch: str, records: Sequence[Record]) -> Origin:
    at = e.times.latency.get(batch) if e.times else None
    raw = tuple(_pass(e, records, f"latency at batch {batch}: median", partial(_latency_median, e, batch)))
    formula = f"Median time of one inference pass, batch {batch}, at the task's median length; unmerged / merged."
    parts = [f"{name} {s.median * 1e3:.6g} ms" for name in ("unmerged", "merged") if at and (s := getattr(at, name))]
    value = at.unmerged.median if at and at.unmerged else None
    return Origin(formula, raw, ", ".join(parts) or "no pass measured this row", value, 1e-3)


def _latency_median(e: Entry, batch: str, r: ProfileRecord) -> object:
    row = next((row for row in r.rows if row.label == e.runs[0].spec.method.label), None)
    usual = [at for at in row.latency if at.typical and at.phase != "decode" and str(at.batch) == batch] if row else []
    return {name: s.median for at in usual for name in ("unmerged", "merged") if (s := getattr(at, name)) is not None}
