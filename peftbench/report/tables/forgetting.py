"""The table of what a language model forgot: its loss on general text and its answers, before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftbench.report.data import forgetting
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.forgetting import ANSWERS, LOSS, Change, Measure
from peftbench.report.tables.columns import Column
from peftbench.report.tables.formatting import DASH

NAMES = {LOSS: "WikiText-2: loss", ANSWERS: "ARC-Easy: right answers, %"}
SCALE = {LOSS: 1.0, ANSWERS: 100.0}
SENTENCES = {
    LOSS: "Loss: nats a token, on windows of WikiText-2's test text, the same for every run; a rise is forgetting.",
    ANSWERS: "Right answers: to questions of ARC-Easy, the same for every run; a fall is forgetting.",
}


def known(c: Comparison) -> bool:
    """Whether any run has a probe of general language before and after."""
    return bool(forgetting.known(c))


def legend(c: Comparison) -> str:
    """How to read the table, in sentences."""
    said = " ".join(SENTENCES[m] for m in forgetting.known(c))
    return (
        f"{said} Before: with the fresh adapter, which most methods begin without effect; a fresh prefix and 4-bit "
        "weights change the network before a step. Means over the seeds; in brackets the 95 % interval of the change "
        "over seeds and what was asked."
    )


def columns(c: Comparison) -> list[Column]:
    """Columns of the readable table."""
    made = [Column("method", lambda e: e.label)]
    for m in forgetting.known(c):
        made += [
            Column(f"{NAMES[m]}, before", _cell(m, lambda x: x.before)),
            Column("after", _cell(m, lambda x: x.after)),
            Column("change", _change(m)),
        ]
    return made


def rows(c: Comparison) -> list[dict[str, Any]]:
    """One flat row for each configuration, for a CSV file: shares from 0 to 1, losses in nats a token."""
    return [{"method": e.label} | {k: v for m in forgetting.known(c) for k, v in _row(e, m).items()} for e in c.entries]


def _row(e: Entry, m: Measure) -> dict[str, float | None]:
    x = forgetting.of(e, m)
    half = _half(x) if x else None
    value = x.change.value if x else None
    low, high = (None, None) if half is None or value is None else (value - half, value + half)
    numbers = (x.before if x else None, x.after if x else None, value, low, high)
    return dict(zip([f"{m.probe}_{k}" for k in ("before", "after", "change", "low", "high")], numbers, strict=True))


def _cell(m: Measure, get: Callable[[Change], float]) -> Callable[[Entry], str]:
    return lambda e: DASH if (x := forgetting.of(e, m)) is None else _number(m, get(x))


def _change(m: Measure) -> Callable[[Entry], str]:
    def cell(e: Entry) -> str:
        x = forgetting.of(e, m)
        if x is None:
            return DASH
        half = _half(x)
        ends = "" if half is None else f" [{', '.join(_number(m, x.change.value + s * half, '+') for s in (-1, 1))}]"
        return _number(m, x.change.value, "+") + ends

    return cell


def _half(x: Change) -> float | None:
    """Half the interval; None with one seed, which says nothing about other seeds."""
    return None if x.change.is_of_runs else x.change.half()


def _number(m: Measure, value: float, sign: str = "") -> str:
    return f"{SCALE[m] * value:{sign}.{3 if m is LOSS else 1}f}".replace("-", "−")
