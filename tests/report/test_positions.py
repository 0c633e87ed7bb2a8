"""Every mark of every figure stands at its values: read back from what is drawn, and compared with the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from peftbench.records.trials import value_of
from peftbench.report import assemble
from peftbench.report.assemble import ReportData
from peftbench.report.data import axis_curves, tunings, verdicts
from peftbench.report.data.average import averages
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.tunings import Tuning
from peftbench.report.figures import axis_figure, curves, latency_figure, plots, quality, rank_figure, style
from peftbench.report.papers import Results, _build
from peftbench.report.stats import ranks

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference"
PUBLISHED = sorted(folder.parent.name for folder in REFERENCE.glob("*/report"))
Marks = dict[str, list[tuple[float, float]]]  # label -> (x, y) of its marks


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Every figure by the name of its file, kept instead of being saved."""
    kept: dict[str, Figure] = {}

    def keep(name: str, figure: Figure) -> Iterator[tuple[str, bytes]]:
        kept[name] = figure
        return iter(())

    monkeypatch.setattr(style, "files", keep)
    monkeypatch.setattr(latency_figure, "files", keep)
    return kept


def marks(panel: Axes) -> Marks:
    """The marks whose label is a configuration's."""
    found: Marks = {}
    for line in panel.lines:
        if not (label := str(line.get_label())).startswith(("_child", "_nolegend_")):
            found.setdefault(label, []).extend(places(line))
    return found


def places(line: Line2D) -> list[tuple[float, float]]:
    x, y = line.get_xdata(), line.get_ydata()
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]  # type: ignore[arg-type]


def one(marks: Marks) -> dict[str, tuple[float, float]]:
    assert all(len(places) == 1 for places in marks.values())
    return {label: places[0] for label, places in marks.items()}


def quality_marks(c: Comparison, name: str, figure: Figure) -> int:
    """Compare the marks, their bars and the merged marks of a figure of quality with the table; how many there are."""
    count = 0
    for axis, panel in zip(quality.FIGURES[name], figure.axes, strict=True):
        known = {e.label: (s.median, e.mean) for e in c.entries if e.mean is not None and (s := axis.value(e))}
        assert one(marks(panel)) == known
        ends = {label: verdicts.of(c)[label].interval or (mean, mean) for label, (_, mean) in known.items()}
        upright = {(x, y0, y1) for (x, y0), (x1, y1) in segments(panel) if x == x1}
        assert upright == {(known[n][0], low, high) for n, (low, high) in ends.items() if high > low}
        merged = {(s.median, e.mean) for e in c.entries if e.label in known and axis.other and (s := axis.other(e))}
        hollow = [line for line in panel.lines if len(places(line)) == 1 and line.get_label() not in known]
        assert {places(line)[0] for line in hollow} == merged
        count += len(known)
    return count


def segments(panel: Axes) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """The error bars: lines of two ends in data coordinates."""
    for collection in panel.collections:
        if collection.get_transform() == panel.transData and hasattr(collection, "get_segments"):
            for ends in collection.get_segments():
                if len(ends) == 2:
                    yield tuple(map(float, ends[0])), tuple(map(float, ends[1]))  # type: ignore[misc]


def summary_marks(rows: Mapping[str, float], figure: Figure) -> int:
    found = one(marks(figure.axes[0]))
    assert {label: x for label, (x, _) in found.items()} == rows
    assert sorted(y for _, y in found.values()) == list(range(len(rows)))
    return len(rows)


