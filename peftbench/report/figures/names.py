"""The names from users that a figure shows, for which fonts are chosen."""

from __future__ import annotations

from peftbench.report.data.average import Average
from peftbench.report.data.axis_curves import AxisCurve
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.tunings import Tuning


def shown(by: Comparison | Average | Latencies | Tuning | AxisCurve) -> list[str]:
    """Every name in the figures of a table."""
    if isinstance(by, Average):
        return [by.experiment, by.reference, *by.tasks, *(s.label for s in by.standings)]
    if isinstance(by, Latencies):
        return [by.experiment, by.title, by.setting, *by.labels]
    if isinstance(by, AxisCurve):
        return [by.experiment, by.title, by.backbone, by.metric, *(line.label for line in by.lines)]
    labels = [row.label for row in (by.entries if isinstance(by, Comparison) else by.rows)]
    classes = by.data.classes if isinstance(by, Comparison) and by.data else ()
    return [by.experiment, by.title, by.backbone, by.metric, *labels, *classes]
