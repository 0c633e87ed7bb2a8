"""The charts of the page as Vega-Lite templates, one of each kind. Texts that begin with @ are filled for each table.

The data are named, so that the page holds every number once; the page's scripts hand them in, and change them when a
limit or the margin moves. Colours and domains are parameters, which the scripts set by the reader's colour scheme.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

Spec = dict[str, Any]
SHAPES = {  # paths within -1 to 1, for Vega, the key and the picture alike: families differ without colour
    "All weights": "M-0.9,-0.9H0.9V0.9H-0.9Z",
    "Low-rank updates": "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
    "Low-rank updates of a quantized base": "M0,-1.25L0.95,0L0,1.25L-0.95,0Z",
    "Bottleneck layers": "M0,-1.1L1.1,0.9H-1.1Z",
    "Prompts and prefixes": "M0,1.1L1.1,-0.9H-1.1Z",
    "Scales, biases and norms": "M-1,-0.35H-0.35V-1H0.35V-0.35H1V0.35H0.35V1H-0.35V0.35H-1Z",
    "Head only": "M1.1,0L-0.9,1.1V-1.1Z",
    "Other methods": "M0,-1L0.3,-0.4L0.95,-0.3L0.5,0.15L0.6,0.8L0,0.5L-0.6,0.8L-0.5,0.15L-0.95,-0.3L-0.3,-0.4Z",
}
PARTS = ("weights", "adapter", "head", "gradients", "optimizer", "activations", "temporaries")
INKS = {"ink": "#1c1c1a", "muted": "#6a6a64", "faint": "#c9c8c0", "accent": "#0b5fa5", "band": "#0b5fa5",
        "paper": "#ffffff"}  # fmt: skip


class _Altair(Protocol):
    """The module `altair`, which takes a third of a second to import."""

    def __getattr__(self, name: str) -> Any: ...


@cache
def templates() -> dict[str, Spec]:
    """Name of a kind -> its template."""
    import altair as alt

    made = {
        "front": _front(alt, "linear"),
        "front_log": _front(alt, "log"),
        "forest": _forest(alt),
        "loss": _loss(alt),
        "tuning": _tuning(alt),
        "memory": _memory(alt),
        "latency": _latency(alt),
        "axis": _axis(alt),
    }
    return {name: _plain(chart, alt) for name, chart in made.items()}


def _plain(chart: Any, alt: _Altair) -> Spec:
    """The chart as Vega-Lite, without what Altair adds for its own display."""
    spec: Spec = chart.to_dict(validate=False, context={"pre_transform": False})
    for key in ("config", "$schema"):
        spec.pop(key, None)
    return spec


def _inks(alt: _Altair, *more: tuple[str, Any]) -> list[Any]:
    return [alt.param(name=name, value=value) for name, value in (*INKS.items(), *more)]


def _expr(alt: _Altair, text: str) -> Any:
    return alt.ExprRef(text)


def _shape(alt: _Altair) -> Any:
    scale = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    return alt.Shape("family:N", scale=scale, legend=None)


def _stroke(alt: _Altair) -> Any:
    return _expr(alt, "datum.state == 'chosen' ? accent : datum.state == 'out' ? faint : ink")


def _tips(alt: _Altair) -> list[Any]:
    return [alt.Tooltip("label:N", title="method"), alt.Tooltip("family:N"), alt.Tooltip("score:N", title="@y"),
            alt.Tooltip("cost:N", title="@cost")]  # fmt: skip


def _by_method(alt: _Altair, grid: bool = True) -> Any:
    """A row for each method, in the order of the data."""
    axis = alt.Axis(ticks=False, domain=False, labelLimit=220, grid=grid)
    return alt.Y("label:N", sort=None, title=None, axis=axis)


def _front(alt: _Altair, kind: str) -> Any:
    ends = [_expr(alt, "x0"), _expr(alt, "x1")]
    without = {} if kind == "log" else {"zero": False}  # a logarithmic scale has no zero, and Vega warns of one
    across = alt.Scale(type=kind, domain=ends, nice=False, **without)
    up = alt.Scale(domain=[_expr(alt, "y0"), _expr(alt, "y1")], nice=False, zero=False)
    digits = "~s" if kind == "log" else ",.4~g"
    x = alt.X("x:Q", title="@x", scale=across, axis=alt.Axis(grid=False, format=digits, tickCount=5))
    y = alt.Y("y:Q", title="@y", scale=up, axis=alt.Axis(tickCount=6))
    rows, names, stroke = alt.Chart(alt.NamedData("rows")), alt.Chart(alt.NamedData("labels")), _stroke(alt)
    band = alt.Chart(alt.NamedData("band")).mark_rect(opacity=0.1, color=_expr(alt, "band"), clip=True)
    band = band.encode(y=alt.Y("low:Q", scale=up), y2="high:Q")
    dashed = {"interpolate": "step-after", "strokeWidth": 1.25, "strokeDash": [5, 3], "clip": True}
    front = alt.Chart(alt.NamedData("front")).mark_line(color=_expr(alt, "muted"), **dashed).encode(x=x, y=y)
    thin = {"strokeWidth": 1, "opacity": 0.45, "color": stroke, "clip": True}
    tall = rows.mark_rule(**thin).encode(x=x, y=alt.Y("low:Q", scale=up, title="@y"), y2="high:Q")
    wide = rows.mark_rule(**thin).encode(x=alt.X("xlow:Q", scale=across, title="@x"), x2="xhigh:Q", y=y)
    links = names.mark_rule(strokeWidth=0.6, color=_expr(alt, "muted")).encode(x=x, y=y, x2="lx:Q", y2="ly:Q")
    points = rows.mark_point(filled=True, size=70, opacity=1, fill=stroke, stroke=_expr(alt, "paper"), strokeWidth=0.75)
    points = points.encode(x=x, y=y, shape=_shape(alt), tooltip=_tips(alt))
    texts = [_names(alt, names, side, across, up, halo) for side in ("left", "right") for halo in (True, False)]
    domains = [(name, 1 + i % 2) for i, name in enumerate(("x0", "x1", "y0", "y1"))]  # the scripts set them
    layers = (band, front, tall, wide, links, points, *texts)
    return alt.layer(*layers).add_params(*_inks(alt, *domains)).properties(width=100, height=100)


def _names(alt: _Altair, names: Any, side: str, across: Any, up: Any, halo: bool) -> Any:
    """Names on one side of their points; a halo below them keeps lines away from the letters."""
    around = {"stroke": _expr(alt, "paper"), "strokeWidth": 3.5, "strokeJoin": "round"} if halo else {}
    weight = _expr(alt, "datum.state == 'chosen' ? 'bold' : 'normal'")
    mark = {"align": side, "baseline": "middle", "fontSize": 11, "dx": 3 if side == "left" else -3}
    texts = names.transform_filter(f"datum.side == '{side}'").mark_text(
        color=_stroke(alt), fontWeight=weight, **mark, **around
    )
    return texts.encode(x=alt.X("lx:Q", scale=across), y=alt.Y("ly:Q", scale=up), text="label:N")


def _forest(alt: _Altair) -> Any:
    rows, stroke, by = alt.Chart(alt.NamedData("rows")), _stroke(alt), _by_method(alt)
    across = alt.Scale(zero=False, nice=True)
    band = alt.Chart(alt.NamedData("band")).mark_rect(opacity=0.1, color=_expr(alt, "band"))
    band = band.encode(x=alt.X("low:Q", scale=across), x2="high:Q")
    lines = rows.mark_rule(strokeWidth=1.5, color=stroke)
    few = alt.Axis(tickCount=6)
    lines = lines.encode(x=alt.X("low:Q", scale=across, title="@y", axis=few), x2="high:Q", y=by)
    points = rows.mark_point(filled=True, size=64, opacity=1, color=stroke)
    points = points.encode(
        x=alt.X("y:Q", title="@y", scale=across, axis=few), y=by, shape=_shape(alt), tooltip=_tips(alt)
    )
    return alt.layer(band, lines, points).add_params(*_inks(alt)).properties(width=100, height=alt.Step(22))


def _loss(alt: _Altair) -> Any:
    x = alt.X("step:Q", title="optimiser step", scale=alt.Scale(nice=False), axis=alt.Axis(grid=False, tickCount=6))
    y = alt.Y("loss:Q", title="@y", scale=alt.Scale(zero=False))
    all_, ends = alt.Chart(alt.NamedData("loss")), alt.Chart(alt.NamedData("ends"))
    muted, accent = _expr(alt, "muted"), _expr(alt, "accent")
    faint = all_.transform_filter("!datum.picked").mark_line(strokeWidth=1, opacity=0.55, color=muted)
    bold = all_.transform_filter("datum.picked").mark_line(strokeWidth=2.25, color=accent)
    faint, bold = (lines.encode(x=x, y=y, detail="label:N") for lines in (faint, bold))
    tips = ["label:N", "step:Q", alt.Tooltip("loss:Q", format=".4f")]
    dots = all_.mark_point(size=120, opacity=0).encode(x=x, y=y, tooltip=tips)
    links = ends.mark_rule(strokeWidth=0.6, color=muted).encode(x=x, y=y, x2="lx:Q", y2="ly:Q")
    ink = _expr(alt, "datum.picked ? accent : muted")
    names = ends.mark_text(align="left", baseline="middle", fontSize=11, dx=3, color=ink)
    names = names.encode(x=alt.X("lx:Q"), y=alt.Y("ly:Q"), text="label:N")
    crosses = ends.transform_filter("datum.failed").mark_point(shape="cross", size=60, color=_expr(alt, "ink"))
    layers = (faint, bold, dots, links, names, crosses.encode(x=x, y=y))
    return alt.layer(*layers).add_params(*_inks(alt)).properties(width=100, height=300)


def _tuning(alt: _Altair) -> Any:
    rows = alt.Chart(alt.NamedData("trials"))
    log = alt.Scale(type="log")
    x = alt.X("x:Q", title="@x", scale=log, axis=alt.Axis(grid=False, format="~e", tickCount=4))
    y = alt.Y("y:Q", title="@y", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
    lines = rows.mark_line(strokeWidth=1, color=_expr(alt, "muted")).encode(x=x, y=y)
    size, fill = _expr(alt, "datum.chosen ? 90 : 28"), _expr(alt, "datum.chosen ? accent : ink")
    marks = alt.Scale(domain=[False, True], range=["circle", "diamond"])
    points = rows.mark_point(filled=True, opacity=1, size=size, color=fill).encode(
        x=x,
        y=y,
        shape=alt.Shape("chosen:N", legend=None, scale=marks),
        tooltip=["label:N", alt.Tooltip("x:Q", title="@x"), alt.Tooltip("y:Q", title="@y")],
    )
    head = alt.Header(labelFontWeight="bold", labelAnchor="start")
    by = alt.Facet("label:N", title=None, sort=alt.EncodingSortField("order"), header=head)
    small = alt.layer(lines, points).properties(width=150, height=90)
    return small.facet(by, columns=4).add_params(*_inks(alt)).resolve_scale(x="shared")


def _memory(alt: _Altair) -> Any:
    rows, by = alt.Chart(alt.NamedData("memory")), _by_method(alt, grid=False)
    legend = alt.Legend(title=None, orient="top", columns=4)
    bars = rows.mark_bar(stroke=_expr(alt, "paper"), strokeWidth=1).encode(
        x=alt.X("mib:Q", title="MiB alive at the peak", stack="zero", axis=alt.Axis(tickCount=5)),
        y=by,
        order=alt.Order("part_order:Q"),
        color=alt.Color("part:N", scale=alt.Scale(domain=list(PARTS)), sort=list(PARTS), legend=legend),
        tooltip=["label:N", "part:N", alt.Tooltip("mib:Q", format=",.1f", title="MiB")],
    )
    letters = rows.mark_text(fontSize=10, color="#ffffff", fontWeight="bold")
    letters = letters.encode(x=alt.X("middle:Q"), y=by, text="letter:N")
    return alt.layer(bars, letters).add_params(*_inks(alt)).properties(width=100, height=alt.Step(22))


def _latency(alt: _Altair) -> Any:
    rows, by = alt.Chart(alt.NamedData("latency")), _by_method(alt)
    x = alt.X("ms:Q", title="@x", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6, grid=False))
    lines = rows.mark_rule(strokeWidth=1.25, color=_expr(alt, "muted"))
    lines = lines.encode(x=alt.X("low:Q"), x2="high:Q", y=by)
    fill = _expr(alt, "datum.merged == 'adapter apart' ? ink : paper")
    marks = alt.Scale(domain=["adapter apart", "merged"], range=["circle", "diamond"])
    points = rows.mark_point(size=60, opacity=1, color=_expr(alt, "ink"), fill=fill).encode(
        x=x,
        y=by,
        shape=alt.Shape("merged:N", title=None, legend=None, scale=marks),
        tooltip=["label:N", "merged:N", alt.Tooltip("ms:Q", format=",.2f")],
    )
    return alt.layer(lines, points).add_params(*_inks(alt)).properties(width=100, height=alt.Step(22))


def _axis(alt: _Altair) -> Any:
    rows, ends, ink = alt.Chart(alt.NamedData("points")), alt.Chart(alt.NamedData("ends")), _expr(alt, "ink")
    log = alt.Scale(type="log", nice=False)
    x = alt.X("x:Q", title="@x", scale=log, axis=alt.Axis(grid=False, format="~s", tickCount=5))
    y = alt.Y("y:Q", title="@y", scale=alt.Scale(zero=False))
    dash = alt.StrokeDash("label:N", legend=None)
    lines = rows.mark_line(strokeWidth=1.75, color=ink).encode(x=x, y=y, strokeDash=dash, detail="label:N")
    bars = rows.mark_rule(strokeWidth=1, opacity=0.4, color=ink).encode(x=x, y=alt.Y("low:Q"), y2="high:Q")
    tips = ["label:N", alt.Tooltip("x:Q", title="@x"), alt.Tooltip("score:N", title="@y")]
    points = rows.mark_point(filled=True, size=60, opacity=1, color=ink)
    points = points.encode(x=x, y=y, shape=_shape(alt), tooltip=tips)
    links = ends.mark_rule(strokeWidth=0.6, color=_expr(alt, "muted")).encode(x=x, y=y, x2="lx:Q", y2="ly:Q")
    names = ends.mark_text(align="left", baseline="middle", dx=5, fontSize=11, color=ink)
    names = names.encode(x=alt.X("lx:Q"), y=alt.Y("ly:Q"), text="label:N")
    return alt.layer(lines, bars, points, links, names).add_params(*_inks(alt)).properties(width=100, height=300)
