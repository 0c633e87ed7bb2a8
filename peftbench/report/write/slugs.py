"""The tables of a report, each with a file name of its own, also on a file system that ignores case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from peftbench.report.data.average import Average
from peftbench.report.data.axis_curves import AxisCurve
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.tunings import Tuning
from peftbench.report.media import filename

Shown = Comparison | Latencies | Tuning | Average | AxisCurve


def apart(tables: Sequence[Shown]) -> list[Shown]:
    """The tables, each with a file name of its own."""
    exact = {i: (x.slug, f"{type(x).__name__} {x.experiment} {getattr(x, 'title', '')}") for i, x in enumerate(tables)}
    names = filename.apart(exact)
    return [x if names[i] == x.slug else replace(x, file=names[i]) for i, x in enumerate(tables)]
