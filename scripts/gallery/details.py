"""The right half of each schematic: the tensors of one method, with the letters of its paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gallery.drawing import Drawing

X, TOP, SIDE = 296, 92, 92  # of the weight


@dataclass(frozen=True)
class Detail:
    """What stands at a site.

    Attributes:
        title: Which site.
        draw: Draws it.
        kinds: Kinds of boxes beside frozen and trained ones, for the legend.
    """

    title: str
    draw: Callable[[Drawing], None]
    kinds: tuple[str, ...] = ()


def low_rank(
    *notes: str,
    weight: str = "W",
    base: str = "frozen",
    up: str = "B",
    down: str = "A",
    pair: str = "trained",
    magnitude: bool = False,
) -> Callable[[Drawing], None]:
    """Draw a weight plus the product of a tall and a wide matrix."""

    def draw(d: Drawing) -> None:
        x = X + 30 if magnitude else X
        if magnitude:
            d.box(X, TOP, 12, SIDE, "trained")
            d.text(X + 6, TOP - 8, "m", small=True)
            d.text(X + 21, TOP + SIDE / 2 + 5, "×")
        side = SIDE - 18 if magnitude else SIDE
        d.box(x, TOP, side, SIDE, base, weight, small=False)
        d.text(x + side + 12, TOP + SIDE / 2 + 5, "+")
        d.box(x + side + 24, TOP, 22, SIDE, pair)
        d.text(x + side + 35, TOP - 8, up, small=True)
        d.box(x + side + 54, TOP, side, 22, pair)
        d.text(x + side + 54 + side / 2, TOP - 8, down, small=True)
        if magnitude:
            d.text(X, TOP + SIDE + 22, "each row divided by its norm", small=True, anchor="start")
        _notes(d, notes, TOP + SIDE + (44 if magnitude else 30))

    return draw


def _notes(d: Drawing, notes: tuple[str, ...], y: float) -> None:
    for i, words in enumerate(notes):
        d.text(X, y + 21 * i, words, small=True, anchor="start")


def adalora(d: Drawing) -> None:
    d.box(X, TOP, 80, SIDE, "frozen", "W", small=False)
    d.text(X + 92, TOP + SIDE / 2 + 5, "+")
    d.box(X + 104, TOP, 28, SIDE, "trained")
    d.text(X + 118, TOP - 8, "P", small=True)
    for i in range(4):
        d.box(X + 140 + 9 * i, TOP + 9 * i, 8, 8, "trained" if i < 2 else "empty")
    d.text(X + 158, TOP - 8, "Λ", small=True)
    d.box(X + 184, TOP, 74, 28, "trained")
    d.text(X + 221, TOP - 8, "Q", small=True)
    _notes(
        d,
        ("Ranks fall during training:", "the least important entries of Λ,", "over all layers, become zero."),
        TOP + 122,
    )


def vera(d: Drawing) -> None:
    d.box(X, TOP, 80, SIDE, "frozen", "W", small=False)
    d.text(X + 92, TOP + SIDE / 2 + 5, "+")
    for x, w, h, kind, label in (
        (104, 9, SIDE, "trained", "b"),
        (119, 34, SIDE, "random", "B"),
        (159, 9, 34, "trained", "d"),
        (174, 84, 34, "random", "A"),
    ):
        d.box(X + x, TOP, w, h, kind)
        d.text(X + x + w / 2, TOP - 8, label, small=True)
    _notes(d, ("A and B are the same in all layers", "and are not stored. Starts at b = 0."), TOP + 122)


def whole(*notes: str) -> Callable[[Drawing], None]:
    """Draw a weight that trains, and what the optimiser keeps of it."""

    def draw(d: Drawing) -> None:
        d.box(X, TOP, SIDE, SIDE, "trained", "W", small=False)
        d.text(X + 130, TOP - 8, "AdamW keeps", small=True, anchor="start")
        for i in range(2):
            d.box(X + 130 + 60 * i, TOP, 52, SIDE, "empty")
        _notes(d, notes, TOP + 122)

    return draw


def galore(d: Drawing) -> None:
    d.box(X, TOP, SIDE, SIDE, "trained", "W", small=False)
    d.text(X + 130, TOP - 8, "Adam keeps", small=True, anchor="start")
    for i in range(2):
        d.box(X + 130, TOP + 30 * i, SIDE, 18, "empty")
    _notes(d, ("Its averages live in r directions", "of the gradient, chosen again", "every T steps."), TOP + 122)


def bias(d: Drawing) -> None:
    d.box(X, TOP, SIDE, SIDE, "frozen", "W", small=False)
    d.text(X + SIDE + 22, TOP + SIDE / 2 + 5, "x  +")
    d.box(X + SIDE + 48, TOP, 16, SIDE, "trained")
    d.text(X + SIDE + 56, TOP - 8, "b", small=True)
    _notes(d, ("Every bias that the base has,", "those of its norms included."), TOP + 122)


def norm(d: Drawing) -> None:
    for x, label in ((0, "g"), (172, "b")):
        d.box(X + x, TOP, 16, SIDE, "trained")
        d.text(X + x + 8, TOP - 8, label, small=True)
    d.text(X + 26, TOP + SIDE / 2 + 5, "×")
    d.box(X + 38, TOP + 20, 106, SIDE - 40, "frozen", "(x − mean) / sd")
    d.text(X + 158, TOP + SIDE / 2 + 5, "+")
    _notes(d, ("Gain and bias of every norm.",), TOP + 122)


def probe(d: Drawing) -> None:
    d.box(X, TOP, 110, SIDE, "frozen", "whole base")
    d.line((X + 110, TOP + SIDE / 2), (X + 146, TOP + SIDE / 2), arrow=True)
    d.box(X + 148, TOP + 26, 96, SIDE - 52, "trained", "task head")
    _notes(d, ("The lower bound: no feature changes.",), TOP + 122)


def scaling(d: Drawing) -> None:
    d.box(X, TOP, 16, SIDE, "trained")
    d.text(X + 8, TOP - 8, "l", small=True)
    d.text(X + 28, TOP + SIDE / 2 + 5, "×")
    d.box(X + 42, TOP, SIDE, SIDE, "frozen", "W", small=False)
    d.text(X + SIDE + 58, TOP + SIDE / 2 + 5, "x")
    _notes(
        d,
        ("One number for each key and value,", "and for each inner activation", "of the feed-forward part."),
        TOP + 122,
    )


def bottleneck(d: Drawing) -> None:
    middle = X + 96
    d.line((middle, TOP + 112), (middle, TOP - 20), arrow=True)
    d.line((middle, TOP + 104), (X + 210, TOP + 104), (X + 210, TOP - 8), (middle + 4, TOP - 8), arrow=True)
    d.box(X, TOP + 66, 192, 24, "trained", "D: d → m")
    d.box(middle - 40, TOP + 36, 80, 20, "frozen", "GELU")
    d.box(X, TOP + 2, 192, 24, "trained", "U: m → d")
    _notes(d, ("After both sublayers; norms train too.", "Other placements: pfeiffer, parallel."), TOP + 142)


def prefix(d: Drawing) -> None:
    for x, label, trained in ((0, "K", "Pₖ"), (130, "V", "Pᵥ")):
        d.box(X + x, TOP, 26, SIDE, "trained")
        d.text(X + x + 13, TOP - 8, trained, small=True)
        d.box(X + x + 30, TOP, 80, SIDE, "frozen", label, small=False)
    _notes(d, ("Every token also attends to these", "keys and values, in each layer."), TOP + 122)


def prompt(d: Drawing) -> None:
    for i in range(9):
        d.box(X + 28 * i, TOP + 20, 22, 56, "trained" if i < 4 else "frozen")
    d.text(X + 53, TOP + 10, "P", small=True)
    d.text(X + 179, TOP + 10, "embedded text", small=True)
    _notes(d, ("Vectors before the text", "(after an encoder's first token)."), TOP + 122)


UNKNOWN = Detail("see the formula", lambda d: None)  # a method that nobody has drawn yet
LOW_RANK_4_BIT = low_rank("Starts at B = 0.", "W is rounded to 4-bit NormalFloat.", base="quantised")
DORA_4_BIT = low_rank("W is 4-bit NormalFloat.", base="quantised", magnitude=True)
PISSA = low_rank("B A starts as the r largest", "singular triplets of the weight;", "R is the rest of it.", weight="R")
DETAILS = {
    "lora": Detail("at q and v", low_rank("Rank r: B is (out, r), A is (r, in).", "Starts at B = 0.")),
    "lora_plus": Detail("at q and v", low_rank("Starts at B = 0.", "B learns at λ times the rate of A.")),
    "rslora": Detail("at q and v", low_rank("Starts at B = 0.", "Scaled by α / √r, not by α / r.")),
    "dora": Detail("at q and v", low_rank("Starts at B = 0, m the rows' norm.", magnitude=True)),
    "qlora": Detail("at every linear layer", LOW_RANK_4_BIT, ("quantised",)),
    "qdora": Detail("at every linear layer", DORA_4_BIT, ("quantised",)),
    "pissa": Detail("at every linear layer", PISSA),
    "adalora": Detail("at every linear layer", adalora),
    "vera": Detail("at q and v", vera, ("random",)),
    "full": Detail("at every weight", whole("two numbers for each weight.")),
    "galore": Detail("at every weight", galore),
    "bitfit": Detail("at every layer with a bias", bias),
    "layernorm": Detail("at every norm", norm),
    "linear_probe": Detail("above the base", probe),
    "ia3": Detail("at k, v and down", scaling),
    "adapter": Detail("after each sublayer", bottleneck),
    "prefix": Detail("before keys and values", prefix),
    "prompt": Detail("before the first layer", prompt),
}  # fmt: skip
