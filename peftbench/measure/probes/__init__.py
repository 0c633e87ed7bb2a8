"""Numbers of the trained network itself, beside its scores: what papers' figures about weights and forgetting need.

An experiment lists them (``probes: [ranks]``), and what they find stands in each run's record under "probes". A probe
is a module of this folder with one pure function, ``measure(trained) -> JSON-ready numbers``, which changes nothing in
the network and draws no random number; its card is here, so that planning need not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError, unknown

if TYPE_CHECKING:
    from peftbench.method.edit import Edit

WIKITEXT = "wikitext-2"  # the folder under --data-dir, with test.txt


@dataclass(frozen=True)
class Card:
    """What a probe measures, where that is defined, and when it is measured."""

    name: str  # of its module, too
    version: int  # raise it when the same weights would give other numbers
    paper: str
    definition: str
    throughout: bool  # before the first step and at each validation, too; else on the tested weights only
    needs_wikitext: bool = False


CARDS = {
    card.name: card
    for card in (
        Card(
            "decomposition",
            1,
            "arXiv:2402.09353, section 3.2, equations 3 and 4",
            "dM: mean over the rows w of a weight of | ||w'|| - ||w|| |; dD: mean of 1 - cos(w', w); w' is trained, w "
            "pretrained, and a row is what one output is computed with",
            throughout=True,
        ),
        Card(
            "subspaces",
            1,
            "arXiv:2106.09685, section 7.2",
            "the first 16 right-singular vectors of the update W' - W, and of the matrix A where the adapter has one "
            "(the paper's), in the order of their singular values; vectors as float16 rows in base64",
            throughout=False,
        ),
        Card(
            "ranks",
            1,
            "arXiv:2303.10512, figure 3",
            "the rank of the update W' - W: singular values above 1e-8 of its largest, in float64",
            throughout=False,
        ),
        Card(
            "wikitext2_loss",
            1,
            "arXiv:2405.09673, section 3.3, with the loss on general text in place of three benchmarks",
            "mean cross-entropy in nats of the next token on WikiText-2's test text, as published (tokenised words), "
            "over 32 windows of 64 tokens that start at equal distances",
            throughout=True,
            needs_wikitext=True,
        ),
    )
}


@dataclass(frozen=True)
class Trained:
    """What a probe looks at: a network under an edit, not yet undone."""

    edit: Edit
    dtype: str = "float32"
    data_dir: Path | None = None


def known(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once. Raises `UserError` for one that is no probe."""
    found = tuple(names)
    for name in found:
        if name not in CARDS:
            raise unknown("probe", name, CARDS)
        if found.count(name) > 1:
            raise UserError(f"probe {name!r} is listed twice; list each once")
    return found


def check(names: Iterable[str], kinds: Iterable[str], data_dir: Path | None) -> None:
    """Raise `UserError` before anything runs where a probe could not be measured.

    `kinds` are those of the tasks: language-model loss needs a network that generates.
    """
    kinds = set(kinds)
    for card in (CARDS[name] for name in names):
        if card.needs_wikitext:
            wikitext_file(data_dir)
            if other := sorted(kinds - {"generation"}):
                raise UserError(
                    f"probe {card.name} needs a causal language model, and a {other[0]} task gives the network another "
                    "head; use it with a generation task, such as embedded/dialog_reply"
                )


def wikitext_file(data_dir: Path | None) -> Path:
    """WikiText-2's test text under `data_dir`. Raises `UserError` where it is not there."""
    if data_dir is not None:
        for folder in (data_dir, data_dir / WIKITEXT, data_dir.parent / WIKITEXT):  # DIR may be one task's folder
            if folder.name == WIKITEXT and (folder / "test.txt").is_file():
                return folder / "test.txt"
    looked = "no data directory was given" if data_dir is None else f"{data_dir} has no {WIKITEXT}/test.txt"
    raise UserError(
        f"probe wikitext2_loss: {looked}. Put WikiText-2's test text at DIR/{WIKITEXT}/test.txt and give --data-dir "
        "DIR, or leave the probe out of the experiment"
    )


class Probes:
    """The probes of one run and what they have found so far."""

    def __init__(self, asked: Mapping[str, int], trained: Trained) -> None:
        for name, version in asked.items():
            if name not in CARDS or CARDS[name].version != version:
                raise UserError(f"probe {name} of version {version} is not in this peftbench; plan the run again")
        self.cards, self.trained = [CARDS[name] for name in asked], trained
        self._found: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}

    def look(self, step: int, last: bool = False) -> None:
        """Measure after `step` optimiser steps; `last` are the tested weights, and the last point is theirs."""
        for card in self.cards:
            if last or card.throughout:
                measure = import_module(f"{__name__}.{card.name}").measure
                earlier = [point for point in self._found[card.name] if point["step"] != step]
                self._found[card.name] = [*earlier, {"step": step, **measure(self.trained)}]

    def record(self) -> dict[str, Any]:
        """By name: the card, and one point for each time that was looked."""
        return {c.name: {**_told(c), "points": self._found[c.name]} for c in self.cards}


def _told(card: Card) -> dict[str, Any]:
    return {key: value for key, value in asdict(card).items() if key in ("version", "paper", "definition")}
