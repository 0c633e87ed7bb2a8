"""Predictions against published measurements: signed errors by group, rival calculators on the same points, one figure.

Where a source gives what the allocator has reserved, an upper bound of the peak, only one side can be judged: whether
predictions stay below, and whether they rank the points alike. Predictions are given; nothing is simulated here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from peftbench.errors import UserError
from peftbench.estimate.published.published_points import FOLDER, PublishedPoint
from peftbench.report.media.markdown import escape

RIVALS = FOLDER / "rivals.json"
Predict = Callable[[PublishedPoint], int | None]  # bytes, or tokens of a longest context; None where there is none
Key = tuple[str, str]  # group and measure
STRICT = ("allocated", "active", "after_step")
BANDS = (3, 8)  # percent, of the figure


@dataclass(frozen=True)
class Errors:
    """Signed errors of some points, (predicted - measured) / measured, in percent.

    Attributes:
        n: Points.
        median_size: Median of the errors' sizes.
        p90_size: Their 90th percentile, interpolated.
        worst: The error of the largest size.
        worst_id: Its point.
        middle: Median of the signed errors.
        above: Share of points predicted above the measurement.
    """

    n: int
    median_size: float
    p90_size: float
    worst: float
    worst_id: str
    middle: float
    above: float


@dataclass(frozen=True)
class OneSided:
    """What upper bounds tell of predictions.

    Attributes:
        n: Points.
        below: Share of predictions below the measurement.
        rank: Spearman's correlation of predictions and measurements; None if it is not defined.
    """

    n: int
    below: float
    rank: float | None


@dataclass(frozen=True)
class Beside:
    """A rival and ours on the points that both predict."""

    tool: str
    key: Key
    theirs: Errors
    ours: Errors


@dataclass(frozen=True)
class Checked:
    """All comparisons.

    Attributes:
        errors: By group and measure, where a measurement is of what is predicted.
        strict: Over all points whose measure is what is allocated or active.
        bounds: By group, where it is of what is reserved.
        beside: By rival and group, the rival's errors and ours on the same points.
        predicted: Our prediction by point.
        missing: Points to predict that have no prediction.
    """

    errors: Mapping[Key, Errors]
    strict: Errors | None
    bounds: Mapping[Key, OneSided]
    beside: Sequence[Beside]
    predicted: Mapping[str, int]
    missing: Sequence[str]


@dataclass(frozen=True)
class Rivals:
    """Predictions of other calculators.

    Attributes:
        versions: Version by tool.
        predicted: Prediction by tool and point.
    """

    versions: Mapping[str, str]
    predicted: Mapping[str, Mapping[str, int]]


def read_rivals(path: Path = RIVALS) -> Rivals:
    """Read what scripts/rival_predictions.py writes.

    Raises:
        UserError: The file is missing or of another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        by_point = content["predictions"]
        versions = dict(content["versions"])
        predicted = {
            tool: {name: int(told[tool]["value"]) for name, told in by_point.items() if "value" in told[tool]}
            for tool in versions
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: no predictions of rivals ({error}); write them with scripts/rival_predictions.py"
        ) from error
    return Rivals(versions, predicted)


def check(points: Sequence[PublishedPoint], predict: Predict, rivals: Rivals | None = None) -> Checked:
    """Compare predictions with all points that are not left out.

    Args:
        points: The registry, or a part of it.
        predict: Our prediction of a point.
        rivals: Others' predictions.
    """
    wanted = [point for point in points if not point.left_out]
    found = {point.id: value for point in wanted if (value := predict(point)) is not None}
    covered = [point for point in wanted if point.id in found]
    sharp = [point for point in covered if point.measure != "reserved"]
    beside = [
        Beside(tool, key, errors(common, theirs), errors(common, found))
        for tool, theirs in (rivals.predicted if rivals else {}).items()
        for key, common in _groups([point for point in sharp if point.id in theirs])
    ]
    return Checked(
        errors={key: errors(group, found) for key, group in _groups(sharp)},
        strict=errors(strict, found) if (strict := [p for p in sharp if p.measure in STRICT]) else None,
        bounds={
            key: one_sided(group, found)
            for key, group in _groups([point for point in covered if point.measure == "reserved"])
        },
        beside=beside,
        predicted=found,
        missing=[point.id for point in wanted if point.id not in found],
    )