def loss_marks(c: Comparison, figure: Figure) -> int:
    steps = max(len(r.body.curve.loss) for e in c.entries for r in e.runs if r.body.curve)
    known = {e.label: mean for e in c.entries if (mean := curves._mean(e, max(1, steps // 10)))}
    (panel,) = figure.axes
    found = [places(line) for line in panel.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]  # type: ignore[arg-type]
    assert sorted(found) == sorted([(i, y) for i, y in enumerate(mean, 1)] for mean in known.values())
    return sum(map(len, found))


def rate_marks(t: Tuning, figure: Figure) -> int:
    known = [
        sorted((value_of(r, "lr"), s) for r in row.trials if (s := tunings.score(r)) is not None)
        for row in t.rows
        if "lr" in row.space
    ]
    (panel,) = figure.axes
    found = [places(line) for line in panel.lines if line.get_linestyle() == "-"]
    assert sorted(found) == sorted(points for points in known if points)
    return sum(map(len, found))


def report_marks(loaded: ReportData, drawn: dict[str, Figure]) -> int:
    """Draw every figure of a report, compare its marks with the data, and say how many there are."""
    looks = style.looks(loaded.comparisons)
    over_tasks = averages(loaded.comparisons)
    along = axis_curves.of(loaded.comparisons)
    for c in loaded.comparisons:
        assert not list(plots.figures(c, looks))
    for t in loaded.tunings:
        assert not list(plots.tuning_figures(t, looks))
    for a in over_tasks:
        assert not list(plots.average_figures(a, a.slug, looks))
    for curve in along:
        assert not list(plots.axis_figure(curve, looks))
    for p in loaded.passes:
        assert not list(plots.latency_figure(p, looks))
    checks: dict[str, Callable[[Figure], int]] = {}
    for c in loaded.comparisons:
        for name in quality.FIGURES:
            checks[f"{c.slug}--{name}"] = lambda f, c=c, name=name: quality_marks(c, name, f)  # type: ignore[misc]
        rows = {e.label: e.mean for e in c.entries if e.mean is not None}
        checks[f"{c.slug}--summary"] = lambda f, rows=rows: summary_marks(rows, f)  # type: ignore[misc]
        checks[f"{c.slug}--loss"] = lambda f, c=c: loss_marks(c, f)  # type: ignore[misc]
        checks[f"{c.slug}--confusion"] = lambda f: 0  # an image
    for a in over_tasks:
        scores = {s.label: s.relative for s in a.standings if s.relative is not None}
        checks[f"{a.slug}--summary"] = lambda f, scores=scores: summary_marks(scores, f)  # type: ignore[misc]
        checks[f"{a.slug}--ranks"] = lambda f, a=a: rank_marks(a, f)  # type: ignore[misc]
    for curve in along:
        checks[curve.slug] = lambda f, curve=curve: curve_marks(curve, f)  # type: ignore[misc]
    for t in loaded.tunings:
        checks[f"{t.slug}--rates"] = lambda f, t=t: rate_marks(t, f)  # type: ignore[misc]
        checks[f"{t.slug}--expected-best"] = lambda f, t=t: best_marks(t, f)  # type: ignore[misc]
    for p in loaded.passes:
        checks[p.slug] = lambda f, p=p: latency_marks(p, f)  # type: ignore[misc]
    assert set(drawn) <= set(checks), "a figure that no check reads"
    return sum(checks[name](figure) for name, figure in drawn.items())


def curve_marks(curve: axis_curves.AxisCurve, figure: Figure) -> int:
    found = marks(figure.axes[0])
    known = {line.label: [(float(x), y) for x, y, *_ in axis_figure.points(curve, line)]
             for line in curve.lines if line.varies}  # fmt: skip
    assert found == known
    bars = [
        (x, low, high) for line in curve.lines if line.varies for x, _, low, high in axis_figure.points(curve, line)
    ]
    upright = sorted((x, y0, y1) for (x, y0), (x1, y1) in segments(figure.axes[0]) if x == x1)
    assert np.array(upright) == pytest.approx(np.array(sorted(bars)))
    return sum(map(len, found.values()))


def best_marks(t: Tuning, figure: Figure) -> int:
    known = [tunings.expected_best(s, t.direction) for row in t.rows if (s := tunings.scores(t, row)) is not None]
    (panel,) = figure.axes
    found = [places(line) for line in panel.lines]
    assert sorted(found) == sorted([(i, y) for i, y in enumerate(best, 1)] for best in known)
    return sum(map(len, found))


def rank_marks(a: Any, figure: Figure) -> int:
    r = a.ranking
    (panel,) = figure.axes
    found = [places(line)[0][0] for line in panel.lines if len(places(line)) == 1]
    assert sorted(found) == sorted(rank_figure._x(r, rank) for rank in r.mean_ranks)
    return len(found)


def latency_marks(p: Any, figure: Figure) -> int:
    """Shapes are names: each has a band, and within it a column for each method; heights are values."""
    count = 0
    for panel in figure.axes:
        bands = [label.get_text() for label in panel.get_xticklabels()]
        drawn = [(float(x), float(y)) for marks in panel.collections for x, y in marks.get_offsets()]  # type: ignore[union-attr]
        timed = [
            (f"{c.shape[0]} × {c.shape[1]}", (t.ratio - 1) * 100)
            for c in p.cells
            for t in (c.unmerged, c.merged)
            if t and t.ratio is not None and not c.typical and c.label != "base"
        ]
        assert all(abs(x - round(x)) < 0.5 for x, _ in drawn)
        assert sorted((bands[round(x)], y) for x, y in drawn) == sorted(timed)
        count += len(drawn)
    return count


def test_no_mark_of_many_methods_of_one_size_is_moved(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    sizes = ["full", "lora", "dora", "adapter", "adapter-parallel", "ia3", "bitfit"]
    factories.write_all(tmp_path, [*factories.grid(sizes), factories.profile(sizes)])
    assert report_marks(assemble.load(tmp_path), drawn) > 4 * len(sizes)


IN_KIND = ("quickstart", "data_size", "sweep_quickstart", "embedded_small")  # two tasks, an axis, rates, many tasks


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in IN_KIND else pytest.param(name, marks=pytest.mark.full) for name in PUBLISHED]
)
def test_every_mark_of_every_published_report_stands_at_its_value(name: str, drawn: dict[str, Figure]) -> None:
    count = report_marks(assemble.load(REFERENCE / name), drawn)
    assert count > 0
    print(f"{name}: {count} marks in {len(drawn)} figures, 0 moved")


@pytest.mark.parametrize("name", ["lora_rank", "params_scores", "prefix_length"])
def test_every_mark_of_a_papers_figure_stands_in_a_row_of_its_table(name: str) -> None:
    reproduction = _build.known()[name].reproduce(Results(ROOT / "results"))
    figure = Figure()
    with style.drawing():
        reproduction.draw(figure)
    found = [xy for container in figure.axes[0].containers for xy in places(container[0])]
    rows = [[cell.split(" ")[0] for cell in row] for row in reproduction.table.rows]
    assert len(found) == len(rows)
    for x, y in found:
        assert any(f"{x:,.0f}" in row and f"{y:.3f}" in row for row in rows), (x, y)


@pytest.mark.slow
def test_labels_that_do_not_fit_are_left_out_and_no_two_meet(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    loaded = assemble.load(REFERENCE / "quickstart")
    looks = style.looks(loaded.comparisons)
    for c in loaded.comparisons:
        assert not list(plots.figures(c, looks))
    texts = 0
    for name, figure in drawn.items():
        if "quality" in name:
            for panel in figure.axes:
                boxes = [t.get_window_extent() for t in panel.texts if t.get_fontsize() == 9]
                texts += len(boxes)
                for i, box in enumerate(boxes):
                    assert panel.get_window_extent().padded(3).contains(box.x0, box.y0)
                    assert not any(overlap(box, other) > 4 for other in boxes[:i]), name
    assert texts > 10


def overlap(a: Any, b: Any) -> float:
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, width) * max(0.0, height)


def test_a_p_value_is_never_printed_as_zero() -> None:
    sure = ranks.Ranking(("a", "b"), 4, (1.0, 2.0), 9.0, 1e-5, 0.9)
    assert sure.p_shown == "p < 0.001"
    assert ranks.Ranking(("a",), 4, (1.0,), 9.0, 0.0312, 0.9).p_shown == "p = 0.031"
