"""Synthetic tasks for tests: tiny, learnable, with known answers.

Their texts are common lower-case words, which every tokenizer can read. Hashes choose the words, so that the data is
the same on every machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from peftbench.errors import UserError, shown
from peftbench.tasks import splits
from peftbench.tasks.dataset import (
    ROW_LIMITS,
    Dataset,
    Example,
    Options,
    TaskCard,
    TaskOption,
    check_options,
    example,
    make_dataset,
)

ROWS = {"train": 256, "validation": 48, "test": 64}
FILLERS = [
    "the",
    "a",
    "man",
    "dog",
    "house",
    "car",
    "old",
    "day",
    "time",
    "this",
    "one",
    "new",
    "big",
    "small",
    "long",
    "river",
    "road",
    "tree",
    "table",
    "book",
]
GOOD, BAD = ["good", "great", "fine", "happy", "nice"], ["bad", "poor", "sad", "wrong", "ugly"]
COLOURS = ["red", "blue", "green", "white", "black", "brown"]
FRUITS = dict(zip(COLOURS, ["apple", "berry", "pear", "rice", "bean", "nut"], strict=True))
_SOURCE = "made by peftbench"


def _card(name: str, kind: str, metrics: tuple[str, ...], what: str, labels: tuple[str, ...] = ()) -> TaskCard:
    rows = TaskOption("rows", "training rows, at most 20,000", str(ROWS["train"]))
    options = (rows, *ROW_LIMITS)
    return TaskCard(f"synthetic/{name}", kind, metrics, "Apache-2.0", _SOURCE, what, labels, options=options)


CARDS = [
    _card("classification", "classification", ("accuracy",), "is a good or a bad word in it?", ("bad", "good")),
    _card("regression", "regression", ("spearman", "pearson"), "share of good words less share of bad ones"),
    _card("pair", "classification", ("accuracy", "f1"), "do both name the same colour?", ("different", "same")),
    _card("generation", "generation", ("perplexity", "bleu", "rougeL"), "name the fruit of the colour"),
]


def open_synthetic(card: TaskCard, options: Options, data_dir: Path | None) -> Dataset:
    """Open a synthetic task. The option `rows` sets the number of training rows, at most 20,000.

    Raises:
        UserError: an option is not valid.
    """
    check_options(card.name, options, ("rows",))
    rows = options.get("rows", ROWS["train"])
    if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= 20_000:
        raise UserError(f"task {card.name}: rows must be a whole number from 1 to 20000, not {shown(rows)}")
    kind = card.name.split("/")[1]
    seen: set[str] = set()
    parts: dict[str, list[Example]] = {}
    for split, count in {"test": ROWS["test"], "validation": ROWS["validation"], "train": rows}.items():
        parts[split] = []
        draw = 0
        while len(parts[split]) < count:  # no sentence occurs twice, in any split
            made = _MAKE[kind](_Draw(f"{kind} {split} {draw}"), len(parts[split]))
            draw += 1
            if splits.by_content(made) not in seen:
                seen.add(splits.by_content(made))
                parts[split].append(made)
    return make_dataset(card, parts, options)


class _Draw:
    """Reproducible choices. The n-th is a hash of a name and n, the same in every version of Python and NumPy."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0

    def below(self, limit: int) -> int:
        """Choose an integer from 0 to `limit` - 1."""
        self.count += 1
        digest = hashlib.sha256(f"{self.name} {self.count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % limit

    def of(self, words: list[str]) -> str:
        """Choose one of the words."""
        return words[self.below(len(words))]

    def words(self, low: int, high: int) -> list[str]:
        """Choose from `low` to `high` filler words."""
        return [self.of(FILLERS) for _ in range(low + self.below(high - low + 1))]

    def put(self, sentence: list[str], word: str) -> list[str]:
        """Insert a word at a random place of a sentence."""
        place = self.below(len(sentence) + 1)
        return [*sentence[:place], word, *sentence[place:]]


def _classification(draw: _Draw, index: int) -> Example:
    label = index % 2
    return example(" ".join(draw.put(draw.words(3, 11), draw.of(GOOD if label else BAD))), label=label)


def _regression(draw: _Draw, index: int) -> Example:
    good = draw.below(5)
    words = draw.words(3, 6)
    for i in range(4):
        words = draw.put(words, draw.of(GOOD if i < good else BAD))
    return example(" ".join(words), label=(2 * good - 4) / 4)


def _pair(draw: _Draw, index: int) -> Example:
    label = index % 2
    first = draw.of(COLOURS)
    second = first if label else draw.of([c for c in COLOURS if c != first])
    a, b = draw.put(draw.words(2, 5), first), draw.put(draw.words(2, 5), second)
    return example(" ".join(a), " ".join(b), label)


def _generation(draw: _Draw, index: int) -> Example:
    colour = draw.of(COLOURS)
    answers = [f"the {colour} {FRUITS[colour]}", f"a {colour} {FRUITS[colour]}"]
    return example(" ".join(draw.put(draw.words(2, 5), colour)) + " :", references=answers)


_MAKE = {"classification": _classification, "regression": _regression, "pair": _pair, "generation": _generation}
