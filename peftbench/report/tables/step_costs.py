"""The table of the training step: time, phases, tokens, operations, and share of the machine's rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from peftbench.report.data.times import PHASES, Summary, Times
from peftbench.report.tables import formatting
from peftbench.report.tables.columns import Column
from peftbench.report.tables.export import flat, measured

GIGA, TERA = 10**9, 10**12
LEGEND = (
    "Step: median ± half the distance between the quartiles. Forward, backward and optimizer: medians. Tokens: of the "
    "batch, without padding. FLOPs: counted operations of matrix products, attention and convolutions. Share: of the "
    "rate that a large matrix product reached in the same rounds. In brackets: 95 % interval over the processes that "
    "took the pass, or over the rounds of a single one."
)


class Row(Protocol):
    """A configuration with its measured times."""

    @property
    def label(self) -> str: ...

    @property
    def times(self) -> Times | None: ...


def known(rows: Iterable[Row]) -> bool:
    """Whether any row has more than the step's total time."""
    return any(row.times is not None and row.times.flops is not None for row in rows)


def row(of: Row) -> dict[str, Any]:
    """One configuration as a flat row for a CSV file; the fields are those of `export.measured`."""
    return {"method": of.label, **flat(measured(of.times))}


def columns(reference: str) -> list[Column]:
    """Columns of the readable table; a narrow terminal keeps the first ones."""
    return [
        Column("method", lambda r: r.label),
        Column("step, ms", _get(lambda t: formatting.milliseconds(t.step, spread=True))),
        Column(f"step / {reference}", _get(lambda t: formatting.interval(t.ratio)), 1),
        *(Column(f"{p}, ms", _get(_phase(p)), 2, p) for p in PHASES),
        Column("tokens / s", _get(lambda t: formatting.count(_median(t.tokens_per_second))), 3),
        Column("GFLOPs, forward", _get(_flops("forward")), 7),
        Column("GFLOPs, backward", _get(_flops("backward")), 8),
        Column("GFLOPs", _get(_flops("total")), 6),
        Column("TFLOP/s", _get(lambda t: formatting.scaled(_median(t.flops_per_second), TERA)), 5),
        Column("share of the machine's rate", _get(lambda t: formatting.percent(t.share)), 4, "share"),
    ]


def _get(cell: Callable[[Times], str]) -> Callable[[Row], str]:
    return lambda r: cell(r.times) if r.times is not None else formatting.DASH


def _phase(name: str) -> Callable[[Times], str]:
    return lambda t: formatting.milliseconds(t.split.get(name))


def _flops(name: str) -> Callable[[Times], str]:
    return lambda t: formatting.scaled((t.flops or {}).get(name), GIGA)


def _median(value: Summary | None) -> float | None:
    return value.median if value is not None else None
