"""Latencies of a profile pass: every configuration at every shape, compared with the base network.

The first records have no lengths and thus no such table; `times.py` reads their latencies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from peftbench.records.costs import LatencyAt, PassSeconds
from peftbench.records.record import ProfileRecord, Record
from peftbench.report.data import notes, pooled_passes
from peftbench.report.data.comparison import names_of
from peftbench.report.media.filename import stem
from peftbench.report.media.plain import natural

BASE = "base"  # row of the network without adapters; no configuration has this label
PHASES = {
    "forward": "one forward pass",
    "prefill": "the pass over the prompt (prefill)",
    "decode": "each token after the prompt (decode)",
}


@dataclass(frozen=True)
class Timed:
    """Seconds over the rounds, with the ratio to the base network in the same rounds."""

    median: float
    p95: float | None  # None for too few samples
    n: int
    ratio: float | None = None  # to the base; None for the base itself
    low: float | None = None  # ends of the ratio's interval; None if it has none
    high: float | None = None

    @classmethod
    def of(cls, value: PassSeconds | None) -> Timed | None:
        if value is None:
            return None
        ratio = (value.ratio.median, value.ratio.low, value.ratio.high) if value.ratio else ()
        return cls(value.median, value.p95, value.n, *ratio)


@dataclass(frozen=True)
class Cell:
    """One configuration at one shape in one phase."""

    label: str
    phase: str  # "forward" | "prefill" | "decode"
    batch: int
    length: int  # tokens
    typical: bool  # whether this is the task's median length rather than one from the experiment file
    unmerged: Timed | None
    merged: Timed | None  # None if the method cannot merge

    @property
    def shape(self) -> tuple[int, int]:
        """(batch size, tokens)."""
        return self.batch, self.length


@dataclass(frozen=True)
class Handling:
    """Seconds to merge an adapter into the weights and to switch to another; None where not measured."""

    label: str
    merge: float | None
    switch: float | None
    n: int | None


@dataclass(frozen=True)
class Latencies:
    """The inference latencies of one profile pass."""

    profile: ProfileRecord = field(repr=False)
    cells: tuple[Cell, ...]  # by phase and shape, then the base network first, then in the pass's order
    handling: tuple[Handling, ...]
    variant: str = ""  # distinguishes passes of one experiment on one task
    file: str = ""  # file name of the tables, where `slug` alone would be another's too

    @property
    def experiment(self) -> str:
        return self.profile.experiment

    @property
    def title(self) -> str:
        """The task's name; a stand-in is always marked as one."""
        task = self.profile.spec.task
        stand_in = f" (stand-in for {task.stand_in_for})" if task.stand_in_for else ""
        return f"{task.name}{stand_in}" + (f", {self.variant}" if self.variant else "")

    @property
    def slug(self) -> str:
        """File name of the table, without its extension."""
        names = names_of(self.profile.spec.task.name, self.profile.spec.task.stand_in_for)
        return self.file or stem(self.experiment, *names, variant=self.variant, ending="latency")

    @property
    def labels(self) -> list[str]:
        """The configurations in the pass's order, without the base network."""
        return [m.label for m in self.profile.spec.methods]

    @property
    def setting(self) -> str:
        """Model, precision and machine."""
        backbone = self.profile.spec.backbone
        return f"{backbone.model}, {backbone.dtype}, {self.profile.env.machine}"

    @property
    def facts(self) -> list[str]:
        """Sentences on what was measured, and under which conditions."""
        return [
            f"{self.setting}. The median (p50) and the 95th percentile (p95, from 20 samples on) of n passes, and the "
            "ratio to the network without adapters in the same rounds, with its interval.",
            notes.conditions(self.profile),
        ]


def of(records: Iterable[Record]) -> list[Latencies]:
    """Collect the latencies of every finished profile pass that has them by shape.

    Args:
        records: records of any kind.

    Returns:
        One item per pass, sorted by experiment and task.
    """
    shaped = [r for r in pooled_passes.counting(records) if r.is_finished and _cells(r)]
    passes = sorted(shaped, key=lambda r: natural(*_place(r), r.spec_id, r.env_id))
    variants = _variants(passes)
    return [of_pass(r, variant) for r, variant in zip(passes, variants, strict=True)]


def _variants(passes: Sequence[ProfileRecord]) -> list[str]:
    """What tells each pass from the others of its experiment and task; empty where there is no other.

    Passes of one spec come from several machines, or from several versions of the code on one.
    """
    alone = Counter(map(_place, passes))
    specs = Counter((_place(r), r.spec_id[:6]) for r in passes)
    machines = Counter((_place(r), r.spec_id[:6], r.env.machine) for r in passes)

    def variant(r: ProfileRecord) -> str:
        parts = [r.spec_id[:6]] if alone[_place(r)] > 1 else []
        parts += [r.env.machine] if specs[_place(r), r.spec_id[:6]] > 1 else []
        return ", ".join(parts + ([r.env_id[:6]] if machines[_place(r), r.spec_id[:6], r.env.machine] > 1 else []))

    return [variant(r) for r in passes]


def of_pass(r: ProfileRecord, variant: str = "") -> Latencies:
    """The latencies of one finished profile pass.

    Args:
        r: the pass.
        variant: distinguishes passes of one experiment on one task; else empty.

    Returns:
        The latencies, without cells if the record has none by shape.
    """
    return Latencies(r, tuple(_cells(r)), tuple(_handling(r)), variant)


def _place(r: ProfileRecord) -> tuple[str, str]:
    return r.experiment, r.spec.task.name


def _cells(r: ProfileRecord) -> list[Cell]:
    named = [(BASE, r.body.base.latency if r.body.base else []), *((row.label, row.latency) for row in r.rows)]
    cells = [_cell(label, at, at.length) for label, listed in named for at in listed if at.length is not None]
    phases = list(PHASES)
    return sorted(cells, key=lambda c: (phases.index(c.phase), not c.typical, c.shape))  # stable: labels keep order


def _cell(label: str, at: LatencyAt, length: int) -> Cell:
    return Cell(label, at.phase, at.batch, length, at.typical, Timed.of(at.unmerged), Timed.of(at.merged))


def _handling(r: ProfileRecord) -> Iterator[Handling]:
    for row in r.rows:
        merge, switch = row.merge_seconds, row.switch_seconds
        if timed := switch or merge:
            yield Handling(row.label, merge.median if merge else None, switch.median if switch else None, timed.n)
