"""What a row costs, in words and numbers: trainable parameters, peak memory, step time and latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from peftbench.report.data.average import Average, Standing
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.times import Summary
from peftbench.report.tables import formatting
from peftbench.report.tables.answers import MIB

NAMES: Mapping[str, str] = {
    "memory": "peak memory",
    "parameters": "trainable parameters",
    "time": "step time",
    "latency": "latency",
}
BATCH = "1"  # of the latency


def summary(e: Entry, name: str) -> Summary | None:
    """A measured time of a row: of a training step, or of one pass over one text, the adapter apart."""
    if e.times is None:
        return None
    if name == "time":
        return e.times.step
    at = e.times.latency.get(BATCH)
    return at.unmerged if at else None


def value(e: Entry, name: str) -> float | None:
    """A cost: bytes, parameters, or seconds; None if it was not measured."""
    match name:
        case "memory":
            return e.peak_bytes
        case "parameters":
            return e.parameter("trainable")
    found = summary(e, name)
    return found.median if found else None


def amount(e: Entry, name: str) -> str:
    """A cost with its unit: `145 MiB`; empty if it was not measured."""
    cost = value(e, name)
    return "" if cost is None else _amount(cost, name)


def short(c: Comparison, e: Entry, name: str) -> str:
    """A cost in words: `145 MiB, 0.42 of full's`; empty if it was not measured."""
    if (cost := value(e, name)) is None:
        return ""
    base = _reference(c)
    below = value(base, name) if base and base is not e else None
    return f"{_amount(cost, name)}{f', {cost / below:.2g} of {c.reference}’s' if below else ''}"


def score(c: Comparison, e: Entry) -> str:
    """The mean score and its interval: `0.742 [0.701, 0.783]`."""
    from peftbench.report.data import verdicts

    v = verdicts.of(c).get(e.label)
    return formatting.estimate(e.mean, v.interval if v else None)


def beside(c: Comparison, e: Entry) -> str:
    """What a row costs beside the reference, as the end of a sentence; empty if nothing was measured.

    `trains 82,944 parameters (0.37 % of full's 22,565,376), needs 145 MiB of peak memory (0.42×), ...`
    """
    base = _reference(c)
    return formatting.listed(parts) if (parts := list(_parts(c, e, None if base is e else base))) else ""


def over_tasks(a: Average, s: Standing) -> str:
    """What a row costs beside the reference, as the mean over tasks."""
    parts = [f"trains {formatting.count(s.trainable)} parameters"] if s.trainable is not None else []
    ratios = ((s.peak_ratio, "the peak memory"), (s.step_ratio, "the time of a step"))
    if s.label != a.reference:
        parts += [f"takes {formatting.ratio(ratio)} {what} of {a.reference}" for ratio, what in ratios if ratio]
    return formatting.listed(parts) if parts else ""


def _parts(c: Comparison, e: Entry, base: Entry | None) -> Iterator[str]:
    if (trainable := e.parameter("trainable")) is not None:
        whole = base.parameter("trainable") if base else None
        share = f" ({_percent(trainable / whole)} of {c.reference}’s {whole:,})" if whole else ""
        yield f"trains {trainable:,} parameters{share}"
    if e.peak_bytes is not None:
        share = f" ({e.peak_bytes / base.peak_bytes:.2f}×)" if base and base.peak_bytes else ""
        yield f"needs {formatting.scaled(e.peak_bytes, MIB)} MiB at the memory peak{share}"
    if step := summary(e, "time"):
        ratio = e.times.ratio if e.times and base else None
        yield f"takes {formatting.seconds(step.median)} a step{f' ({formatting.interval(ratio)})' if ratio else ''}"
    if latency := summary(e, "latency"):
        below = summary(base, "latency") if base else None
        share = f" ({latency.median / below.median:.2f}×)" if below and below.median else ""
        at = e.times.latency.get(BATCH) if e.times else None
        merged = f", or merged in {formatting.seconds(at.merged.median)}" if at and at.merged else ""
        yield f"answers one text in {formatting.seconds(latency.median)}{share}{merged}"


def _reference(c: Comparison) -> Entry | None:
    return next((e for e in c.entries if e.label == c.reference), None)


def _amount(cost: float, name: str) -> str:
    match name:
        case "memory":
            return f"{formatting.scaled(cost, MIB)} MiB"
        case "parameters":
            return formatting.count(cost)
    return formatting.seconds(cost)


def _percent(share: float) -> str:
    """`0.37 %`, or `100 %`."""
    return f"{share * 100:.2g} %" if share < 0.995 else f"{share * 100:.0f} %"
