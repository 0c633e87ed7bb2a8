"""The data of the page's further charts: losses, trials, parts of memory, latencies, and scores along an axis."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from peftbench.records.record import RunRecord
from peftbench.report.data import families, tunings
from peftbench.report.data.axis_curves import AxisCurve
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.latencies import Latencies, Timed
from peftbench.report.data.tunings import Tuning
from peftbench.report.media.plain import visible
from peftbench.report.tables import formatting
from peftbench.report.tables.answers import MIB
from peftbench.report.web.charts import PARTS

POINTS = 80  # of a curve of losses
Rows = list[dict[str, Any]]


def losses(c: Comparison) -> dict[str, Any]:
    """The losses of a table: `window`, and the curve of each row and of each failed run.

    Returns:
        window: number of steps of the moving average; curves: label, failed, and [step, loss] at up to `POINTS` steps.
    """
    steps = max((len(_finite(r)) for e in c.entries for r in e.runs), default=0)
    window = max(1, steps // 10)
    curves = [one for e in c.entries for one in _curves(e, window)]
    return {"window": window, "curves": curves}


def _curves(e: Entry, window: int) -> Iterator[dict[str, Any]]:
    done = [loss for r in e.runs if r.is_finished and (loss := _finite(r))]
    length = min(map(len, done), default=0)  # seeds may have stopped early: every mean is over all of them
    if length:
        means = [statistics.fmean(at) for at in zip(*(loss[:length] for loss in done), strict=True)]
        yield {"label": visible(e.label), "failed": False, "points": _thinned(means, window)}
    for r in e.runs:
        if not r.is_finished and (loss := _finite(r)):
            name = f"{visible(e.label)}, seed {r.spec.seed}: {r.status}"
            yield {"label": name, "failed": True, "points": _thinned(loss, window)}


def _finite(r: RunRecord) -> list[float]:
    """The losses before the first that is not finite."""
    found: list[float] = []
    for value in r.body.curve.loss if r.body.curve else []:
        if value is None:
            break
        found.append(value)
    return found


def _thinned(values: Sequence[float], window: int) -> list[list[float]]:
    """[step, moving average] at up to `POINTS` steps, the first and the last among them."""
    n = len(values)
    chosen = sorted({round(i * (n - 1) / (min(n, POINTS) - 1)) for i in range(min(n, POINTS))}) if n > 1 else [0]
    return [[i + 1, _digits(statistics.fmean(values[max(0, i + 1 - window) : i + 1]))] for i in chosen]


def _digits(value: float) -> float:
    """Five digits are more than a line shows."""
    return float(f"{value:.5g}")


def memory(c: Comparison) -> Rows:
    """The parts of the largest peak of each row, in MiB."""
    found = []
    for e in c.entries:
        measured = [m for r in e.runs if (m := r.body.memory)]
        if measured:
            most = max(measured, key=lambda m: m.peak_bytes)
            parts = {part: getattr(most.at_peak, part) / MIB for part in PARTS}
            found.append({"label": visible(e.label), "peak": most.peak_bytes / MIB, "phase": most.peak_phase, **parts})
    return found


def latencies(p: Latencies) -> Rows:
    """The times of a pass by shape."""
    return [
        {
            "label": visible(cell.label),
            "where": f"{cell.phase}, {cell.batch} × {cell.length}",
            "merged": name,
            "ms": of.median * 1e3,
            "ratio": of.ratio,
        }
        for cell in p.cells
        for name, of in (("adapter apart", cell.unmerged), ("merged", cell.merged))
        if isinstance(of, Timed)
    ]


def trials(t: Tuning) -> Rows:
    """The trials of a table by learning rate; those that failed are left out, as they have no score."""
    found = []
    for row in t.rows:
        best = row.best
        for r in row.trials:
            if (score := tunings.score(r)) is not None:
                found.append(
                    {
                        "label": visible(row.label),
                        "x": r.spec.train.lr,
                        "y": score,
                        "chosen": r is best,
                        "trial": r.spec.trial,
                    }
                )
    return found


def axis(a: AxisCurve) -> Rows:
    """The scores along an axis, with their intervals."""
    found = []
    for line in a.lines:
        for value, word in a.values.items():
            v, e = line.verdict(value), line.entry(value)
            if v is None or e is None:
                continue
            low, high = v.interval or (None, None)
            point = {"label": visible(line.label), "family": families.of(e.method), "x": value, "word": word}
            score = formatting.estimate(v.mean.value, v.interval, e.n)
            found.append({**point, "y": v.mean.value, "low": low, "high": high, "score": score})
    return found
