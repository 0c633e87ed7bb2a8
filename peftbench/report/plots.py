"""All figures of a comparison, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from . import curves, quality, style
from .statistics import Comparison
from .style import Look, looks

__all__ = ["figures", "looks"]


def figures(c: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of every figure that `c` has data for; `looks` keeps a label's look across figures."""
    with style.drawing():
        for name, axes in quality.FIGURES.items():
            if (drawn := quality.draw(c, axes, looks)) is not None:
                yield from style.files(f"{c.slug}--{name}", drawn)
        if (drawn := curves.draw(c, looks)) is not None:
            yield from style.files(f"{c.slug}--loss", drawn)