def errors(points: Sequence[PublishedPoint], predicted: Mapping[str, int]) -> Errors:
    """Return the errors of predictions; every point has one."""
    signed = {point.id: error(point, predicted[point.id]) for point in points}
    sizes = sorted(abs(error) for error in signed.values())
    worst = max(signed, key=lambda name: abs(signed[name]))
    return Errors(
        n=len(signed),
        median_size=median(sizes),
        p90_size=_percentile(sizes, 0.9),
        worst=signed[worst],
        worst_id=worst,
        middle=median(signed.values()),
        above=sum(error > 0 for error in signed.values()) / len(signed),
    )


def one_sided(points: Sequence[PublishedPoint], predicted: Mapping[str, int]) -> OneSided:
    """Return how predictions relate to upper bounds; every point has a prediction."""
    from peftbench.tasks.metrics import spearman

    ours, bounds = [predicted[point.id] for point in points], [measured(point) for point in points]
    below = sum(own < bound for own, bound in zip(ours, bounds, strict=True))
    return OneSided(len(points), below / len(points), spearman(ours, bounds))


def error(point: PublishedPoint, predicted: int) -> float:
    """Return the signed error of one prediction, in percent."""
    return 100 * (predicted / measured(point) - 1)


def measured(point: PublishedPoint) -> float:
    """Return the measurement in what is predicted: bytes, or tokens of a longest context."""
    return point.value if point.unit == "tokens" else point.value_bytes


def as_text(checked: Checked, rivals: Rivals | None = None) -> str:
    """Return the comparisons as Markdown."""
    head = ["group", "measure", "points", "median", "90 % within", "worst", "median, signed", "too high"]
    rows = [[*key, *_cells(told)] for key, told in checked.errors.items()]
    if checked.strict:
        rows.append(["all of these", "allocated, active, after_step", *_cells(checked.strict)])
    texts = [_table(head, rows)]
    if checked.bounds:
        rows = [[*key, str(told.n), f"{told.below:.0%}", _rank(told.rank)] for key, told in checked.bounds.items()]
        texts.append(_table(["group", "measure", "points", "predicted below", "rank correlation"], rows))
    if checked.beside:
        head = ["tool", "group", "measure", "points", "median", "ours", "90 % within", "ours", "worst", "ours"]
        texts.append(_table(head, [_pair(row, rivals) for row in checked.beside]))
    if checked.missing:
        texts.append(f"Without a prediction: {', '.join(checked.missing)}.")
    return "\n\n".join(texts)


def figure(points: Sequence[PublishedPoint], checked: Checked, name: str = "published") -> Iterator[tuple[str, bytes]]:
    """Draw predicted against measured sizes, one marker and colour per group.

    Returns:
        (file name, content) as PNG and SVG.
    """
    from peftbench.report.figures import agreement

    drawn = [
        agreement.Dot(
            f"{point.group}: {point.title}", point.value_bytes, checked.predicted[point.id], point.measure == "reserved"
        )
        for point in points
        if point.id in checked.predicted and point.unit != "tokens"
    ]
    if not drawn:
        raise UserError("no point with a size has a prediction; there is nothing to draw")
    return agreement.draw(name, drawn, "Predicted against published memory", BANDS)


def _groups(points: Sequence[PublishedPoint]) -> list[tuple[Key, list[PublishedPoint]]]:
    groups: dict[Key, list[PublishedPoint]] = {}
    for point in points:
        groups.setdefault((point.group, point.measure), []).append(point)
    return sorted(groups.items())


def _percentile(ordered: Sequence[float], share: float) -> float:
    """Interpolate between the neighbours, as numpy does by default."""
    place = share * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _cells(told: Errors) -> list[str]:
    return [
        str(told.n),
        f"{told.median_size:.1f} %",
        f"{told.p90_size:.1f} %",
        f"{told.worst:+.1f} % ({told.worst_id})",
        f"{told.middle:+.1f} %",
        f"{told.above:.0%}",
    ]


def _pair(row: Beside, rivals: Rivals | None) -> list[str]:
    version = rivals.versions.get(row.tool, "") if rivals else ""
    pairs = [(row.theirs.median_size, row.ours.median_size), (row.theirs.p90_size, row.ours.p90_size)]
    sizes = [f"{size:.1f} %" for pair in pairs for size in pair]
    worst = [f"{row.theirs.worst:+.1f} %", f"{row.ours.worst:+.1f} %"]
    return [f"{row.tool} {version}".strip(), *row.key, str(row.theirs.n), *sizes, *worst]


def _rank(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _table(head: list[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[escape(str(cell)) for cell in row] for row in rows]
    align = ["left" if title in ("tool", "group", "measure") else "right" for title in head]
    return str(tabulate(cells, headers=head, tablefmt="pipe", colalign=align, disable_numparse=True)) if cells else ""
