"""Places the labels of points in a plot close to their points, without covering markers, error bars or each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]  # (boxes, 4): left, bottom, right, top
RADII = (4, 9, 16, 25, 36, 50, 66, 84, 104)  # points between a point and the near edge of its label
ANGLES = tuple(math.radians(a) for a in (0, 180, 90, 270, 45, 135, 315, 225, 20, 340, 160, 200, 65, 115, 245, 295))
TOUCH = 2.0  # square points that two boxes may share and still read as apart
LEADER = 15.0  # distance in points from which a label has a line to its point


@dataclass(frozen=True)
class Box:
    """An upright rectangle, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The common area, in square points."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    @property
    def area(self) -> float:
        """The area, in square points."""
        return (self.right - self.left) * (self.top - self.bottom)


@dataclass(frozen=True)
class Label:
    """A label's centre relative to its point, and whether it needs a leader line."""

    dx: float
    dy: float
    box: Box
    leader: bool


def place(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], obstacles: Sequence[Box], frame: Box
) -> list[Label]:
    """Place one label per point: greedily, the most crowded point first, then improve until nothing moves.

    The result is deterministic. All coordinates are in points of one frame.

    Args:
        points: centres of the markers.
        sizes: (width, height) of each label.
        obstacles: boxes to avoid.
        frame: the box to stay in.

    Returns:
        One label per point.
    """
    order = sorted(range(len(points)), key=lambda i: (sum(math.dist(points[i], p) for p in points), i))
    options = [_Options(point, size, frame) for point, size in zip(points, sizes, strict=True)]
    fixed = _array(obstacles)
    placed: dict[int, Label] = {}
    lines: dict[int, list[Box]] = {}  # leader lines by label
    for _ in range(6):
        before = dict(placed)
        for i in order:
            others = _array([placed[j].box for j in placed if j != i])
            blocks = _array([box for j in placed if j != i for box in lines[j]])
            placed[i] = options[i].cheapest(others, np.concatenate([fixed, blocks]))
            lines[i] = _line(points[i], placed[i]) if placed[i].leader else []
        if placed == before:
            break
    return [placed[i] for i in range(len(points))]


def fitting(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    marks: Sequence[Box],
    bars: Sequence[Box],
    frame: Box,
) -> dict[int, Label]:
    """Place the labels that fit: none covers a mark, leaves the frame, or meets another label or its leader line.

    Where two are in each other's way, the later one is left out and the rest placed again.

    Args:
        points: centres of the labelled markers, the most important first.
        sizes: (width, height) of each label.
        marks: boxes of all markers.
        bars: boxes that a label should avoid, but may cover.
        frame: the box to stay in.

    Returns:
        index of the point -> its label.
    """
    kept = list(range(len(points)))
    while kept:
        labels = place([points[i] for i in kept], [sizes[i] for i in kept], [*marks, *bars], frame)
        placed = dict(zip(kept, labels, strict=True))
        bad = [i for i in kept if _misplaced(placed[i], marks, frame)]
        bad += [i for i in kept for j in kept if j < i and _meet(points[i], placed[i], points[j], placed[j])]
        if not bad:
            return placed
        kept.remove(max(bad))
    return {}


def _misplaced(label: Label, marks: Sequence[Box], frame: Box) -> bool:
    inside = label.box.overlap(frame) > label.box.area - 1
    return not inside or any(label.box.overlap(mark) > TOUCH for mark in marks)


def _meet(point: tuple[float, float], label: Label, other: tuple[float, float], others: Label) -> bool:
    """Whether two labels, or a label and the other's leader line, or both lines, are in each other's way."""
    if label.box.overlap(others.box) > TOUCH:
        return True
    crosses = _cross(point, _end(point, label), other, _end(other, others))
    return (
        (label.leader and others.leader and crosses)
        or (label.leader and _covers(point, label, others.box))
        or (others.leader and _covers(other, others, label.box))
    )


def _covers(point: tuple[float, float], label: Label, box: Box) -> bool:
    """Whether the label's leader line goes through a box."""
    return any(piece.overlap(box) for piece in _line(point, label, 40))


def _end(point: tuple[float, float], label: Label) -> tuple[float, float]:
    return point[0] + label.dx, point[1] + label.dy


def _cross(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]) -> bool:
    """Whether the segments a-b and c-d cross."""

    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


class _Options:
    """The possible places of a label, nearest first, and the cost of each place by itself."""

    def __init__(self, point: tuple[float, float], size: tuple[float, float], frame: Box) -> None:
        self.point, (width, height) = point, size
        places = [
            (math.cos(angle) * (radius + width / 2), math.sin(angle) * (radius + height / 2), radius)
            for radius in RADII
            for angle in ANGLES
        ]
        places.sort(key=lambda place: math.hypot(place[0], place[1]))
        self.places = places
        self.far = [math.hypot(dx, dy) for dx, dy, _ in places]
        centres = np.array(point) + np.array([place[:2] for place in places])
        half = np.array([width / 2, height / 2])
        self.boxes: Boxes = np.concatenate([centres - half, centres + half], axis=1)
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        outside = sides[:, 0] * sides[:, 1] - _common(self.boxes, _array([frame]))
        self.alone = np.array(self.far) + 10 * outside

    def cheapest(self, others: Boxes, obstacles: Boxes) -> Label:
        """The place with the lowest cost: distance, overlap with labels and obstacles, and crossings of its line."""
        costs = (self.alone + 36 * _common(self.boxes, others) + 12 * _common(self.boxes, obstacles)).tolist()
        best, least = self._label(0), math.inf
        for i, (far, cost) in enumerate(zip(self.far, costs, strict=True)):
            if far >= least:  # the remaining places are farther
                break
            if cost >= least:
                continue
            option = self._label(i)
            if option.leader:
                pieces = _array(_line(self.point, option))
                cost += sum((8 * _common(pieces, others) + _common(pieces, obstacles)).tolist())
            if cost < least:
                best, least = option, cost
        return best

    def _label(self, i: int) -> Label:
        dx, dy, radius = self.places[i]
        return Label(dx, dy, Box(*self.boxes[i].tolist()), radius >= LEADER)


def _common(boxes: Boxes, others: Boxes) -> NDArray[np.float64]:
    """The area that each of `boxes` has in common with `others`, summed in their order."""
    if not len(others):
        return np.zeros(len(boxes))
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    sides = np.maximum(np.minimum(boxes[:, None, 2:], others[:, 2:]) - low, 0.0)
    return np.add.accumulate(sides[..., 0] * sides[..., 1], axis=1)[:, -1]


def _array(boxes: Sequence[Box]) -> Boxes:
    return np.array([(b.left, b.bottom, b.right, b.top) for b in boxes], dtype=np.float64).reshape(-1, 4)


def _line(point: tuple[float, float], label: Label, pieces: int = 8) -> list[Box]:
    """The leader line as small boxes, for other labels to avoid."""
    steps = [(point[0] + label.dx * i / pieces, point[1] + label.dy * i / pieces) for i in range(2, pieces)]
    return [Box(x - 2, y - 2, x + 2, y + 2) for x, y in steps if not _inside(x, y, label.box)]


def _inside(x: float, y: float, box: Box) -> bool:
    return box.left <= x <= box.right and box.bottom <= y <= box.top
