"""Where to put the labels of points in a plot: beside their point, clear of markers, error bars and each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RADII = (4, 9, 16, 25, 36, 50, 66, 84, 104)  # points between a point and the near edge of its label
ANGLES = tuple(math.radians(a) for a in (0, 180, 90, 270, 45, 135, 315, 225, 20, 340, 160, 200, 65, 115, 245, 295))
LEADER = 15.0  # from this distance on a label is tied to its point by a line


@dataclass(frozen=True)
class Box:
    """An upright rectangle, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)


@dataclass(frozen=True)
class Label:
    """A label's centre relative to its point, and whether it is far enough to need a line to it."""

    dx: float
    dy: float
    box: Box
    leader: bool


def place(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], obstacles: Sequence[Box], frame: Box
) -> list[Label]:
    """One Label for each point: `sizes` are the labels' widths and heights, all in points of the same frame.

    Greedy, the most crowded point first, then improved until nothing moves. Deterministic.
    """
    order = sorted(range(len(points)), key=lambda i: (sum(math.dist(points[i], p) for p in points), i))
    placed: dict[int, Label] = {}
    for _ in range(6):
        before = dict(placed)
        for i in order:
            others = [placed[j].box for j in placed if j != i]
            lines = [_line(points[j], placed[j]) for j in placed if j != i and placed[j].leader]
            blocks = [box for line in lines for box in line]
            placed[i] = _cheapest(points[i], sizes[i], others, [*obstacles, *blocks], frame)
        if placed == before:
            break
    return [placed[i] for i in range(len(points))]


def _options(point: tuple[float, float], size: tuple[float, float]) -> list[Label]:
    options = []
    for radius in RADII:
        for angle in ANGLES:
            dx = math.cos(angle) * (radius + size[0] / 2)
            dy = math.sin(angle) * (radius + size[1] / 2)
            x, y = point[0] + dx, point[1] + dy
            box = Box(x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)
            options.append(Label(dx, dy, box, radius >= LEADER))
    return options


def _cheapest(
    point: tuple[float, float], size: tuple[float, float], others: Sequence[Box], obstacles: Sequence[Box], frame: Box
) -> Label:
    """The nearest place, unless what it covers or its line crosses costs more than going farther."""
    options = sorted(_options(point, size), key=lambda o: math.hypot(o.dx, o.dy))
    best, least = options[0], math.inf
    for option in options:
        cost = math.hypot(option.dx, option.dy)
        if cost >= least:  # what follows is farther still
            break
        cost += 10 * (option.box.area - option.box.overlap(frame))
        cost += 36 * _common(option.box, others) if cost < least else 0.0
        cost += 12 * _common(option.box, obstacles) if cost < least else 0.0
        if option.leader and cost < least:
            cost += sum(8 * _common(piece, others) + _common(piece, obstacles) for piece in _line(point, option))
        if cost < least:
            best, least = option, cost
    return best


def _common(box: Box, others: Sequence[Box]) -> float:
    return sum(box.overlap(o) for o in others)


def _line(point: tuple[float, float], label: Label, pieces: int = 8) -> list[Box]:
    """The leader line as small boxes, so that labels keep off it."""
    steps = [(point[0] + label.dx * i / pieces, point[1] + label.dy * i / pieces) for i in range(2, pieces)]
    return [Box(x - 2, y - 2, x + 2, y + 2) for x, y in steps if not _inside(x, y, label.box)]


def _inside(x: float, y: float, box: Box) -> bool:
    return box.left <= x <= box.right and box.bottom <= y <= box.top
