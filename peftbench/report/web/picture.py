"""The main figure for a browser without scripts: scores with their intervals as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftbench.report.data import answer, families, verdicts
from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison
from peftbench.report.media.plain import visible
from peftbench.report.web import charts, costs

WIDTH = 620  # pixels of the panel


def scores(c: Comparison) -> Any:
    """The scores of a table; None without any."""
    told = answer.of(c)
    rows: list[dict[str, Any]] = []
    for e in c.entries:
        v = verdicts.of(c).get(e.label)
        if v is None:
            continue
        low, high = v.interval or (None, None)
        state = "chosen" if told and told.chosen == e.label else "in"
        rows.append(_row(e.label, e.method, v.mean.value, low, high, state, len(rows)) | {"score": costs.score(c, e)})
    return _drawn(rows, f"{visible(c.metric)}, mean and 95 % interval")


def average(a: Average) -> Any:
    """The scores of a table over tasks; None without any."""
    rows: list[dict[str, Any]] = []
    for s in a.standings:
        if s.relative is not None:
            low, high = s.relative_interval or (None, None)
            rows.append(_row(s.label, s.method, s.relative, low, high, "in", len(rows)))
    return _drawn(rows, f"score relative to {visible(a.reference)}, mean over tasks and 95 % interval")


def _row(label: str, method: str, y: float, low: float | None, high: float | None, state: str, order: int) -> Any:
    place = {"label": visible(label), "family": families.of(method), "state": state, "order": order}
    return {**place, "y": y, "low": y if low is None else low, "high": y if high is None else high}


def _drawn(rows: Sequence[dict[str, Any]], title: str) -> Any:
    if not rows:
        return None
    import vl_convert
    from markupsafe import Markup

    spec = charts.fill(charts.templates()["forest"], {"@y": title, "@cost": "cost"})
    layers = [layer for layer in spec["layer"] if layer["data"]["name"] == "rows"]
    shown = {**spec, "layer": layers, "width": WIDTH, "datasets": {"rows": list(rows)}, "background": "#ffffff"}
    svg = vl_convert.vegalite_to_svg(shown)
    return Markup(svg)
