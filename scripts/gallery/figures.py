"""The schematic of one method: on the left where it acts in a transformer block, on the right what stands there."""

from __future__ import annotations

from gallery.details import DETAILS, UNKNOWN, X
from gallery.drawing import LEGEND, Drawing
from gallery.touched import Touched

WIDTH, HEIGHT = 560, 372
LEFT, RIGHT = 24, 252  # of the block
BOTTOM = 352


def schematic(name: str, touched: Touched) -> str:
    """Return the SVG of a method.

    Args:
        name: Name of the method.
        touched: Where it acts.
    """
    d = Drawing(name.replace("_", "-"))
    _block(d, touched)
    detail = DETAILS.get(name, UNKNOWN)
    _legend(d, detail.kinds)
    d.parts.append(f'<g id="{d.name}-what">')
    d.text(X, 36, detail.title, anchor="start", bold=True)
    detail.draw(d)
    d.parts.append("</g>")
    return d.svg(WIDTH, HEIGHT, f"Where {name} acts", describe(touched))


def describe(t: Touched) -> str:
    """Say in one sentence where a method acts."""
    words = []
    if t.quantised:
        words.append(f"4-bit weights at {_listed(t.quantised)}")
    if t.adapters:
        words.append(f"trained numbers at {_listed(t.adapters)}")
    if t.thawed:
        words.append("every weight of the base trains" if "*" in t.thawed else f"the base's {_listed(t.thawed)} train")
    if t.biases:
        words.append("every bias of the base trains" if "*" in t.biases else f"the biases of {_listed(t.biases)} train")
    return "; ".join(words or ["nothing but the task head trains"]) + "."


ORDER = ("prompt", "prefix", "q", "k", "v", "o", "attn", "gate", "up", "down", "ffn", "norm", "embed")
NAMES = {"attn": "attention's output", "ffn": "the feed-forward part", "norm": "norms", "prompt": "the embedded text"}


def _listed(roles: set[str]) -> str:
    names = [NAMES.get(role, role) for role in sorted(roles, key=ORDER.index)]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _block(d: Drawing, t: Touched) -> None:
    """Draw the network from the text, below, to the task head, above."""
    middle = (LEFT + RIGHT) / 2
    d.line((middle, BOTTOM - 46), (middle, 20), arrow=True)
    d.parts.append(f'<rect x="{LEFT - 12}" y="56" width="{RIGHT - LEFT + 24}" height="244" rx="8" class="line"/>')
    d.text(RIGHT + 6, 71, "each layer", small=True, anchor="end")
    d.box(middle - 56, 22, 112, 26, "trained", "task head")
    for y in (274, 142):
        _site(d, t, "norm", middle - 60, y, 120, 18, "norm")
    for i, role in enumerate(("q", "k", "v")):
        _site(d, t, role, middle - 110 + 80 * i, 240, 60, 26, role)
    ground = 'class="line" style="fill:var(--figure-ground,#fff)"'
    d.parts.append(f'<rect x="{middle - 110:g}" y="218" width="220" height="16" rx="8" {ground}/>')
    d.text(middle, 230.5, "attention", small=True)
    for role, y in (("o", 191), ("up", 116), ("down", 90)):
        _site(d, t, role, middle - 36, y, 72, 22, role)
    for role, y in (("attn", 166), ("ffn", 65)):
        if role in t.adapters:
            d.box(middle - 36, y, 72, 20, "trained", "adapter")
    for x in (middle - 38, middle + 42) if "prefix" in t.adapters else ():
        d.box(x, 240, 10, 26, "trained")
    _text(d, t)


def _text(d: Drawing, t: Touched) -> None:
    """Draw the embedded text, with trained vectors before it if the method has them."""
    everything = "*" in t.thawed
    x, count = LEFT + 46, 5
    if "prompt" in t.adapters:
        for i in range(3):
            d.box(x - 44 + 20 * i, BOTTOM - 46, 16, 16, "trained")
        x += 22
    for i in range(count):
        d.box(x + 20 * i, BOTTOM - 46, 16, 16, "trained" if everything else "frozen")
    d.text(x + 20 * count + 4, BOTTOM - 33, "text", small=True, anchor="start")


def _site(d: Drawing, t: Touched, role: str, x: float, y: float, w: float, h: float, label: str) -> None:
    """Draw one layer as the method leaves it."""
    kind = "trained" if {"*", role} & t.thawed else "quantised" if role in t.quantised else "frozen"
    adapter, bias = role in t.adapters, bool({"*", role} & t.biases)
    strip = 16 if adapter else 8
    width = w - strip - 2 if adapter or bias else w
    d.box(x, y, width, h, kind, label)
    if adapter or bias:
        d.box(x + width + 2, y, strip, h, "trained")


def _legend(d: Drawing, kinds: tuple[str, ...]) -> None:
    for i, kind in enumerate(("frozen", "trained", *kinds)):
        x, y = LEFT - 12 + (0, 78, 156)[i], HEIGHT - 18
        d.box(x, y, 18, 13, kind)
        d.text(x + 24, y + 11, LEGEND[kind], small=True, anchor="start")
