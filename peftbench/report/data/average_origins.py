"""Where a number of the table over tasks comes from: the numbers of the tasks' tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from peftbench.report.data import average, origins
from peftbench.report.data.average import Average, Standing
from peftbench.report.data.comparison import Comparison, Entry, mean
from peftbench.report.data.origins import Origin, Raw
from peftbench.report.data.times import Summary


def over_tasks(a: Average, s: Standing, tables: Sequence[Comparison]) -> dict[str, Callable[[], Origin]]:
    """The origin of every column of a row over tasks, by the column's name: from the numbers of the tasks' tables."""

    def values(number: Callable[[Comparison, Entry], float | None], field: str) -> tuple[Raw, ...]:
        rows = [(c, e) for c in tables if c.title in a.tasks for e in c.entries if e.label == s.label]
        return tuple(Raw(Path(f"{c.slug}.csv"), f"{c.title}: {field}", number(c, e)) for c, e in rows)

    def averaged(what: str, field: str, number: Callable[[Comparison, Entry], float | None]) -> Origin:
        raw = values(number, field)
        known = [float(r.value) for r in raw if isinstance(r.value, (int, float))]
        return Origin(f"Mean over the tasks of {what}.", raw, origins.mean_of(known), mean(known))

    def peak(c: Comparison, e: Entry) -> float | None:
        base = next((other.peak_bytes for other in c.entries if other.label == c.reference), None)
        return e.peak_bytes / base if e.peak_bytes and base else None

    against = f"that of {a.reference}"
    return {
        "score": lambda: averaged(
            f"the mean score / {against} (turned round where lower is better)", "relative", average.relative
        ),
        "rank": lambda: averaged("the rank by mean score, 1 for the best", "rank", average.rank),
        "trainable": lambda: averaged("trainable parameters", "trainable", lambda _, e: e.parameter("trainable")),
        "memory": lambda: averaged(f"peak memory / {against}", "memory", peak),
        "step-ratio": lambda: averaged(
            f"the time of a step / {against}", "step-ratio", lambda _, e: r.median if (r := _ratio(e)) else None
        ),
        "failed": lambda: Origin("Runs without a score on all tasks.", (), f"{s.failed}", float(s.failed)),
    }


def _ratio(e: Entry) -> Summary | None:
    return e.times.ratio if e.times else None
