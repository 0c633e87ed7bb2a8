"""Boxes, arrows and words of a schematic, as SVG without fonts or links; the site's palette may set its colours."""

from __future__ import annotations

from html import escape

# Each kind reads without colour: stripes train, dots are random and frozen, a grid is 4-bit, plain is frozen.
LEGEND = {"frozen": "frozen", "trained": "trains", "random": "random", "quantised": "4-bit"}
FROZEN, GLOW = "var(--figure-frozen,#e3e7ec)", "var(--figure-glow,#fff1dd)"
_GROUNDS = {"trained": GLOW, "random": FROZEN, "quantised": FROZEN}
STYLE = """\
.ink{fill:var(--figure-ink,#1f2933)}
.line{stroke:var(--figure-edge,#66717f);fill:none;stroke-width:1.5}
.frozen{fill:var(--figure-frozen,#e3e7ec);stroke:var(--figure-edge,#66717f);stroke-width:1.2}
.empty{fill:none;stroke:var(--figure-edge,#66717f);stroke-width:1.2;stroke-dasharray:4 3}
.trained{stroke:var(--figure-trained,#b45309);stroke-width:1.8}
text{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;font-size:15px}
.small{font-size:13px}.bold{font-weight:600}"""


class Drawing:
    """A growing list of SVG elements.

    Args:
        name: Prefix of ids, so that several drawings may stand on one page.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, w: float, h: float, kind: str = "frozen", label: str = "", small: bool = True
    ) -> None:
        """Draw a box of one kind of `LEGEND` (or "empty"), with its label in the middle."""
        patterned = kind not in ("frozen", "empty")
        css = "frozen" if kind in ("random", "quantised") else kind
        style = f' style="fill:url(#{self.name}-{kind})"' if patterned else ""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" class="{css}"{style}/>')
        if label:
            self.text(x + w / 2, y + h / 2 + 5, label, small, ground=_GROUNDS.get(kind, ""))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        small: bool = False,
        anchor: str = "middle",
        bold: bool = False,
        ground: str = "",
    ) -> None:
        """Write words with their base line at y; a ground around the letters lets them read over a pattern."""
        css = " ".join(["ink", *(["small"] if small else []), *(["bold"] if bold else [])])
        at = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        if ground:
            at += f' style="stroke:{ground};stroke-width:5;stroke-linejoin:round;paint-order:stroke"'
        self.parts.append(f'<text {at} class="{css}">{escape(words)}</text>')

    def line(self, *points: tuple[float, float], arrow: bool = False) -> None:
        """Draw a line through points; an arrow ends at the last one."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        head = f' marker-end="url(#{self.name}-arrow)"' if arrow else ""
        self.parts.append(f'<polyline points="{path}" class="line"{head}/>')

    def svg(self, width: int, height: int, title: str, description: str) -> str:
        """Return the whole file."""
        n = self.name
        edge = "var(--figure-edge,#66717f)"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
                f'aria-labelledby="{n}-title {n}-desc">',
                f'<title id="{n}-title">{escape(title)}</title>',
                f'<desc id="{n}-desc">{escape(description)}</desc>',
                f"<style>{STYLE}</style>",
                "<defs>",
                _pattern(f"{n}-trained", 8, '<path d="M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4" stroke-width="1.6" '
                         'style="stroke:var(--figure-stripe,#e08a2b)"/>', GLOW),
                _pattern(f"{n}-random", 7, f'<circle cx="3.5" cy="3.5" r="1.3" style="fill:{edge}"/>', FROZEN),
                _pattern(f"{n}-quantised", 7, f'<path d="M0,0H7M0,0V7" style="stroke:{edge};fill:none"/>', FROZEN),
                f'<marker id="{n}-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                f'orient="auto"><path d="M0,0L8,4L0,8z" style="fill:{edge}"/></marker>',
                "</defs>",
                f'<rect width="{width}" height="{height}" style="fill:var(--figure-paper,#fff)"/>',
                *self.parts,
                "</svg>\n",
            ]
        )  # fmt: skip


def _pattern(name: str, size: int, mark: str, ground: str) -> str:
    return (
        f'<pattern id="{name}" width="{size}" height="{size}" patternUnits="userSpaceOnUse">'
        f'<rect width="{size}" height="{size}" style="fill:{ground}"/>{mark}</pattern>'
    )
