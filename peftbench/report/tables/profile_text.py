"""Profile passes on their own, as text and JSON rows: the output of `peftbench profile`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.records.comparable import machine_kind
from peftbench.records.record import ProfileRecord, Record
from peftbench.report.data import latencies, notes, pooled_passes, times
from peftbench.report.data.times import Summary, Times
from peftbench.report.tables import columns, export, formatting, latency_page, step_costs
from peftbench.report.tables.terminal import block


@dataclass(frozen=True)
class ProfiledConfiguration:
    """A configuration and its times in the pass."""

    label: str
    times: Times


def measured(profile: ProfileRecord) -> list[ProfiledConfiguration]:
    """The configurations of a finished pass, in its order."""
    return [ProfiledConfiguration(row.label, times.of_row(row, profile)) for row in profile.rows]


def rows(profiles: Iterable[ProfileRecord], records: Sequence[Record]) -> list[dict[str, Any]]:
    """One JSON-ready row per configuration and pass, unrounded in SI units, null where not measured.

    Args:
        profiles: finished, pooled passes.
        records: all records of the results directory, to number the attempts.

    Returns:
        Rows with the fields of `export.measured` and "product_flops_per_second", the rate of the matrix product.
        "counts" is true if the report's tables use this attempt, which is the first finished one.
    """
    counting = _counting(records)
    return [
        {
            "experiment": p.experiment,
            "task": p.spec.task.name,
            "backbone": p.spec.backbone.model,
            "method": m.label,
            "reference": p.spec.reference,
            "attempt": _number(p, records),
            "counts": p.path in counting,
            "record": p.path.name,
            "processes": p.processes,
            **export.measured(m.times),
            "product_flops_per_second": product.flops_per_second.median if (product := times.product(p)) else None,
        }
        for p in profiles
        for m in measured(p)
    ]


def text(profile: ProfileRecord, records: Sequence[Record]) -> str:
    """A pass for a terminal: the step, the latencies, and the agreement of its ratios with an earlier attempt.

    Args:
        profile: a finished, pooled pass.
        records: all records of the results directory.
    """
    spec, shown = profile.spec, measured(profile)
    shape = " × ".join(map(str, profile.rows[0].shape or ()))
    title = f"{profile.experiment}: {spec.task.name} ({spec.backbone.model}, batch {shape}, {_rounds(profile)})"
    tables = [columns.text(step_costs.columns(spec.reference), shown), *_latencies(profile, shown)]
    return block(title, "\n\n".join(tables), list(_notes(profile, records, shown)))


def _latencies(profile: ProfileRecord, shown: Sequence[ProfiledConfiguration]) -> list[str]:
    by_shape = latencies.of_pass(profile)
    if not by_shape.cells:  # early records have no lengths
        return [columns.text([columns.Column("method", lambda m: m.label), *columns.latency_columns()], shown)]
    return [
        columns.text(latency_page.columns(), by_shape.cells),
        columns.text(latency_page.handling_columns(), by_shape.handling),
    ]


def _notes(profile: ProfileRecord, records: Sequence[Record], shown: Sequence[ProfiledConfiguration]) -> Iterator[str]:
    yield notes.conditions(profile)
    if product := times.product(profile):
        size = f"{product.width} × {product.width}"
        yield (
            f"The machine's rate: products of two {size} matrices in {product.dtype} reached "
            f"{formatting.scaled(product.flops_per_second.median, step_costs.GIGA)} GFLOP/s in the same rounds."
        )
    counting = _counting(records)
    same = (c for c in counting.values() if c.spec_id == profile.spec_id)
    counts = next((c for c in same if machine_kind(c.env) == machine_kind(profile.env)), profile)
    if counts.path != profile.path:
        yield (
            f"This is attempt {_number(profile, records)} of the same pass. The report's tables show the first "
            f"finished one, {counts.path.name}."
        )
        yield _agreement(shown, measured(counts), profile.spec.reference)


def _counting(records: Sequence[Record]) -> dict[Path, ProfileRecord]:
    """The passes that the report's tables use, by the path of their first process's record."""
    return {p.path: p for p in pooled_passes.counting(records)}


def _rounds(profile: ProfileRecord) -> str:
    """Rounds, and processes if there are several."""
    number, rounds = profile.processes, profile.spec.rounds
    return f"{rounds} rounds" if number == 1 else f"{number} processes of {rounds} rounds"


def _number(profile: ProfileRecord, records: Sequence[Record]) -> int:
    """The number of this attempt at its spec, counted over all environments."""
    return 1 + sum(r.spec_id == profile.spec_id and r.order < profile.order for r in records)


def _agreement(now: Sequence[ProfiledConfiguration], first: Sequence[ProfiledConfiguration], reference: str) -> str:
    """Whether the intervals of the ratios overlap between two attempts."""
    before = {m.label: m.times.ratio for m in first}
    pairs = [(m.label, m.times.ratio, before.get(m.label)) for m in now if m.label != reference]
    compared = [(label, _overlap(a, b)) for label, a, b in pairs if a and b]
    known = [(label, agrees) for label, agrees in compared if agrees is not None]
    if not known:
        return "No ratio of both attempts has an interval: whether they agree cannot be told."
    apart = [label for label, agrees in known if not agrees]
    rest = f"; not those of {', '.join(apart)}" if apart else ""
    number = f"{len(known) - len(apart)} of {len(known)}"
    return f"The intervals of the ratios overlap with that attempt's for {number}{rest}."


def _overlap(a: Summary, b: Summary) -> bool | None:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    return a.low <= b.high and b.low <= a.high
