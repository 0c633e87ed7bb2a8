"""Step time and latency of a configuration, from the profile pass that measured it.

A run's own clock is not used, as several workers may have shared the machine. A profile pass runs alone and records the
load by other programs where the system reports it. Its rows are matched to runs by task, label and hyperparameters, on
the same backbone and batch shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from peftbench.records import comparable
from peftbench.records.costs import MatrixProduct, ProfileRow, Quartiles, Ratio
from peftbench.records.record import ProfileRecord, RunRecord

BATCHES = ("1", "32")  # batch sizes of the latencies, as records key them
PHASES = ("forward", "backward", "optimizer")
COLD = 0.15  # tolerated excess of a process's first round over its later ones
NOISY = 0.5  # quartile distance / median, above which times are too noisy to compare


@dataclass(frozen=True)
class Summary:
    """A median and its quartile distance over the rounds, in the unit of the field that holds it.

    Attributes:
        median: the median.
        iqr: distance between the quartiles; None if not recorded.
        low, high: ends of a ratio's 95 % interval; None for other quantities.
        n: number of rounds.
    """

    median: float
    iqr: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @classmethod
    def of(cls, value: Quartiles | None) -> Summary | None:
        """The summary of a recorded quantity; None for None."""
        if value is None:
            return None
        bounds = (value.low, value.high) if isinstance(value, Ratio) else (None, None)
        return cls(value.median, value.iqr, *bounds, value.n)

    @property
    def is_noisy(self) -> bool:
        """Whether the quartiles lie further apart than half of the median."""
        return self.iqr is not None and self.iqr > NOISY * self.median


@dataclass(frozen=True)
class Latency:
    """Seconds of one pass, for a causal network over the prompt; `merged` is None if the method cannot merge."""

    unmerged: Summary | None
    merged: Summary | None


@dataclass(frozen=True)
class Times:
    """The times that a profile pass measured for one configuration.

    Attributes:
        step: seconds of a training step.
        ratio: step time / the reference's, within the same round.
        latency: batch size -> latency in seconds.
        merge_max_change: largest absolute change of a logit by merging.
        profile: the pass.
        split: phase -> seconds; empty if the step was not split.
        tokens: tokens of the batch, without padding.
        tokens_per_second: training throughput.
        flops: phase -> floating-point operations of one step, and their "total".
        flops_per_second: achieved rate.
        share: that rate / the rate of a large matrix product in the same round.
        first: first timed step of a process / its later ones; None with one round per process.
    """

    step: Summary | None
    ratio: Summary | None
    latency: Mapping[str, Latency]
    merge_max_change: float | None
    profile: ProfileRecord
    split: Mapping[str, Summary]
    tokens: int | None
    tokens_per_second: Summary | None
    flops: Mapping[str, int] | None
    flops_per_second: Summary | None
    share: Summary | None
    first: float | None = None

    @property
    def is_cold(self) -> bool:
        """Whether the warm-up was too short: the first timed step still took longer than the later ones."""
        return self.first is not None and self.first > 1 + COLD

    @property
    def noisy(self) -> list[str]:
        """Names of the times that vary too much to be compared."""
        named = {"step": self.step}
        for batch, at in self.latency.items():
            named |= {f"latency, batch {batch}": at.unmerged, f"latency, batch {batch}, merged": at.merged}
        return [name for name, time in named.items() if time is not None and time.is_noisy]


def background_cpu_share(profile: ProfileRecord) -> float | None:
    """Share of the machine's cores that other programs used during a pass, 0 to 1; None if not known."""
    return profile.body.time.background_cpu_share if profile.body.time else None


def product(profile: ProfileRecord) -> MatrixProduct | None:
    """The large matrix product timed in the rounds of a pass; None if none was."""
    return profile.body.time.product if profile.body.time else None


def matching(profiles: Iterable[ProfileRecord], run: RunRecord) -> list[ProfileRecord]:
    """The passes of the run's experiment that timed steps like its own.

    Args:
        profiles: profile passes of any experiment.
        run: the run.

    Returns:
        The matching passes, finished ones first, then by age, newest first.
    """
    mine = [p for p in profiles if p.experiment == run.experiment and comparable.times_apply(p.spec, run.spec)]
    last = {p.spec_id: p.body.started for p in sorted(mine, key=lambda p: p.body.started)}
    newest = sorted(mine, key=lambda p: (last[p.spec_id], p.spec_id, p.order), reverse=True)
    return sorted(newest, key=lambda p: not p.is_finished)


def of(profiles: Sequence[ProfileRecord], run: RunRecord) -> Times | None:
    """The times of the run's configuration in the first pass that measured it.

    Args:
        profiles: passes in order of preference, as from `matching`.
        run: a run of the configuration.

    Returns:
        The times; None if no pass measured the configuration.
    """
    method = run.spec.method
    mine = method.name, method.version, method.hyper
    for profile in profiles:
        profiled = {m.label: m for m in profile.spec.methods}.get(method.label)
        if profiled is None or (profiled.name, profiled.version, profiled.hyper) != mine:
            continue
        for row in profile.rows:
            if row.label == method.label and row.task in (run.spec.task.name, profile.spec.task.name):
                return of_row(row, profile)
    return None


def by_machine(profiles: Iterable[ProfileRecord], runs: Sequence[RunRecord]) -> dict[str, dict[str, Times]]:
    """The times of a table's configurations by the kind of machine that measured them, and then by label.

    Args:
        profiles: passes in order of preference, as from `matching`.
        runs: the runs of the table.

    Returns:
        The kind that measured the most configurations first; of equals, the one with the preferred pass.
    """
    passes: dict[str, list[ProfileRecord]] = {}
    for profile in profiles:
        if profile.is_finished:
            passes.setdefault(comparable.machine_kind(profile.env), []).append(profile)
    found = {
        kind: {run.spec.method.label: times for run in runs if (times := of(measured, run)) is not None}
        for kind, measured in passes.items()
    }
    return dict(sorted(((k, t) for k, t in found.items() if t), key=lambda item: -len(item[1])))


def of_row(row: ProfileRow, profile: ProfileRecord) -> Times:
    """The times in one row of a profile pass."""
    split, flops = row.split_seconds, row.flops
    return Times(
        step=Summary.of(row.step_seconds),
        ratio=Summary.of(row.ratio),
        latency=_usual(row),
        merge_max_change=row.merge_max_change,
        profile=profile,
        split={p: s for p in PHASES if (s := Summary.of(getattr(split, p, None)))},
        tokens=row.tokens,
        tokens_per_second=Summary.of(row.tokens_per_second),
        flops={p: getattr(flops, p) for p in (*PHASES, "total")} if flops else None,
        flops_per_second=Summary.of(row.flops_per_second),
        share=Summary.of(row.product_share),
        first=_first(row.step_seconds.samples, profile.processes),
    )


def _first(samples: Sequence[float], processes: int) -> float | None:
    """Median over the processes of the first sample / the median of the others; None for single rounds."""
    rounds = len(samples) // processes
    parts = [samples[i : i + rounds] for i in range(0, rounds * processes, rounds)] if rounds > 1 else []
    return median(p[0] / median(p[1:]) for p in parts) if parts else None


def _usual(row: ProfileRow) -> dict[str, Latency]:
    """batch size -> latency of one pass at the task's median length."""
    usual = [at for at in row.latency if at.typical and at.phase != "decode"]
    return {str(at.batch): Latency(Summary.of(at.unmerged), Summary.of(at.merged)) for at in usual}
