"""Measurements of the trained network itself, as papers' figures about weights and forgetting need them.

An experiment lists probes (``probes: [ranks]``); their results are in each run's record under "probes". A probe is a
module of this package with one pure function, ``measure(trained) -> JSON-ready numbers``, which neither changes the
network nor draws a random number. Its card is here, so that planning need not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError, unknown

if TYPE_CHECKING:
    from peftbench.backbones.load import Backbone
    from peftbench.method.edit import Edit

WIKITEXT = "wikitext-2/test.txt"  # under --data-dir
ARC_EASY = "ARC-Easy/test.json"


@dataclass(frozen=True)
class Card:
    """What a probe measures, its source, and when it is measured."""

    name: str  # also the name of its module
    version: int  # raise it when the same weights would give other numbers
    paper: str
    definition: str
    throughout: bool  # also before the first step and at each validation; else only on the tested weights
    reads: str | None = None  # a file under --data-dir: general language, which only a causal language model reads


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
            reads=WIKITEXT,
        ),
        Card(
            "arc_easy",
            1,
            "arXiv:2405.09673, section 3.3, with ARC-Easy (arXiv:1803.05457) in place of ARC-Challenge",
            "share of 128 test questions of ARC-Easy, at equal distances, whose right answer has the highest log "
            "probability for its bytes after 'Question: ...\\nAnswer:' (acc_norm of EleutherAI's evaluation harness)",
            throughout=True,
            reads=ARC_EASY,
        ),
    )
}


@dataclass(frozen=True)
class TrainedNetwork:
    """The input of a probe: a network whose edit is still in place.

    Attributes:
        edit: The edit.
        dtype: Dtype of the forward pass.
        data_dir: Directory of the data sets, if given.
    """

    edit: Edit
    dtype: str = "float32"
    data_dir: Path | None = None


def known(names: Iterable[str]) -> tuple[str, ...]:
    """Return the probe names.

    Raises:
        UserError: A name is not a probe, or is listed twice.
    """
    listed = tuple(names)
    for name in listed:
        if name not in CARDS:
            raise unknown("probe", name, CARDS)
        if listed.count(name) > 1:
            raise UserError(f"probe {name!r} is listed twice; list each once")
    return listed


def check(names: Iterable[str], kinds: Iterable[str], data_dir: Path | None) -> None:
    """Check before a run that every probe can be measured.

    Args:
        names: Names of probes.
        kinds: Kinds of the tasks; the language-model loss needs a network that generates.
        data_dir: Directory of the data sets, if given.

    Raises:
        UserError: A probe cannot be measured.
    """
    kinds = set(kinds)
    for card in (CARDS[name] for name in names):
        if card.reads is not None:
            file_of(card, data_dir)
            if other := sorted(kinds - {"generation"}):
                raise UserError(
                    f"probe {card.name} needs a causal language model, and a {other[0]} task gives the network another "
                    "head; use it with a generation task, such as embedded/dialog_reply"
                )


def file_of(card: Card, data_dir: Path | None) -> Path:
    """Return the file under `data_dir` that a probe reads.

    Raises:
        UserError: It is not there.
    """
    assert card.reads is not None, card
    if data_dir is not None:
        for folder in (data_dir, data_dir.parent):  # DIR may be one task's folder, beside this one
            for path in (folder / card.reads, folder / "commonsense" / card.reads):
                if path.is_file():
                    return path
    reason = "no data directory was given" if data_dir is None else f"{data_dir} has no {card.reads}"
    raise UserError(
        f"probe {card.name}: {reason}. Put the test split at DIR/{card.reads} and give --data-dir DIR, or leave the "
        "probe out of the experiment"
    )


def language_model(card: Card, trained: TrainedNetwork) -> Backbone:
    """Return the backbone of `trained`.

    Raises:
        UserError: It is no causal language model.
    """
    backbone = trained.edit.backbone
    if backbone.kind != "generation" or backbone.net.config.is_encoder_decoder:
        raise UserError(f"probe {card.name} needs a causal language model; {type(backbone.net).__name__} is none")
    return backbone


class Probes:
    """The probes of one run and their results so far.

    Attributes:
        points: What each probe measured, by its name.
    """

    def __init__(self, versions: Mapping[str, int], trained: TrainedNetwork) -> None:
        """Select the probes.

        Args:
            versions: Version of each probe in the run's specification, by name.
            trained: The network to measure.

        Raises:
            UserError: This peftbench lacks a probe of that version.
        """
        for name, version in versions.items():
            if name not in CARDS or CARDS[name].version != version:
                raise UserError(f"probe {name} of version {version} is not in this peftbench; plan the run again")
        self.cards, self.trained = [CARDS[name] for name in versions], trained
        self.points: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}

    def measure(self, step: int, last: bool = False) -> None:
        """Measure the network after `step` optimiser steps.

        Args:
            step: Number of steps done.
            last: Whether these are the tested weights. Their point replaces an earlier one of the same step.
        """
        for card in self.cards:
            if last or card.throughout:
                probe = import_module(f"{__name__}.{card.name}")
                points = self.points[card.name]
                points[:] = [point for point in points if point["step"] != step]
                points.append({"step": step, **probe.measure(self.trained)})

    def record(self) -> dict[str, Any]:
        """Return, by probe, the card and one point per measurement."""
        return {c.name: {**_facts(c), "points": self.points[c.name]} for c in self.cards}


def _facts(card: Card) -> dict[str, Any]:
    return {key: value for key, value in asdict(card).items() if key in ("version", "paper", "definition")}
